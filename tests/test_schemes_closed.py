"""`schemes.closed`: initially the model does not depend on its branches, whatever ends them; training opens them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxinit
from jaxinit import schemes

KEY = jax.random.key(0)
WIDTH = 16


class Bottleneck(nn.Module):
    """A residual block that ends with a norm, and a ReLU behind the sum."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm(4)(nn.Conv(WIDTH, (3, 3), use_bias=False)(x)))
        y = nn.GroupNorm(4)(nn.Conv(WIDTH, (3, 3), use_bias=False)(y))
        return nn.relu(x + y)


class ConvNext(nn.Module):
    """A depthwise convolution, a norm, two layers, and a scale by channels."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(nn.Conv(WIDTH, (7, 7), feature_group_count=WIDTH)(x))
        y = nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(y)))
        return x + self.param("gamma", nn.initializers.constant(1e-6), (1, 1, 1, WIDTH)) * y


class DitBlock(nn.Module):
    """Attention and a feed-forward network, shifted, scaled and gated by a layer's output for the condition."""

    @nn.compact
    def __call__(self, x, c):
        modulation = nn.Dense(6 * WIDTH)(nn.silu(c))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
        y = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale1) + shift1
        x = x + gate1 * nn.MultiHeadDotProductAttention(4)(y)
        y = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale2) + shift2
        return x + gate2 * nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(y)))


class Transformer(nn.Module):
    """Pre-norm blocks without anything at the end of a branch but a layer, and dropout."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.Dropout(0.1, deterministic=True)(nn.MultiHeadDotProductAttention(4)(y))
        y = nn.LayerNorm()(x)
        return x + nn.Dense(WIDTH)(nn.silu(nn.Dense(4 * WIDTH)(y)) * nn.Dense(4 * WIDTH)(y))


def stack(block, count=3, readin=None):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *condition):
            x = readin(x) if readin else nn.Dense(WIDTH)(x)
            for _ in range(count):
                x = block()(x, *condition)
            return nn.Dense(5)(x)

    return Net()


IMAGES = jax.random.normal(KEY, (4, 8, 8, 3))
TOKENS = jax.random.normal(KEY, (4, 6, 3))
CONDITION = jax.random.normal(jax.random.key(1), (4, 10))
MODELS = {
    "resnet": (Bottleneck, (IMAGES,)),
    "convnext": (ConvNext, (IMAGES,)),
    "dit": (DitBlock, (TOKENS, CONDITION)),
    "transformer": (Transformer, (TOKENS,)),
}
ENDS = {
    "resnet": ["GroupNorm_1/bias", "GroupNorm_1/scale"],
    "convnext": ["gamma"],
    "dit": ["Dense_0/bias", "Dense_0/kernel"],
    "transformer": ["Dense_0/kernel", "MultiHeadDotProductAttention_0/out/kernel"],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_does_not_depend_on_its_branches_but_on_what_opens_them(name):
    """Only the leaf that ends a branch has a gradient, which opens the branch."""
    block, inputs = MODELS[name]
    model = stack(block)

    def apply_fn(params, inputs):
        return model.apply(params, *inputs)

    shapes = jax.eval_shape(model.init, KEY, *inputs)
    params, report = jaxinit.initialize(KEY, shapes, apply_fn, inputs, "closed", return_report=True)
    closing = {row.path for row in report.rows if row.reason.startswith("closes its branch")}

    def without_blocks(params, inputs):
        """Only the read-in and the readout; a ReLU after the sum stays."""
        x = inputs[0] @ params["params"]["Dense_0"]["kernel"]
        x = nn.relu(x) if name == "resnet" else x
        return x @ params["params"]["Dense_1"]["kernel"]

    out = apply_fn(params, inputs)
    np.testing.assert_allclose(out, without_blocks(params, inputs), rtol=1e-4, atol=1e-5)
    assert float(jnp.std(out)) > 0.1
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(apply_fn(p, inputs))))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if not path.split("/")[1].startswith("Dense"):
            short = path.removeprefix("params/").partition("/")[2]
            opens = short in ENDS[name] or short.removesuffix("bias") + "kernel" in ENDS[name]
            assert (float(jnp.abs(g).max()) > 1e-6) == opens, path
    assert {p.removeprefix("params/").partition("/")[2] for p in closing} >= {e for e in ENDS[name] if "bias" not in e}


def test_in_a_scan_a_number_closes_each_block():
    def step(x, p):
        return x + p["alpha"] * (jnp.tanh(x @ p["w"]) @ p["v"]), None

    def apply_fn(params, x):
        return lax.scan(step, x, params)[0]

    shapes = {"alpha": (6,), "w": (6, 8, 8), "v": (6, 8, 8)}
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.random.normal(KEY, (64, 8))
    params = jaxinit.initialize(KEY, shapes, apply_fn, x, schemes.closed())
    np.testing.assert_array_equal(params["alpha"], 0)
    # The others are those of a network without depth: each layer has unit variance.
    assert float(jnp.std(x @ params["w"][5])) == pytest.approx(1, rel=0.25)
    assert float(jnp.std(jnp.tanh(x @ params["w"][5]) @ params["v"][5])) == pytest.approx(1, rel=0.25)


def test_the_readout_is_zero_on_request():
    model = stack(Transformer, 1)
    shapes = jax.eval_shape(model.init, KEY, TOKENS)
    params = jaxinit.initialize(KEY, shapes, model.apply, TOKENS, schemes.closed(readout=True))
    np.testing.assert_array_equal(model.apply(params, TOKENS), 0)


def stuck(name):
    """Branches whose end, once it is zero, would stay so, blow up, or be missed elsewhere."""
    relu, square = jax.nn.relu, jnp.square

    def norm(x):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    return {
        "relu": lambda p, x: (x + relu(x @ p["w"])) @ p["v"],
        "relu as a choice": lambda p, x: (x + jnp.where(x @ p["w"] > 0, x @ p["w"], 0)) @ p["v"],
        "square": lambda p, x: (x + square(x @ p["w"])) @ p["v"],
        "root": lambda p, x: (x + jnp.sqrt(jnp.abs(x @ p["w"]))) @ p["v"],
        "norm without a gain": lambda p, x: (x + norm(relu(x @ p["u"]) @ p["w"])) @ p["v"],
        "tied": lambda p, x: (x + relu(x @ p["w"]) @ p["w"].T) @ p["v"],
        "shared scale": lambda p, x: ((p["s"][None] * x) + p["s"][None] * relu(x @ p["w"])) @ p["v"],
    }[name]


SQUARES = {"u": jnp.eye(4), "w": jnp.eye(4), "v": jnp.ones((4, 2)), "s": jnp.ones(4)}


@pytest.mark.parametrize(
    "name", ["relu", "relu as a choice", "square", "root", "norm without a gain", "tied", "shared scale"]
)
def test_nothing_is_closed_that_could_not_open_or_is_used_elsewhere(name):
    with pytest.raises(schemes.MisfitError, match="nothing at the end of the branch of"):
        jaxinit.initialize(KEY, SQUARES, stuck(name), jnp.ones((3, 4)), "closed")


def test_a_scale_that_is_not_trained_is_passed_over():
    """The layer before it is zero, and the scale stays."""

    def apply_fn(p, x):
        return (x + lax.stop_gradient(p["s"])[None] * (jnp.tanh(x @ p["u"]) @ p["w"])) @ p["v"]

    params = jaxinit.initialize(KEY, SQUARES, apply_fn, jnp.ones((3, 4)), "closed")
    np.testing.assert_array_equal(params["s"], 1)
    np.testing.assert_array_equal(params["w"], 0)


@pytest.mark.parametrize("end", ["gain before the statistic", "gain after the norm", "gelu", "scale of all branches"])
def test_what_can_open_is_closed(end):
    def norm(x, statistic):
        return x / jnp.sqrt((statistic**2).mean(-1, keepdims=True) + 1e-6)

    def apply_fn(p, x):
        for _ in range(2 if end == "scale of all branches" else 1):
            y = jnp.tanh(x @ p["u"]) @ p["w"]
            x = x + {
                "gain before the statistic": lambda y: norm(p["s"][None] * y, y),
                "gain after the norm": lambda y: p["s"][None] * norm(y, y),
                "gelu": jax.nn.gelu,
                "scale of all branches": lambda y: p["s"][None] * y,
            }[end](y)
        return x @ p["v"]

    x = jax.random.normal(KEY, (8, 4))
    params = jaxinit.initialize(KEY, SQUARES, apply_fn, x, "closed")
    np.testing.assert_allclose(apply_fn(params, x), x @ params["v"], rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(apply_fn(p, x))))(params)
    assert float(jnp.abs(gradient["w" if end == "gelu" else "s"]).max()) > 1e-3


def test_a_branch_that_cannot_be_closed_is_named():
    def apply_fn(params, x):
        return (x + jnp.cos(x @ params["w"])) @ params["v"]

    params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}
    with pytest.raises(schemes.MisfitError, match="nothing at the end of the branch of w"):
        jaxinit.initialize(KEY, params, apply_fn, jnp.ones((3, 4)), "closed")
    with pytest.raises(schemes.MisfitError, match="for residual networks"):
        jaxinit.initialize(KEY, params, lambda p, x: x @ p["w"] @ p["v"], jnp.ones((3, 4)), "closed")


@pytest.mark.slow
def test_a_hundred_blocks_train():
    """On a plain task, without normalization, at a rate at which He's weights produce NaN."""
    keys = jax.random.split(KEY, 3)
    x = jax.random.normal(keys[0], (256, 8))
    y = jnp.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]

    def apply_fn(params, x):
        x = x @ params["in"]
        x = lax.scan(lambda x, p: (x + jax.nn.relu(x @ p[0]) @ p[1], None), x, params["blocks"])[0]
        return (x @ params["out"])[:, 0]

    shapes = {"in": jnp.zeros((8, 32)), "blocks": (jnp.zeros((100, 32, 32)),) * 2, "out": jnp.zeros((32, 1))}

    def losses(start, **options):
        params = jaxinit.initialize(keys[1], shapes, apply_fn, x, start, **options)
        optimizer = optax.adam(1e-3)

        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(lambda p: jnp.mean((apply_fn(p, x) - y) ** 2))(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        with jax.numpy_dtype_promotion("standard"):  # for Optax
            return np.asarray(lax.scan(step, (params, optimizer.init(params)), None, 300)[1])

    found = losses("closed")
    assert found[-1] < 0.1 * float(jnp.var(y))
    he = losses("auto", overrides={"blocks/*": jaxinit.he_normal()})
    assert not he[-1] < found[0]  # or not a number
