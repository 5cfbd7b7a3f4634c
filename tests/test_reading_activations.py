"""Which function follows a layer, however a program is written: random factors, moves, names, slopes and gates."""

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxinit
from jaxinit import trace_layers

KEY = jax.random.key(3)
RAW = jax.random.PRNGKey(3)
X = jax.random.normal(jax.random.key(1), (4, 8))
KEEP = 0.7


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def first(apply_fn, params=None, batch=X):
    params = {"a": struct(8, 8), "c": struct(8, 8)} if params is None else params
    return trace_layers(params, apply_fn, batch)[0]


def behind(function):
    """The layer before an elementwise function."""
    return first(lambda p, x: function(x @ p["a"]) @ p["c"])


# Random factors


def dropout(z, key=KEY, keep=KEEP, shape=None):
    mask = jax.random.bernoulli(key, keep, shape or z.shape)
    return jnp.where(mask, z / keep, 0.0)


DROPPED = {
    "where": lambda z: dropout(jax.nn.relu(z)),
    "raw key": lambda z: dropout(jax.nn.relu(z), RAW),
    "product": lambda z: jax.nn.relu(z) * jax.random.bernoulli(KEY, KEEP, z.shape).astype(z.dtype) / KEEP,
    "before": lambda z: jax.nn.relu(dropout(z)),
    "rows": lambda z: dropout(jax.nn.relu(z), shape=(4, 1)),
    "uniform": lambda z: jnp.where(jax.random.uniform(KEY, z.shape) < KEEP, jax.nn.relu(z), 0.0) / KEEP,
    "reshaped": lambda z: dropout(jax.nn.relu(z).reshape(4, 2, 4)).reshape(4, 8),
    "two": lambda z: dropout(dropout(jax.nn.relu(z), keep=KEEP**0.5), RAW, KEEP**0.5),
}


@pytest.mark.parametrize("form", DROPPED)
def test_dropout_is_in_the_gain_and_not_in_the_name(form):
    activation = behind(DROPPED[form]).activation
    assert activation.name == "relu"
    np.testing.assert_allclose(activation(jnp.linspace(-3, 3, 7)), jax.nn.relu(jnp.linspace(-3, 3, 7)), rtol=1e-4)
    assert jaxinit.gain(activation) ** 2 == pytest.approx(2 * KEEP, rel=1e-3)


def test_dropout_whose_key_is_data_or_a_parameter():
    def apply_fn(p, batch):
        return dropout(jax.nn.relu(batch["x"] @ p["a"]), batch.get("key", p.get("key"))) @ p["c"]

    params = {"a": struct(8, 8), "c": struct(8, 8)}
    for found in (
        first(apply_fn, params, {"x": X, "key": RAW}),
        first(apply_fn, params, {"x": X, "key": KEY}),
        first(apply_fn, params | {"key": RAW}, {"x": X}),
    ):
        assert found.activation.name == "relu"
        assert jaxinit.gain(found.activation) ** 2 == pytest.approx(2 * KEEP, rel=1e-3)


def linen_dropout():
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(1 - KEEP, deterministic=False), nn.Dense(8)])
    params = model.init({"params": KEY, "dropout": KEY}, X)
    return trace_layers(params, lambda p, x: model.apply(p, x, rngs={"dropout": KEY}), X)


def nnx_dropout():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(8, 8, rngs=rngs), nnx.relu, nnx.Dropout(1 - KEEP, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
    return jaxinit.nnx.trace_layers(nnx.Sequential(*layers), X)


def equinox_dropout():
    linear = eqx.nn.Linear(8, 8, key=KEY)
    model = eqx.nn.Sequential([linear, eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(1 - KEEP), linear])
    params, static = eqx.partition(model, eqx.is_inexact_array)
    keys = jax.random.split(KEY, len(X))
    return trace_layers(params, lambda p, x: jax.vmap(lambda x, k: eqx.combine(p, static)(x, key=k))(x, keys), X)


def haiku_dropout():
    def forward(x):
        return hk.Linear(8)(hk.dropout(hk.next_rng_key(), 1 - KEEP, jax.nn.relu(hk.Linear(8)(x))))

    model = hk.transform(forward)
    with jax.numpy_dtype_promotion("standard"):
        return trace_layers(model.init(KEY, X), lambda p, x: model.apply(p, KEY, x), X)


@pytest.mark.parametrize("framework", [linen_dropout, nnx_dropout, equinox_dropout, haiku_dropout])
def test_dropout_of_every_framework(framework):
    layer = framework()[0]
    assert layer.activation.name == "relu"
    assert jaxinit.gain(layer.activation) ** 2 == pytest.approx(2 * KEEP, rel=1e-3)


NOISE = {  # E[f²] in closed form
    "multiplied": (lambda z: jax.nn.relu(z) * (1 + 0.3 * jax.random.normal(KEY, z.shape)), 1.09 / 2),
    "added": (lambda z: jax.nn.relu(z + 0.5 * jax.random.normal(KEY, z.shape)), 1.25 / 2),
    "uniform": (lambda z: jax.nn.relu(z) * jax.random.uniform(KEY, z.shape), 1 / 6),
    "exponential": (lambda z: jax.nn.relu(z) * jax.random.exponential(KEY, z.shape), 1.0),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_enters_with_its_moments(name):
    function, expected = NOISE[name]
    assert jaxinit.gain(behind(function).activation) ** -2 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("draw", [(4, 8), (3, 4, 8)], ids=["once", "for each step"])
def test_noise_is_no_bias_wherever_it_is_drawn(draw):
    def apply_fn(p, x):
        noise = 0.5 * jax.random.normal(KEY, draw)

        def step(h, drawn):
            return jax.nn.relu((noise if drawn is None else drawn) - h @ p["a"]), None

        return jax.lax.scan(step, x, noise if len(draw) == 3 else None, length=3)[0] @ p["c"]

    layer = first(apply_fn)
    assert not layer.has_bias
    # E[relu(ε/2)²] and E[relu(ε/2 + 1)²]; a normal number lies above -2 with this probability.
    above = (1 + math.erf(2**0.5)) / 2
    expected = [0.125, 1.25 * above + 0.5 * math.exp(-2) / math.sqrt(2 * math.pi)]
    np.testing.assert_allclose(layer.activation.second_moment(jnp.asarray([0.0, -1.0])), expected, rtol=2e-3)


def test_dropout_without_an_activation_multiplies():
    assert behind(dropout).activation is None
    assert behind(dropout).multiplier == pytest.approx(KEEP**-0.5, rel=1e-3)


def test_deep_networks_with_dropout_keep_their_signal():
    depth, width = 20, 256
    keys = list(jax.random.split(KEY, depth))

    def apply_fn(p, x):
        for w, key in zip(p, keys, strict=True):
            x = dropout(jax.nn.relu(x @ w), key, 0.5)
        return x

    x = jax.random.normal(KEY, (64, width))
    params = jaxinit.initialize(KEY, [struct(width, width)] * depth, apply_fn, x)
    assert 0.4 < float(jnp.mean(apply_fn(params, x) ** 2)) < 2.5


# What only statistics consume


def two_pass(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-6)


def instance(x):
    y = x.reshape(2, 2, 8)
    return ((y - y.mean(1, keepdims=True)) / jnp.std(y, 1, keepdims=True)).reshape(4, 8)


def grouped(x):
    y = x.reshape(4, 2, 4)
    scale = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) - y.mean(-1, keepdims=True) ** 2 + 1e-6)
    spread = [jnp.repeat(s, 4, -1).reshape(4, 8) for s in (y.mean(-1, keepdims=True), scale)]
    return (x - spread[0]) * spread[1]


NORMS = {
    "var": lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6),
    "two passes": two_pass,
    "fast": lambda x: (
        (x - x.mean(-1, keepdims=True))
        * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 1e-6)
    ),
    "batch": lambda x: (x - x.mean(0)[None]) / jnp.sqrt(x.var(0)[None] + 1e-6),
    "batch, twice": lambda x: (
        (x - x.mean(0)[None]) * jax.lax.rsqrt(jnp.square(x - x.mean(0)[None]).mean(0) + 1e-6)[None]
    ),
    "rms": lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6),
    "rms, divided": lambda x: x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6),
    "norm": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "einsum": lambda x: x * jax.lax.rsqrt(jnp.einsum("bd,bd->b", x, x) / 8 + 1e-6)[:, None],
    "absolute": lambda x: x / jnp.abs(x).mean(-1, keepdims=True),
    "instance": instance,
    "group": grouped,
    "linen": lambda x: nn.LayerNorm().apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x),
    "linen, slow": lambda x: nn.LayerNorm(use_fast_variance=False).apply(
        {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x
    ),
    "nnx": lambda x: nnx.LayerNorm(8, rngs=nnx.Rngs(0))(x),
    "nnx, slow": lambda x: nnx.LayerNorm(8, use_fast_variance=False, rngs=nnx.Rngs(0))(x),
    "equinox": jax.vmap(eqx.nn.LayerNorm(8)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalization_is_no_activation_and_hides_none(name):
    def apply_fn(p, x):
        return jnp.tanh(NORMS[name](x @ p["a"]) * p["g"][None]) @ p["c"]

    params = {"a": jax.random.normal(KEY, (8, 8)), "c": jax.random.normal(RAW, (8, 8)), "g": jnp.ones(8)}
    assert trace_layers(params, apply_fn, X)[0].activation is None
    # What the rows say is read from the program alone.
    row = jax.eval_shape(lambda p: jaxinit.diagnose(p, apply_fn, X, lanczos_steps=0), params).rows[0]
    assert (row.activation, row.normalized) == ("tanh", True)


def test_what_is_pooled_is_an_activation():
    assert behind(lambda z: jnp.broadcast_to((z**2).mean(-1, keepdims=True), z.shape)).activation.name == "integer_pow"


# Rearrangements

MOVES = {
    "reshape": lambda z: z.reshape(2, 2, 8),
    "transpose": lambda z: z.T,
    "expand": lambda z: z[:, None],
    "squeeze": lambda z: z[:, None].squeeze(1),
    "slice": lambda z: z[:, :5],
    "strided": lambda z: z[:, ::2],
    "roll": lambda z: jnp.roll(z, 1, 1),
    "reverse": lambda z: z[:, ::-1],
    "pad": lambda z: jnp.pad(z, ((0, 0), (1, 2))),
    "edges": lambda z: jnp.pad(z, ((0, 0), (1, 2)), mode="edge"),
    "repeat": lambda z: jnp.repeat(z, 2, 1),
    "tile": lambda z: jnp.tile(z, (2, 2)),
    "index": lambda z: z[:, np.array([3, 1, 2])],
    "one": lambda z: z[1:2, 3],
    "pixel shuffle": lambda z: z.reshape(2, 2, 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(4, 4, 2),
    "beside": lambda z: jnp.concatenate([z, jnp.ones((4, 3))], 1),
    "twice": lambda z: jnp.concatenate([z, z], 1),
    "stack": lambda z: jnp.stack([z, z]),
    "split": lambda z: jnp.stack(jnp.split(z, 2, 1)[::-1]),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_activation_behind_a_rearrangement(name):
    layer = first(lambda p, x: jax.nn.relu(MOVES[name](x @ p["a"])).sum() * p["c"][0, 0])
    assert layer.activation.name == "relu"
    layer = first(lambda p, x: MOVES[name](jax.nn.silu(x @ p["a"])).sum() * p["c"][0, 0])
    assert layer.activation.name == "silu"


def test_the_activation_behind_a_concatenation_with_another_layer():
    def apply_fn(p, x):
        return jnp.tanh(jnp.concatenate([x @ p["a"], x @ p["c"]], 1)).sum()

    layers = trace_layers({"a": struct(8, 8), "c": struct(8, 8)}, apply_fn, X)
    assert [layer.activation.name for layer in layers] == ["tanh", "tanh"]

    def apart(p, x):
        left, right = jnp.split(jnp.concatenate([x @ p["a"], x @ p["c"]], 1), 2, 1)
        return jnp.tanh(left).sum() + jax.nn.relu(right).sum()

    layers = trace_layers({"a": struct(8, 8), "c": struct(8, 8)}, apart, X)
    assert [layer.activation.name for layer in layers] == ["tanh", "relu"]


@pytest.mark.parametrize(
    "function",
    [
        lambda z: jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)], 1),
        lambda z: jnp.concatenate([z, jnp.tanh(z)], 1),
        lambda z: jnp.concatenate([jax.nn.relu(z[:, :4]), jnp.tanh(z[:, 4:])], 1),
        lambda z: z * jnp.roll(z, 1, 1),
    ],
)
def test_what_goes_on_in_two_ways_has_no_one_activation(function):
    assert first(lambda p, x: function(x @ p["a"]).sum() * p["c"][0, 0]).activation is None


def convolution(x, kernel, bias=None):
    y = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return y if bias is None else y + bias[None, None]


def images_of_several_axes(x, k, b):
    return jax.nn.relu(
        convolution(x.reshape(-1, *x.shape[-2:]), k).reshape(*x.shape[:-1], k.shape[-1]) + b[None, None, None]
    )


def causal(x, k, b):
    padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
    y = jax.lax.conv_general_dilated(padded, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return jax.nn.relu(y[:, : x.shape[1]] + b[None, None])


CONVOLUTIONS = {
    "batched": (lambda x, k, b: jax.nn.relu(convolution(x, k, b)), (4, 16, 32)),
    "vmap": (jax.vmap(lambda x, k, b: jax.nn.relu(convolution(x[None], k, b)[0]), (0, None, None)), (4, 16, 32)),
    "vmap, bias outside": (
        lambda x, k, b: jax.nn.relu(jax.vmap(lambda x: convolution(x[None], k)[0])(x) + b[None, None]),
        (4, 16, 32),
    ),
    "unbatched": (lambda x, k, b: jax.nn.relu(convolution(x[None], k)[0] + b[None]), (16, 32)),
    "several axes": (images_of_several_axes, (2, 2, 16, 32)),
    "causal": (causal, (4, 16, 32)),
}


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_ten_convolutions_keep_their_signal(form):
    layer, shape = CONVOLUTIONS[form]

    def apply_fn(p, x):
        for k, b in p:
            x = layer(x, k, b)
        return x

    x = jax.random.normal(KEY, shape)
    params = [(struct(3, 32, 32), struct(32))] * 10
    layers = trace_layers(params, apply_fn, x)
    assert {x.activation and x.activation.name for x in layers} == {"relu"}
    assert all(layer.has_bias for layer in layers)


# Names


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z: jnp.maximum(z, 0.01 * z), "leaky_relu"),
        (lambda z: z * 0.5 * (1 + jax.lax.erf(z / math.sqrt(2))), "gelu"),
        (lambda z: 0.5 * z * jax.lax.erfc(-z * math.sqrt(0.5)), "gelu"),
        (lambda z: jax.nn.gelu(z, approximate=False), "gelu"),
        (lambda z: z * jax.scipy.stats.norm.cdf(z), "gelu"),
        (lambda z: 0.5 * z * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))), "gelu"),
        (lambda z: z * jax.nn.sigmoid(z), "silu"),
        (lambda z: z / (1 + jnp.exp(-z)), "silu"),
        (lambda z: z * 0.5 * (1 + jnp.tanh(z / 2)), "silu"),
        (lambda z: 1 / (1 + jnp.exp(-z)), "sigmoid"),
        (lambda z: jnp.log(1 + jnp.exp(z)), "softplus"),
        (lambda z: jnp.where(z > 0, z, 0), "relu"),
        (lambda z: z * (z > 0).astype(z.dtype), "relu"),
        (lambda z: jnp.where(z > 0, z, jnp.exp(z) - 1), "elu"),
    ],
)
def test_names_are_those_of_what_is_computed(function, name):
    assert behind(function).activation.name == name


@pytest.mark.parametrize(
    "function",
    [
        lambda z: jnp.clip(z, 0, 8),
        lambda z: jnp.minimum(jax.nn.relu(z), 200.0),
        lambda z: jnp.round(16 * z) / 16,
        lambda z: z + jnp.sin(2 * math.pi * 4 * z) / 30,
    ],
)
def test_what_only_looks_like_an_activation_has_not_its_name(function):
    found = behind(function).activation
    assert found.name not in ("relu", "linear", "relu6")
    assert "·" in found.name


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["gelu", "silu", "leaky_relu", "tanh", "elu"])
def test_names_in_low_precision(name, dtype):
    params = {k: jax.ShapeDtypeStruct((8, 8), dtype) for k in "ac"}
    layer = first(lambda p, x: getattr(jax.nn, name)(x @ p["a"]) @ p["c"], params, X.astype(dtype))
    assert layer.activation.name == name


@pytest.mark.parametrize(
    ("function", "multiplier"),
    [
        (lambda z: z + 0.5, 1.0),
        (lambda z: z * 32**0.5, 32**0.5),
        (lambda z: -z / 4, 0.25),
        (lambda z: z * jnp.sqrt(jnp.asarray(8)).astype(z.dtype), 8**0.5),
        (lambda z: z.astype(jnp.bfloat16).astype(jnp.float32), 1.0),
        (lambda z: 2 * (z - 1), 2.0),
    ],
)
def test_numbers_alone_are_no_activation(function, multiplier):
    layer = behind(function)
    assert layer.activation is None
    assert layer.multiplier == pytest.approx(multiplier)


def test_embeddings_times_a_number_have_no_activation():
    layer = first(lambda p, t: p["a"][t] * jnp.sqrt(8.0) @ p["c"], batch=jnp.zeros(4, int))
    assert layer.activation is None


def test_modules_have_gains_whether_or_not_they_have_hashes():
    module = eqx.nn.PReLU(jnp.array([0.1]))
    with pytest.raises(TypeError):
        hash(module)
    assert jaxinit.gain(module) ** 2 == pytest.approx(2 / 1.01, rel=1e-6)
    assert jaxinit.critical(module).weight_variance == pytest.approx(2 / 1.01, rel=1e-6)


# Slopes that are parameters

SLOPES = {
    "select": lambda z, s: jnp.where(z >= 0, z, s * z),
    "largest": lambda z, s: jnp.maximum(z, s * z),
    "sum": lambda z, s: jax.nn.relu(z) - s * jax.nn.relu(-z),
    "smallest": lambda z, s: jax.nn.relu(z) + s * jnp.minimum(z, 0),
}


@pytest.mark.parametrize("form", SLOPES)
@pytest.mark.parametrize(
    ("slope", "mean_square"),
    [(jnp.full((), 0.1), 0.01), (jnp.array([0.0, 1.0] * 4), 0.5), (struct(8), 0.0625), (struct(), 0.0625)],
)
def test_the_slope_of_a_parametric_relu_is_a_parameter(form, slope, mean_square):
    params = {"a": struct(8, 8), "c": struct(8, 8), "s": slope}
    layer = first(lambda p, x: SLOPES[form](x @ p["a"], p["s"][None] if slope.ndim else p["s"]) @ p["c"], params)
    assert layer.activation.name == "prelu"
    assert layer.activation.parameters == (2,)
    assert jaxinit.gain(layer.activation) ** 2 == pytest.approx(2 / (1 + mean_square), rel=1e-4)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z, s: jax.nn.relu(s * z), "relu"),
        (lambda z, s: s * jax.nn.relu(z), "relu"),
        (lambda z, s: jnp.tanh(s * jax.nn.relu(z)), "relu"),
        (lambda z, s: jnp.where(z > 0, s * z, 0), None),
        (lambda z, s: s * jnp.where(z > 0, z, s * z), "prelu"),
    ],
)
def test_a_parameter_that_multiplies_all_of_a_value_is_no_slope(function, name):
    layer = first(
        lambda p, x: function(x @ p["a"], p["s"][None]) @ p["c"], {"a": struct(8, 8), "c": struct(8, 8), "s": struct(8)}
    )
    assert (layer.activation and layer.activation.name) == name


# Other terms, and maps by channels, before the activation


def convolved(x, kernel):
    x = jnp.broadcast_to(x[:, None, None], (4, 5, 5, 8))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def recurrent(p, x):
    """The product with the input is computed for all steps at once, before the loop."""

    def step(h, z):
        h = jnp.tanh(z + h @ p["b"] + p["s"])
        return h, h

    return jax.lax.scan(step, jnp.zeros(8), x @ p["a"])[1] @ p["c"]


def normalized_apart(p, x):
    """Statistics of one of the terms, and the sum of both."""
    z = x @ p["a"]
    return jax.nn.relu(z - z.mean(0)[None] + x @ p["b"]) @ p["c"]


SUMS = {
    "two layers": (lambda p, x: jax.nn.relu(x @ p["a"] + (x**2) @ p["b"]) @ p["c"], ["relu", "relu", None]),
    "bias last": (
        lambda p, x: jnp.tanh(x @ p["a"] + jnp.sin(x) @ p["b"] + p["s"][None]) @ p["c"],
        ["tanh", "tanh", None],
    ),
    "difference": (lambda p, x: jnp.tanh((x**2) @ p["a"] - x @ p["b"]) @ p["c"], ["tanh", "tanh", None]),
    "convolution": (
        lambda p, x: jax.nn.silu(convolved(x, p["k"]) + (x @ p["a"] + p["s"][None])[:, None, None]) @ p["c"],
        ["silu", "silu", None],
    ),
    "data": (lambda p, x: jax.nn.gelu(x @ p["a"] + x) @ p["c"], [None, None]),
    "other data": (lambda p, x: jax.nn.gelu(x @ p["a"] + x[::-1] ** 2) @ p["c"], ["gelu", None]),
    "projected shortcut": (
        lambda p, x: jax.nn.relu(x @ p["a"] + jnp.tanh(x @ p["b"]) @ p["c"]),
        ["relu", "tanh", "relu"],
    ),
    "blocks": (lambda p, x: jax.nn.relu(x + jnp.tanh(x @ p["b"]) @ p["c"]), ["tanh", None]),
    "cell": (recurrent, ["tanh", "tanh", None]),
    "normalized apart": (normalized_apart, [None, "relu", None]),
    "log of shares": (lambda p, x: jax.nn.relu(jax.nn.log_softmax(x @ p["a"])) @ p["c"], [None, None]),
    "used beside": (lambda p, x: ((z := x @ p["a"]) + jax.nn.relu(z + x @ p["b"])) @ p["c"], [None, "relu", None]),
}


@pytest.mark.parametrize("form", SUMS)
def test_the_activation_of_layers_in_a_sum_is_what_follows_the_sum(form):
    apply_fn, names = SUMS[form]
    params = {"a": struct(8, 8), "b": struct(8, 8), "c": struct(8, 8), "s": struct(8), "k": struct(3, 3, 8, 8)}
    layers = trace_layers(params, apply_fn, X)
    assert [layer.activation and layer.activation.name for layer in layers] == names


def test_blocks_of_a_sum_of_fused_layers_go_on_as_different_functions():
    """A gated unit of two inputs, cut after the sum, is drawn as the same unit with matrices of their own."""

    def fused(p, x):
        i, f, g = jnp.split(x @ p["a"] + jnp.sin(x) @ p["b"], 3, axis=-1)
        return jax.nn.sigmoid(i) * jnp.tanh(f) + jax.nn.relu(g)

    params = {"a": struct(8, 24), "b": struct(8, 24)}
    assert [str(layer.activation) for layer in trace_layers(params, fused, X)] == ["None", "None"]
    _, report = jaxinit.initialize(KEY, params, fused, X, return_report=True)
    assert [row.path.split("[")[-1] for row in report.rows] == 2 * ["columns 0:8]", "columns 8:16]", "columns 16:24]"]
    assert all("one of 2 layers that are added" in row.reason for row in report.rows)


NODES = jnp.array([0, 0, 1, 2, 2, 2])
GRAPH = jax.random.normal(jax.random.key(5), (4, 6, 8))
LINKS = jnp.asarray(jax.random.bernoulli(jax.random.key(6), 0.5, (4, 6, 6)), jnp.float32)


def segments(z, kind=jax.ops.segment_sum):
    return jax.vmap(lambda z: kind(z, NODES, 3))(z)


def spectral(z):
    return jnp.fft.irfft(jnp.fft.rfft(z, axis=1) * jnp.arange(4.0).astype(complex)[None, :, None], 6, axis=1)


ROWS = {
    "adjacency": lambda z, links: links @ z,
    "attention": lambda z, links: jnp.einsum("bnm,bmhd->bnhd", jax.nn.softmax(links), z.reshape(4, 6, 2, 4)).reshape(
        z.shape
    ),
    "mean": lambda z, links: z.mean(1),
    "masked mean": lambda z, links: (z * links[:, 0, :, None]).sum(1) / (1 + links[:, 0, :, None].sum(1)),
    "sum": lambda z, links: z.sum(1),
    "largest": lambda z, links: z.max(1),
    "pooling": lambda z, links: jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 2, 1), "VALID"),
    "mean pooling": lambda z, links: jax.lax.reduce_window(z, 0.0, jax.lax.add, (1, 2, 1), (1, 2, 1), "VALID") / 2,
    "segments": lambda z, links: segments(z),
    "largest of segments": lambda z, links: segments(z, jax.ops.segment_max),
    "messages": lambda z, links: segments(z[:, NODES] * links[:, 0, :, None]),
    "spectral": lambda z, links: spectral(z),
    "put among zeros": lambda z, links: jnp.zeros((4, 9, 8)).at[:, 2:8].set(z),
    "few modes": lambda z, links: jnp.fft.irfft(
        jnp.zeros((4, 4, 8), complex).at[:, :3].set(jnp.fft.rfft(z, axis=1)[:, :3]), 6, axis=1
    ),
    "gates": lambda z, links: z * jax.nn.sigmoid(links[:, :, :1]),
}


@pytest.mark.parametrize("form", ROWS)
def test_the_activation_behind_sums_of_rows_is_what_follows_them(form):
    def apply_fn(p, batch):
        y = ROWS[form](batch[0] @ p["a"], batch[1])
        return jax.nn.relu(y + p["s"].reshape((1,) * (y.ndim - 1) + (8,))) @ p["c"]

    params = {"a": struct(8, 8), "c": struct(8, 8), "s": struct(8)}
    layers = trace_layers(params, apply_fn, (GRAPH, LINKS))
    assert [layer.activation and layer.activation.name for layer in layers] == ["relu", None]
    assert jaxinit.gain(layers[0].activation) == pytest.approx(2**0.5, rel=1e-5)
    assert layers[0].note is None


def test_sums_over_features_are_no_sums_of_rows():
    for mixed in (lambda z: z.sum(-1, keepdims=True), lambda z: jnp.cumsum(z, -1), lambda z: z @ GRAPH[0].T):
        assert (
            behind(lambda z, mixed=mixed: jax.nn.relu(jnp.broadcast_to(mixed(z)[..., :1], (4, 8)))).activation is None
        )


MEAN, VARIANCE = np.linspace(-1, 1, 8, dtype=np.float32), np.linspace(0.5, 2, 8, dtype=np.float32)
NORMALIZATIONS = {
    "divided": lambda z, p: (z - p["mean"][None]) / jnp.sqrt(p["variance"] + 1e-5)[None] * p["s"][None] + p["t"][None],
    "one factor": lambda z, p: (
        (z - p["mean"][None]) * (jax.lax.rsqrt(p["variance"] + 1e-5) * p["s"])[None] + p["t"][None]
    ),
    "folded": lambda z, p: (
        z * (r := jax.lax.rsqrt(p["variance"] + 1e-5) * p["s"])[None] + (p["t"] - p["mean"] * r)[None]
    ),
    "power": lambda z, p: (z - p["mean"][None]) * (p["variance"] + 1e-5)[None] ** -0.5 * p["s"][None] + p["t"][None],
    "einsum": lambda z, p: jnp.einsum("bc,c->bc", z - p["mean"][None], p["s"] / jnp.sqrt(p["variance"])) + p["t"][None],
}


@pytest.mark.parametrize("form", NORMALIZATIONS)
@pytest.mark.parametrize("statistics", ["parameters", "constants", "state"])
def test_the_activation_behind_running_statistics_is_what_follows_them(form, statistics):
    known = {"mean": MEAN, "variance": VARIANCE}
    params = {"a": struct(8, 8), "b": struct(8), "c": struct(8, 8), "s": struct(8), "t": struct(8)}
    batch = {"x": X}
    if statistics == "state":
        batch |= known

    def apply_fn(p, batch):
        found = {**(known if statistics == "constants" else batch), **p}
        return jax.nn.relu(NORMALIZATIONS[form](batch["x"] @ p["a"] + p["b"][None], found)) @ p["c"]

    layers = trace_layers(params | (known if statistics == "parameters" else {}), apply_fn, batch)
    assert [layer.activation and layer.activation.name for layer in layers] == ["relu", None]
    assert layers[0].has_bias
    # The layer's own output, bias included and statistics excluded, is what LSUV gives unit variance.
    keys = iter(jax.random.split(KEY, 8))
    params = {name: jax.random.normal(next(keys), leaf.shape) for name, leaf in params.items()}
    params |= {"b": 0.1 * params["b"]} | (known if statistics == "parameters" else {})
    new = jaxinit.lsuv(params, apply_fn, batch)
    assert jnp.std(X @ new["a"] + new["b"][None]) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
def test_the_parametric_relu_of_every_framework(framework):
    if framework == "linen":
        model = nn.Sequential([nn.Dense(8), nn.PReLU(), nn.Dense(8)])
        layer = trace_layers(model.init(KEY, X), model.apply, X)[0]
    elif framework == "nnx":
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.PReLU(0.01), nnx.Linear(8, 8, rngs=rngs))
        layer = jaxinit.nnx.trace_layers(model, X)[0]
    else:
        linear = eqx.nn.Linear(8, 8, key=KEY)
        slope = eqx.nn.PReLU(0.01)
        model = eqx.nn.Sequential([linear, eqx.nn.Lambda(lambda x: x), linear])
        model = eqx.tree_at(lambda m: m.layers[1].fn, model, slope)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        layer = trace_layers(params, lambda p, x: jax.vmap(eqx.combine(p, static))(x), X)[0]
    assert layer.activation.name == "prelu"
    assert jaxinit.gain(layer.activation) ** 2 == pytest.approx(2 / 1.0001, rel=1e-5)


# Fused gated units

HALVES = {
    "split": lambda z: jnp.split(z, 2, -1),
    "slices": lambda z: (z[..., :64], z[..., 64:]),
    "reshape": lambda z: (z.reshape(-1, 2, 64)[:, 0], z.reshape(-1, 2, 64)[:, 1]),
    "pairs": lambda z: (z.reshape(-1, 64, 2)[..., 0], z.reshape(-1, 64, 2)[..., 1]),
    "strides": lambda z: (z[..., ::2], z[..., 1::2]),
    "other way": lambda z: jnp.split(z, 2, -1)[::-1],
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", HALVES)
def test_the_halves_of_a_gated_unit_are_drawn_as_two_weights(form, bias):
    x = jax.random.normal(KEY, (4, 64))

    def product(p, x):
        return x @ p["w"] + p["b"][None] if bias else x @ p["w"]

    def apply_fn(p, x):
        gate, value = HALVES[form](product(p, x))
        return (jax.nn.silu(gate) * value) @ p["o"]

    normal_pairs = jax.random.normal(KEY, (2, 1_000_000))
    shapes = {"w": struct(64, 128), "b": struct(128), "o": struct(64, 64)}
    params = jaxinit.initialize(KEY, shapes if bias else {k: shapes[k] for k in "wo"}, apply_fn, x)
    gate, value = HALVES[form](jnp.eye(64) @ params["w"])
    # Two standard errors of a variance from 4096 numbers are 4.4%.
    own = float(jnp.mean(x**2))
    assert float(jnp.var(gate)) * 64 * own == pytest.approx(1.0, rel=0.1)
    assert float(jnp.var(value)) * 64 * own == pytest.approx(1.0, rel=0.1)
    met = jnp.mean((jax.nn.silu(normal_pairs[0]) * normal_pairs[1]) ** 2)
    assert float(jnp.var(params["o"])) * 64 * float(met) == pytest.approx(1.0, rel=0.1)
