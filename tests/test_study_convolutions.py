"""In the loop of a study on a CPU, Eigen computes convolutions, with the same numbers as the originals."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.studies import KEY
from jax import lax

import jaxinit
from jaxinit._study._convolutions import with_fast_convolutions
from jaxinit._study._train import ORDER, START, own_key

X = jax.random.normal(KEY, (5, 7, 6, 4))


def normal(*shape):
    return jax.random.normal(jax.random.key(len(shape)), shape)


def conv(x, w, strides=(1, 1), padding="SAME", layout=("NHWC", "HWIO", "NHWC"), **options):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)


KINDS = {
    "channels last": (conv, X, normal(3, 3, 4, 6)),
    "strides": (functools.partial(conv, strides=(2, 3)), X, normal(3, 2, 4, 6)),
    "channels first": (functools.partial(conv, layout=("NCHW", "OIHW", "NCHW")), X, normal(6, 7, 3, 3)),
    "another order of the result": (functools.partial(conv, layout=("HWNC", "OHWI", "CHNW")), X, normal(6, 3, 3, 4)),
    "dilated": (
        functools.partial(conv, padding=((1, 2), (0, 1)), rhs_dilation=(2, 1), lhs_dilation=(1, 2)),
        X,
        normal(3, 3, 4, 6),
    ),
    "groups": (functools.partial(conv, feature_group_count=2), X, normal(3, 3, 2, 6)),
    "depthwise": (functools.partial(conv, feature_group_count=4), X, normal(3, 3, 1, 4)),
    "one dimension": (
        functools.partial(conv, strides=(1,), layout=("NWC", "WIO", "NWC")),
        normal(5, 7, 4),
        normal(3, 4, 6),
    ),
    "three dimensions": (
        functools.partial(conv, strides=(1, 1, 1), layout=("NCDHW", "OIDHW", "NCDHW")),
        normal(2, 3, 4, 5, 4),
        normal(3, 3, 2, 2, 2),
    ),
    "no space": (
        functools.partial(conv, strides=(), layout=("NC", "IO", "NC"), padding=()),
        normal(5, 4),
        normal(4, 6),
    ),
}


def in_scan(f):
    return lambda x, w: lax.scan(lambda c, _: (c + f(x, w).mean(), None), jnp.float32(0), None, length=2)[0]


def in_branch(f):
    return lambda x, w: lax.cond(w.sum() > -1e9, f, lambda x, w: 2 * f(x, w), x, w)


SURROUNDINGS = {
    "alone": lambda f: f,
    "in a scan": in_scan,
    "in a branch": in_branch,
    "in a branch in a scan": lambda f: in_scan(in_branch(f)),
    "recomputed": jax.checkpoint,
    "jitted, before an activation": lambda f: lambda x, w: jax.nn.relu(jax.jit(f)(x, w)),
}


def gradient_of(f):
    return jax.value_and_grad(lambda x, w: jnp.sin(f(x, w)).sum(), argnums=(0, 1))


def assert_same(function, *arguments):
    wanted, found = jax.jit(function)(*arguments), jax.jit(with_fast_convolutions(function))(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_and_its_gradients_are_what_they_were(kind):
    f, x, w = KINDS[kind]
    assert_same(gradient_of(f), x, w)


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_so_they_are_within_loops_branches_and_calls(surroundings):
    f, x, w = KINDS["channels first"]
    assert_same(gradient_of(SURROUNDINGS[surroundings](f)), x, w)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 2)])
def test_mapped_twice_they_are_what_they_were(axes):
    kernels = normal(3, 3, 3, 4, 6)[:, None] * jnp.arange(1.0, 3)[None, :, None, None, None, None]
    xs = normal(3, 5, 7, 6, 4)[:, None] * jnp.arange(1.0, 3)[None, :, None, None, None, None]
    x, w = (
        one if a is None else jnp.moveaxis(many, 1, a + 1)
        for one, many, a in zip((X, kernels[0, 0]), (xs, kernels), axes, strict=True)
    )
    outer = tuple(None if a is None else 0 for a in axes)
    gradient = gradient_of(conv)

    def mapped(function):
        return jax.vmap(jax.vmap(function, axes), outer)

    wanted, found = jax.jit(mapped(gradient))(x, w), jax.jit(mapped(with_fast_convolutions(gradient)))(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


PARAMS = {"a": jnp.zeros((6, 3, 3, 3)), "b": jnp.zeros((6, 6, 3, 3)), "c": jnp.zeros((6, 2))}
IMAGES = (normal(40, 3, 6, 6), jnp.arange(40) % 2)


def loss_fn(params, batch):
    x = batch[0]
    for name in "ab":
        x = jax.nn.relu(conv(x, params[name], layout=("NCHW", "OIHW", "NCHW")))
    return optax.softmax_cross_entropy_with_integer_labels(x.mean((2, 3)) @ params["c"], batch[1]).mean()


def start(key):
    return {
        name: jax.random.normal(k, x.shape) / 4
        for (name, x), k in zip(PARAMS.items(), jax.random.split(key, 3), strict=True)
    }


def test_a_study_trains_a_network_of_convolutions_as_a_loop_does():
    result = jaxinit.study(
        {"mine": start}, PARAMS, loss_fn, IMAGES, optimizer=optax.sgd, learning_rates=[0.1, 0.2], steps=3, seeds=3,
        batch_size=20, devices=jax.devices()[:1], progress=False,
    )  # fmt: skip
    key = jax.random.key(0)
    step = jax.jit(jax.value_and_grad(loss_fn))
    params, losses = start(own_key(key, 2, START)), []
    for i in range(3):
        rows = jax.random.permutation(jax.random.fold_in(own_key(key, 2, ORDER), i // 2), 40)
        loss, gradients = step(params, jax.tree.map(lambda x, at=rows[i % 2 * 20 :][:20]: x[at], IMAGES))
        params = jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients)
        losses.append(loss)
    np.testing.assert_allclose(result.losses[0, 1, 2], losses, rtol=1e-4)


def convolutions(function):
    """The orders of dimensions, and the groups, of all convolutions of a compiled loop over a function."""
    looped = jax.jit(lambda p: lax.scan(lambda p, _: (function(p, IMAGES), None), p, None, length=3)[0])
    lines = looped.lower(jax.tree.map(lambda x: jnp.stack([x] * 2), PARAMS)).compile().as_text().splitlines()
    found = [line for line in lines if " convolution(" in line]
    return {re.search(r"dim_labels=(\S+?),", line).group(1) for line in found}, any("_group_count" in x for x in found)


def test_in_a_loop_all_convolutions_have_the_order_that_eigen_takes():
    gradient = jax.grad(loss_fn)
    orders, groups = convolutions(jax.vmap(with_fast_convolutions(gradient), (0, None)))
    assert orders == {"b01f_01io->b01f"}
    assert not groups
    orders, groups = convolutions(jax.vmap(gradient, (0, None)))
    assert len(orders) > 1
    assert groups
