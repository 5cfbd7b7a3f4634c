"""`auto` on values that a program splits, folds and joins: groups of features, halves along other axes, and stacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def normal(seed, *dims):
    return jax.random.normal(jax.random.key(seed), dims)


def group_norm(groups):
    return lambda x: nn.GroupNorm(groups, use_bias=False, use_scale=False).apply({}, x)


GROUPED = {
    "flax": group_norm,
    "two passes": lambda groups: lambda x: _grouped(x, groups, lambda h: jnp.mean(jnp.square(h), -1, keepdims=True)),
    "jnp.var": lambda groups: lambda x: _grouped(x, groups, lambda h: jnp.var(h, -1, keepdims=True)),
}


def _grouped(x, groups, variance):
    h = x.reshape(*x.shape[:-1], groups, -1)
    h = h - jnp.mean(h, -1, keepdims=True)
    return (h * lax.rsqrt(variance(h) + 1e-6)).reshape(x.shape)


@pytest.mark.parametrize("form", GROUPED)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_normalization_of_groups_of_few_numbers(form, size):
    def apply_fn(p, x):
        return nn.silu(GROUPED[form](36 // size)(x @ p["in"])) @ p["out"]

    params, x = {"in": shape(16, 36), "out": shape(36, 512)}, normal(3, 64, 16)
    outputs = [apply_fn(jaxinit.initialize(jax.random.key(i), params, apply_fn, x), x) for i in range(4)]
    # 36 numbers of one mean square each: what is left is that their squares vary less than those of the samples.
    assert float(np.mean(np.square(outputs))) == pytest.approx(1, rel=0.2)


def gated(opened, value):
    return nn.gelu(opened) * value


def halves(h):
    return jnp.split(h, 2, -1)


def folded(h, act=lambda h: h):
    """Both halves one after the other along the batch."""
    both = act(jnp.moveaxis(h.reshape(*h.shape[:-1], 2, -1), -2, 0).reshape(2 * h.shape[0], *h.shape[1:-1], -1))
    return both[: h.shape[0]], both[h.shape[0] :]


def folded_inside(h):
    both = jnp.moveaxis(h.reshape(*h.shape[:-1], 2, -1), -2, 1).reshape(2 * h.shape[0], *h.shape[1:-1], -1)
    return both[::2], both[1::2]


def of_unit_size(h):
    return h * lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True))


FOLDS = {
    "halves": lambda h: gated(*halves(h)),
    "along the batch": lambda h: gated(*folded(h)),
    "along the batch, inside": lambda h: gated(*folded_inside(h)),
    "along the batch, normalized": lambda h: gated(*folded(h, of_unit_size)),
    "concatenated": lambda h: gated(*jnp.split(jnp.concatenate(halves(h)), 2)),
    "of one half": lambda h: gated(*jnp.split(jnp.concatenate([halves(h)[0]] * 2), 2)),
    "of different halves": lambda h: jnp.multiply(*jnp.stack([halves(h)[0], nn.sigmoid(halves(h)[1])])),
    "picked from a stack": lambda h: gated(jnp.stack(halves(h), 1)[:, 1], jnp.stack(halves(h), 1)[:, 0]),
    "of a stack that was changed": lambda h: jnp.multiply(*jnp.tanh(jnp.stack(halves(h)))),
}


@pytest.mark.parametrize("form", FOLDS)
def test_halves_are_halves_wherever_they_lie(form):
    def apply_fn(p, x):
        return FOLDS[form](x @ p["in"]) @ p["out"]

    params, x = {"in": shape(64, 192), "out": shape(96, 128)}, normal(1, 8, 16, 64)
    outputs = [apply_fn(jaxinit.initialize(jax.random.key(i), params, apply_fn, x), x) for i in range(4)]
    assert float(np.mean(np.square(outputs))) == pytest.approx(1, rel=0.2)


def of_largest(count):
    return lambda p, x: lax.top_k(x @ p["in"], count)[0] @ p["out"]


def of_best_experts(count, normalized):
    """A mixture of the outputs of those experts that a router prefers."""

    def apply_fn(p, x):
        gates, chosen = lax.top_k(nn.softmax(x @ p["in"]), count)
        gates = gates / jnp.sum(gates, -1, keepdims=True) if normalized else gates
        outputs = nn.relu(jnp.einsum("bd,edf->bef", x, p["experts"]))
        picked = jnp.take_along_axis(outputs, chosen[..., None], 1)
        return jnp.einsum("bkf,bk->bf", picked, gates) @ p["out"]

    return apply_fn


LARGEST = {
    "the largest": (of_largest(1), {"in": shape(64, 24), "out": shape(1, 256)}),
    "some": (of_largest(8), {"in": shape(64, 24), "out": shape(8, 256)}),
    "few of many": (of_largest(3), {"in": shape(64, 64), "out": shape(3, 256)}),
    "the best expert": (of_best_experts(1, True), {"in": shape(64, 8), "experts": shape(8, 64, 96)}),
    "the best two": (of_best_experts(2, True), {"in": shape(64, 8), "experts": shape(8, 64, 96)}),
    "the best four": (of_best_experts(4, False), {"in": shape(64, 16), "experts": shape(16, 64, 96)}),
}


@pytest.mark.parametrize("form", LARGEST)
def test_the_largest_are_larger(form):
    apply_fn, params = LARGEST[form]
    params, x = {"out": shape(96, 256)} | params, normal(1, 256, 64)
    outputs = [apply_fn(jaxinit.initialize(jax.random.key(i), params, apply_fn, x), x) for i in range(6)]
    assert float(np.mean(np.square(outputs))) == pytest.approx(1, rel=0.2)
