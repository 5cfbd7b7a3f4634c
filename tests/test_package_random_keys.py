"""Programs that carry random keys, typed or raw, through loops and branches: every method reads them like any other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxinit
import jaxinit.linen
import jaxinit.nnx
from jaxinit import lsuv

X = jax.random.normal(jax.random.key(0), (32, 12))
STACK = jax.random.normal(jax.random.key(1), (3, 12, 12))
KEYS = {
    "typed": jax.random.split(jax.random.key(2), 3),
    "raw": jax.random.split(jax.random.PRNGKey(2), 3),
    "rbg": jax.random.split(jax.random.key(2, impl="rbg"), 3),
}


def dropped(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0)


def layer(x, w, key):
    return dropped(key, jnp.tanh(x @ w))


def walked(stack, keys, x):
    return lax.scan(lambda x, both: (layer(x, *both), None), x, (stack, keys))[0]


def captured(stack, keys, x):
    return lax.scan(lambda x, w: (layer(x, w, keys[0]), None), x, stack)[0]


def folded(stack, keys, x):
    def step(carry, w):
        x, count = carry
        return (layer(x, w, jax.random.fold_in(keys[0], count)), count + 1), None

    return lax.scan(step, (x, 0), stack)[0][0]


def carried(stack, keys, x):
    def step(carry, w):
        x, key = carry
        return (layer(x, w, key), jax.random.split(key)[0]), key

    (x, key), given = lax.scan(step, (x, keys[0]), stack)
    return dropped(given[1], dropped(key, x))


def unread(stack, keys, x):
    """The keys that come out of the loop are not used."""

    def step(carry, w):
        x, key = carry
        return (layer(x, w, keys[0]), jax.random.split(key)[0]), key

    return lax.scan(step, (x, keys[0]), stack)[0][0]


def picked(stack, keys, x):
    return lax.fori_loop(0, 3, lambda i, x: layer(x, stack[i], keys[i]), x)


def branching(stack, keys, x):
    def step(x, both):
        w, key = both
        take = jax.random.bernoulli(key, 0.99)
        x, key = lax.cond(take, lambda x: (layer(x, w, key), jax.random.split(key)[0]), lambda x: (x, key), x @ w)
        return dropped(key, x), None

    return lax.scan(step, x, (stack, keys))[0]


def recomputed(stack, keys, x):
    return lax.scan(jax.checkpoint(lambda x, both: (layer(x, *both), None)), x, (stack, keys))[0]


def made_inside(stack, keys, x):
    def step(x, both):
        w, numbers = both
        return layer(x, w, jax.random.wrap_key_data(numbers)) + dropped(jax.random.key(5), x), None

    numbers = jax.random.key_data(keys) if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys
    return lax.scan(step, x, (stack, numbers[:, :2]))[0]


PROGRAMS = [walked, captured, folded, carried, unread, picked, branching, recomputed, made_inside]


def given_as(where, program, keys):
    """(params, apply_fn, batch), the keys among the parameters, in the batch, or closed over."""
    if where == "leaf":
        return {"w": STACK, "keys": keys}, lambda p, x: program(p["w"], p["keys"], x), X
    if where == "batch":
        return {"w": STACK}, lambda p, batch: program(p["w"], batch[1], batch[0]), (X, keys)
    return {"w": STACK}, lambda p, x: program(p["w"], keys, x), X


@pytest.mark.parametrize("where", ["leaf", "batch", "closure"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_loop_that_takes_keys_is_read_measured_and_initialized(program, where):
    params, apply_fn, batch = given_as(where, program, KEYS["typed"])
    (row,) = jaxinit.trace_layers(params, apply_fn, batch)
    assert (row.path, row.stacked) == ("w", 3)
    report = jax.eval_shape(lambda p, x: lsuv(p, apply_fn, x, return_report=True)[1], params, batch)
    assert [scale.shape for scale in report.scale] == [(3,)]
    for method in ("scan", "auto"):
        jax.eval_shape(lambda p, x, m=method: lsuv(p, apply_fn, x, method=m, verify=True), params, batch)
    assert len(jax.eval_shape(lambda p, x: jaxinit.diagnose(p, apply_fn, x), params, batch).rows) == 3
    new = jaxinit.initialize(jax.random.key(0), params, apply_fn, batch)
    if where == "leaf":
        np.testing.assert_array_equal(*map(jax.random.key_data, (new["keys"], params["keys"])))


PLACES = [("leaf", "typed"), ("batch", "raw"), ("closure", "rbg")]


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        pytest.param(where, kind, marks=[] if (where, kind) in PLACES else pytest.mark.slow)
        for where in ("leaf", "batch", "closure")
        for kind in KEYS
    ],
)
def test_every_layer_of_a_stack_with_dropout_has_unit_variance(where, kind):
    keys = KEYS[kind]
    params, apply_fn, batch = given_as(where, walked, keys)
    new, report = lsuv(params, apply_fn, batch, return_report=True)
    assert report.problems() == {}
    x = X
    for w, key in zip(new["w"], keys, strict=True):
        assert float(jnp.std(x @ w)) == pytest.approx(1, abs=1e-3)
        x = layer(x, w, key)
    np.testing.assert_allclose(apply_fn(new, batch), x, atol=1e-5)
    seen = jaxinit.diagnose(new, apply_fn, batch)
    np.testing.assert_allclose(seen.pre_std, 1, atol=1e-3)
    assert bool(jnp.all(jnp.isfinite(seen.gradient_std)))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(12, 12, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.linear(x)))


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=(0,), out_axes=0))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


def test_a_scanned_nnx_stack_with_dropout():
    model = Stack(nnx.Rngs(0, dropout=1))
    (row,) = jaxinit.nnx.trace_layers(model, X)
    assert row.stacked == 3
    report = jaxinit.nnx.lsuv(model, X, return_report=True)
    assert report.problems() == {}
    np.testing.assert_allclose(report.after[0], 1, atol=1e-3)
    first = model.blocks.linear.kernel[...][0]
    assert float(jnp.std(X @ first)) == pytest.approx(1, abs=1e-3)
    assert len(jaxinit.nnx.diagnose(model, X).rows) == 3
    jaxinit.nnx.initialize(jax.random.key(0), model, X)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dropout(0.3, deterministic=False)(nn.relu(nn.Dense(12, name="dense")(x))), None


class LinenStack(nn.Module):
    split: bool

    @nn.compact
    def __call__(self, x):
        rngs = {"params": True, "dropout": self.split}
        block = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs=rngs, length=3)
        return block(name="blocks")(x, None)[0]


@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed", "raw"])
@pytest.mark.parametrize("split", [True, False])
def test_a_scanned_linen_stack_with_dropout(split, key):
    model, rngs = LinenStack(split), {"dropout": key}
    variables = model.init({"params": key, "dropout": key}, X)
    new, report = jaxinit.linen.lsuv(model, variables, X, rngs=rngs, return_report=True)
    assert report.problems() == {}
    assert float(jnp.std(X @ new["params"]["blocks"]["dense"]["kernel"][0])) == pytest.approx(1, abs=1e-3)
    rows = jax.eval_shape(lambda v: jaxinit.linen.diagnose(model, v, X, rngs=rngs), variables).rows
    assert len(rows) == 3
    jaxinit.linen.initialize(jax.random.key(0), model, variables, X, rngs=rngs)
