"""`auto` gives every pre-activation unit variance: measured on data, layer by layer, by running the program."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit

KEY = jax.random.key(3)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def normal(seed, *dims):
    return jax.random.normal(jax.random.key(seed), dims)


def mean_squares(params, model, x, seeds=1):
    """The mean squares of the values that a model records, over some draws of its weights."""

    def drawn(key):
        found = []

        def record(y):
            found.append(jnp.mean(jnp.abs(y) ** 2))
            return y

        model(jaxinit.initialize(key, params, lambda p, x: model(p, x, lambda y: y), x), x, record)
        return jnp.stack(found)

    return np.mean([drawn(jax.random.key(seed)) for seed in range(seeds)], 0)


def dense(activation):
    def model(p, x, record):
        for w in p[:-1]:
            x = activation(record(x @ w))
        return record(x @ p[-1])

    return model


@pytest.mark.parametrize(
    "activation", [nn.relu, nn.gelu, nn.silu, jnp.tanh, nn.sigmoid, jnp.sin], ids=lambda f: f.__name__
)
def test_eight_layers_have_pre_activations_of_unit_variance(activation):
    width = 512
    params = [shape(64, width)] + [shape(width, width)] * 6 + [shape(width, 256)]
    # The variance of a layer scatters by a few per cent a draw, and what scatters stays for all that follow.
    found = mean_squares(params, dense(activation), normal(1, 128, 64), seeds=4)
    np.testing.assert_allclose(found, 1, rtol=0.12)


def test_he_and_lecun_are_special_cases():
    params = {"a": shape(16, 32), "b": shape(32, 32), "c": shape(32, 4)}

    def apply_fn(p, x):
        return jnp.tanh(nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    _, report = jaxinit.initialize(KEY, params, apply_fn, shape(8, 16), return_report=True)
    scales = {row.path: float(row.init.split("scale=")[1].split(",")[0]) for row in report.rows}
    assert scales == pytest.approx({"a": 1.0, "b": 2.0, "c": float(jaxinit.gain("tanh")) ** 2}, rel=2e-3)


def conv(x, w, stride=1, padding="SAME"):
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


SPELLED_OUT = {
    "product and sum": ((64, 48), lambda w, x: (x[..., None] * w[None]).sum(-2)),
    "product and sum, a flat leaf": ((3072,), lambda w, x: (x[..., None] * w.reshape(1, 64, 48)).sum(-2)),
    "shifts": ((8, 64), lambda w, x: sum(jnp.roll(x, i, axis=0) * w[i][None] for i in range(8))),
    "shifts, a flat leaf": (
        (512,),
        lambda w, x: sum(jnp.roll(x, i, axis=0) * w.reshape(8, 1, 64)[i] for i in range(8)),
    ),
}


@pytest.mark.parametrize("form", SPELLED_OUT)
def test_layers_that_are_spelled_out_are_gaussian_too(form):
    size, product = SPELLED_OUT[form]

    def model(p, x, record):
        return record(nn.relu(record(jnp.sin(record(product(p[0], x))) @ p[1])) @ p[2])

    last = jax.eval_shape(product, shape(*size), shape(64, 64)).shape[1]
    found = mean_squares([shape(*size), shape(last, 256), shape(256, 64)], model, normal(1, 64, 64), seeds=4)
    np.testing.assert_allclose(found, 1, rtol=0.2)


POOLS = {
    "max": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "mean": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4,
    "max of blocks": lambda x: x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_convolutional_net_with_pooling(pool):
    params = [shape(3, 3, 3, 96), shape(3, 3, 96, 160), shape(3, 3, 160, 160), shape(160, 256)]

    def model(p, x, record):
        for w in p[:-1]:
            x = POOLS[pool](nn.relu(record(conv(x, w))))
        return record(x.mean((1, 2)) @ p[-1])

    found = mean_squares(params, model, normal(1, 8, 32, 32, 3), seeds=4)
    # The means of maps scatter most: all places of a map share the weights of its channel.
    np.testing.assert_allclose(found, 1, rtol=0.25)


def test_a_u_net():
    c = 48
    params = {"in": shape(3, 3, 3, c), "down": shape(3, 3, c, c), "low": shape(3, 3, c, c), "up": shape(3, 3, 2 * c, c)}
    params["out"] = shape(1, 1, c, 64)

    def model(p, x, record):
        high = nn.silu(record(conv(x, p["in"])))
        low = nn.silu(record(conv(high, p["down"], 2)))
        low = nn.silu(record(conv(low, p["low"])))
        back = jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)
        joined = nn.silu(record(conv(jnp.concatenate([back, high], -1), p["up"])))
        return record(conv(joined, p["out"]))

    np.testing.assert_allclose(mean_squares(params, model, normal(1, 8, 16, 16, 3), seeds=3), 1, rtol=0.12)


def rms_norm(x):
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_transformer_with_gated_units(causal):
    d, heads, blocks = 128, 4, 2
    block = {name: shape(d, d) for name in "qkvo"} | {"g": shape(d, 256), "u": shape(d, 256), "d": shape(256, d)}
    params = {"tokens": shape(500, d), "out": shape(d, 256), "blocks": [block] * blocks}

    def model(p, x, record):
        h = p["tokens"][x]
        for b in p["blocks"]:
            z = rms_norm(h)
            q, k, v = (record(z @ b[name]).reshape(*x.shape, heads, -1) for name in "qkv")
            scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
            if causal:
                scores = jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, None], scores, -1e9)
            mixed = jnp.einsum("bhts,bshd->bthd", nn.softmax(scores), v).reshape(h.shape)
            h = h + record(mixed @ b["o"])
            z = rms_norm(h)
            h = h + record((nn.silu(record(z @ b["g"])) * record(z @ b["u"])) @ b["d"])
        return record(rms_norm(h) @ p["out"])

    found = mean_squares(params, model, jax.random.randint(KEY, (8, 24), 0, 500), seeds=3)
    # The layers that end branches have the variance of one, all together.
    wanted = np.ones(blocks * 6 + 1 + blocks)
    wanted = np.array([1, 1, 1, 1 / 4, 1, 1, 1 / 4] * blocks + [1])
    np.testing.assert_allclose(found, wanted, rtol=0.25)
    np.testing.assert_allclose(found[wanted == 1], 1, rtol=0.12)


DROPPED = {
    "flax": lambda x, rng: nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": rng}),
    "where": lambda x, rng: jnp.where(jax.random.bernoulli(rng, 0.5, x.shape), 2 * x, 0.0),
    "product": lambda x, rng: x * jax.random.bernoulli(rng, 0.5, x.shape).astype(x.dtype) / 0.5,
}


@pytest.mark.parametrize("form", DROPPED)
def test_dropout_counts(form):
    params = [shape(128, 256), shape(256, 256), shape(256, 256)]

    def model(p, x, record):
        for i, w in enumerate(p):
            x = DROPPED[form](nn.relu(record(x @ w)), jax.random.key(i))
        return x

    np.testing.assert_allclose(mean_squares(params, model, normal(1, 256, 128), seeds=4), 1, rtol=0.12)


NORMS = {
    "weight norm": lambda p: p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0),
    "standardised": lambda p: p["g"] * (p["v"] - p["v"].mean(0)) / jnp.sqrt(p["v"].var(0) * p["v"].shape[0] + 1e-8),
    "centred": lambda p: p["v"] - p["v"].mean(0),
    "equalised": lambda p: p["v"] * 1e-3,
}


@pytest.mark.parametrize("form", NORMS)
def test_weights_that_the_program_makes(form):
    width = 256
    params = [
        {"v": shape(width, width)} | ({"g": shape(width)} if "g" in form[:9] or form == "standardised" else {})
    ] * 3
    with jax.numpy_rank_promotion("allow"):
        found = mean_squares(params, _made(form), normal(1, 256, width), seeds=4)
    np.testing.assert_allclose(found, 1, rtol=0.12)


def _made(form):
    def model(p, x, record):
        for own in p:
            x = nn.relu(record(x @ NORMS[form](own)))
        return x

    return model


def test_numbers_that_multiply_a_pre_activation_are_made_up_for():
    def model(p, x, record):
        for w in p[:-1]:
            x = jnp.sin(record(30 * (x @ w)))
        return record((x @ p[-1]) * 0.01)

    found = mean_squares([shape(64, 256), shape(256, 256), shape(256, 256)], model, normal(1, 128, 64), seeds=4)
    np.testing.assert_allclose(found, 1, rtol=0.12)


def test_layers_that_are_added_share_the_variance():
    params = {"x": shape(64, 256), "h": shape(64, 256), "out": shape(256, 256)}

    def model(p, x, record):
        return record(jnp.tanh(record(x[0] @ p["x"] + x[1] @ p["h"])) @ p["out"])

    x = (normal(1, 128, 64), 3 * normal(2, 128, 64))
    np.testing.assert_allclose(mean_squares(params, model, x, seeds=4), 1, rtol=0.12)


def test_what_comes_out_of_an_unknown_primitive_is_taken_as_one_and_said():
    params = {"a": shape(16, 16), "b": shape(16, 4)}

    def apply_fn(p, x):
        return jnp.sort(x @ p["a"], -1) @ p["b"]

    _, report = jaxinit.initialize(KEY, params, apply_fn, normal(0, 8, 16), return_report=True)
    reasons = {row.path: row.reason for row in report.rows}
    assert "unknown" in reasons["b"]
    assert "unknown" not in reasons["a"]


@pytest.mark.parametrize("keys", [1, 2, 40])
@pytest.mark.parametrize("hidden", [False, True])
def test_attention_to_few_keys_and_to_none(keys, hidden):
    params = {name: shape(64, 64) for name in "qkvo"}

    def model(p, x, record):
        scores = jnp.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"]) / 8
        scores = jnp.where(jnp.zeros((1, keys, keys), bool), scores, -jnp.inf) if hidden else scores
        return record(jnp.einsum("bts,bsd->btd", nn.softmax(scores), x @ p["v"]) @ p["o"])

    if hidden:  # softmax of nothing is undefined, and all that is asked for is that weights are numbers
        new = jaxinit.initialize(KEY, params, lambda p, x: model(p, x, lambda y: y), normal(1, 64, keys, 64))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(new))
    else:
        np.testing.assert_allclose(mean_squares(params, model, normal(1, 64, keys, 64), seeds=4), 1, rtol=0.2)


@pytest.mark.parametrize("constant", [0.0, 1.0, 7.0])
def test_a_batch_of_one_number_counts_as_shapes(constant):
    params = {"a": shape(16, 16), "b": shape(16, 4)}

    def apply_fn(p, x):
        return nn.relu(x @ p["a"]) @ p["b"]

    given = jaxinit.initialize(KEY, params, apply_fn, jnp.full((8, 16), constant))
    chex.assert_trees_all_equal(given, jaxinit.initialize(KEY, params, apply_fn, shape(8, 16)))


def test_the_second_moment_of_the_batch_counts():
    x = 100 + normal(0, 64, 16)
    w = jaxinit.initialize(KEY, shape(16, 512), lambda w, x: nn.relu(x @ w), x)
    np.testing.assert_allclose(jnp.mean(w**2) * 16 * jnp.mean(x**2), 1, rtol=0.06)


@pytest.mark.parametrize("spoil", [lambda h: h / 0.0, lambda h: jnp.exp(1000 * h**2), lambda h: jnp.log(h)])
def test_values_that_overflow_or_are_undefined_count_as_unknown(spoil):
    params = {"a": shape(16, 16), "b": shape(16, 16), "c": shape(16, 4)}

    def apply_fn(p, x):
        h = spoil(x @ p["a"])
        return nn.relu((h - jnp.mean(h, -1, keepdims=True)) @ p["b"]) @ p["c"]

    new, report = jaxinit.initialize(KEY, params, apply_fn, shape(8, 16), return_report=True)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(new))
    assert "unknown" in {row.path: row.reason for row in report.rows}["b"]


def mean_of_squares(x, axis=-1):
    """The variance as Flax's normalizations compute it."""
    return jnp.mean(jnp.square(x), axis, keepdims=True) - jnp.square(jnp.mean(x, axis, keepdims=True))


def by_products(x, axis=-1):
    count = x.shape[axis]
    return jnp.maximum(0.0, jnp.sum(x * x, axis) * (1 / count) - (jnp.sum(x, axis) / count) ** 2)[..., None]


@pytest.mark.parametrize("variance", [mean_of_squares, by_products])
@pytest.mark.parametrize("features", [4, 8, 16])
def test_a_normalization_of_few_features_gives_unit_mean_square(variance, features):
    def apply_fn(p, x):
        x = x @ p["in"]
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * lax.rsqrt(variance(x + 0.5) + 1e-6) @ p["out"]

    params = {"in": shape(6, features), "out": shape(features, 4096)}
    for batch in (normal(2, 3, 24, 6), shape(3, 24, 6)):
        drawn = jaxinit.initialize(KEY, params, apply_fn, batch)["out"]
        # 16,384 numbers or more: their variance is known to 2% at most of draws.
        assert features * float(jnp.var(drawn)) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm, lambda: nn.BatchNorm(use_running_average=False)], ids=["layer", "batch"]
)
def test_normalizations_of_flax_over_few_numbers(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4096, name="out")(norm()(nn.Dense(8)(x)))

    x = normal(4, 6, 5)
    params = Net().init(KEY, x)
    drawn = jaxinit.initialize(KEY, params, lambda p, x: Net().apply(p, x, mutable=["batch_stats"])[0], x)
    assert 8 * float(jnp.var(drawn["params"]["out"]["kernel"])) == pytest.approx(1, rel=0.15)


def test_a_step_size_that_is_kept_makes_what_a_layer_gives_smaller():
    def states(p, x):
        step = jnp.exp(p["log_step"])
        driven = x @ (p["b"] * step[None])
        return lax.scan(lambda h, u: (jnp.exp(-step)[None] * h + u,) * 2, jnp.zeros_like(driven[0]), driven)[1]

    params = {"b": jnp.ones((64, 256)), "c": jnp.ones((256, 256)), "log_step": jnp.full(256, -1.0)}
    x = normal(5, 40, 16, 64)
    drawn = jaxinit.initialize(KEY, params, lambda p, x: states(p, x) @ p["c"], x)
    np.testing.assert_array_equal(drawn["log_step"], params["log_step"])
    output = states(drawn, x) @ drawn["c"]
    assert float(jnp.mean(output[8:] ** 2)) == pytest.approx(1, rel=0.25)


def test_what_leaves_a_stack_behind_an_activation_has_unit_variance():
    """Only the first of its slices reads the output of an activation."""

    def apply_fn(p, x):
        x = jax.nn.relu(x @ p["in"])
        return lax.scan(lambda x, w: (x @ w, None), x, p["stack"])[0]

    params, x = {"in": shape(64, 256), "stack": shape(3, 256, 256)}, normal(6, 128, 64)
    outputs = [apply_fn(jaxinit.initialize(jax.random.key(i), params, apply_fn, x), x) for i in range(4)]
    assert float(np.mean([jnp.mean(y**2) for y in outputs])) == pytest.approx(1, rel=0.15)


PICKED = {
    "a lookup": lambda w, chosen: 0.5 * w[chosen],
    "before the lookup": lambda w, chosen: (0.5 * w)[chosen],
    "divided, and negative": lambda w, chosen: -jnp.swapaxes(jnp.swapaxes(w, 1, 2)[chosen], 1, 2) / 2,
    "unit by unit": lambda w, chosen: w[chosen] * jnp.linspace(0.1, 2, 256)[None, None],
    "a product": lambda w, chosen: 0.5 * jnp.einsum("be,edf->bdf", jax.nn.one_hot(chosen, 3), w),
}


@pytest.mark.parametrize("form", PICKED)
def test_numbers_count_that_multiply_weights_which_data_picks(form):
    def model(p, x, record):
        chosen = jnp.argmax(x @ p["router"], -1)
        x = nn.relu(record(jnp.einsum("bd,bdf->bf", x, PICKED[form](p["experts"], chosen))))
        return record(x @ p["out"])

    params = {"router": shape(128, 3), "experts": shape(3, 128, 256), "out": shape(256, 256)}
    np.testing.assert_allclose(mean_squares(params, model, normal(1, 32, 128), seeds=4), 1, rtol=0.15)
