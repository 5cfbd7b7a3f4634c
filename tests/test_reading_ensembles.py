"""Stacks of weights that meet the same data: each member is a separate weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def members(q, x):
    return jax.nn.relu(x @ q["w"]) @ q["v"]


def convolved(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# Shapes of the weights, the program, the fan-ins and the fan-outs of each.
STACKS = {
    "vmap": ({"w": (8, 16, 64), "v": (8, 64, 4)}, lambda p, x: jax.vmap(members, (0, None))(p, x), (16, 64), (64, 4)),
    "vmap of a transposed": (
        {"w": (8, 64, 16), "v": (8, 4, 64)},
        lambda p, x: jax.vmap(lambda q: jax.nn.relu(x @ q["w"].T) @ q["v"].T)(p),
        (16, 64),
        (64, 4),
    ),
    "einsum": (
        {"w": (8, 16, 64), "v": (8, 64, 4)},
        lambda p, x: jnp.einsum("etf,efd->etd", jax.nn.relu(jnp.einsum("td,edf->etf", x, p["w"])), p["v"]),
        (16, 64),
        (64, 4),
    ),
    "einsum, experts inside": (
        {"w": (8, 16, 64), "v": (8, 64, 4)},
        lambda p, x: jnp.einsum("tef,efd->ted", jax.nn.relu(jnp.einsum("td,edf->tef", x, p["w"])), p["v"]),
        (16, 64),
        (64, 4),
    ),
    "einsum, outputs first": (
        {"w": (8, 64, 16), "v": (8, 4, 64)},
        lambda p, x: jnp.einsum("etf,edf->etd", jax.nn.relu(jnp.einsum("td,efd->etf", x, p["w"])), p["v"]),
        (16, 64),
        (64, 4),
    ),
}


@pytest.mark.parametrize("form", STACKS)
def test_members_of_a_stack_have_fans_of_their_own(form):
    shapes, apply_fn, fan_in, fan_out = STACKS[form]
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    layers = jaxinit.trace_layers(params, apply_fn, normal(9, 32, 16))
    assert (layers["w"].fan_in, layers["v"].fan_in) == fan_in
    assert (layers["w"].fan_out, layers["v"].fan_out) == fan_out
    assert [layer.view[a] for layer in layers for a in layer.batch_axes] == [8, 8]


@pytest.mark.parametrize("form", STACKS)
def test_lsuv_makes_members_orthonormal_and_scales_each(form):
    shapes, apply_fn, *_ = STACKS[form]
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    params["w"] = params["w"] * jnp.arange(1.0, 9.0)[:, None, None]
    x = normal(9, 256, 16) * jnp.linspace(0.5, 2, 16)[None]
    new = jaxinit.lsuv(params, apply_fn, x)
    kernels = new["w"] if shapes["w"][1] == 16 else jnp.swapaxes(new["w"], 1, 2)
    for kernel in kernels:
        gram = kernel @ kernel.T
        np.testing.assert_allclose(gram / gram[0, 0], np.eye(16), atol=1e-4)
        np.testing.assert_allclose(jnp.std(x @ kernel), 1, rtol=1e-3)


ALONE = {
    "transposed": ((5, 12, 16), lambda w, x: jax.vmap(lambda w: x @ w.T)(w)),
    "einsum": ((5, 12, 16), lambda w, x: jnp.einsum("bi,eoi->ebo", x, w)),
    "moved": ((5, 12, 16), lambda w, x: jnp.moveaxis(jnp.einsum("bi,eoi->beo", x, w), 1, 0)),
    "sequences": ((5, 12, 16), lambda w, x: jax.vmap(lambda w: x.reshape(8, 4, 16) @ w.T)(w)),
    "convolution": (
        (5, 12, 16, 3, 3),
        lambda w, x: jax.vmap(lambda w: jax.lax.conv(jnp.tile(x[..., None, None], (1, 1, 6, 6)), w, (1, 1), "SAME"))(w),
    ),
}


@pytest.mark.parametrize("form", ALONE)
def test_a_stack_alone_is_told_by_its_place_before_the_samples(form):
    """Each member is drawn, and gets unit variance, by itself."""
    shape, function = ALONE[form]
    x, taps = normal(9, 32, 16), int(np.prod(shape[3:]))
    sizes = jnp.array([0.1, 1.0, 2.0, 3.0, 10.0]).reshape(5, *[1] * (len(shape) - 1))
    params = {"w": normal(0, *shape) * sizes}
    (layer,) = jaxinit.trace_layers(params, lambda p, x: function(p["w"], x), x)
    assert (layer.fan_in, layer.fan_out) == (16 * taps, 12 * taps)
    assert [layer.view[a] for a in layer.batch_axes] == [5]
    new = jaxinit.lsuv(params, lambda p, x: function(p["w"], x), x, orthonormalize=False)
    outputs = function(new["w"], x)
    np.testing.assert_allclose(jnp.std(outputs.reshape(5, -1), axis=1), 1, rtol=1e-3)


RESHAPED = {
    "flat": ((960,), (5, 16, 12), lambda w, x: jax.vmap(lambda w: x @ w, out_axes=1)(w), 12),
    "flat, outputs first": ((960,), (5, 12, 16), lambda w, x: jnp.einsum("td,efd->etf", x, w), 12),
    "members and inputs in one axis": ((80, 12), (5, 16, 12), lambda w, x: jax.vmap(lambda w: x @ w)(w), 12),
    "axes reversed": ((12, 16, 5), (5, 16, 12), lambda w, x: jax.vmap(lambda w: x @ w)(w), 12),
    "heads, outputs in one axis": ((60, 16), (5, 12, 16), lambda w, x: jnp.einsum("td,hkd->thk", x, w), 60),
    "heads, flat": ((960,), (16, 5, 12), lambda w, x: jnp.einsum("td,dhk->thk", x, w), 60),
}
"""The shape of a leaf, its reshaped one, what is made of it, and the fan-out."""


@pytest.mark.parametrize("form", RESHAPED)
def test_a_reshaped_leaf_has_its_stack_where_the_reshape_puts_it(form):
    shape, made, function, fan_out = RESHAPED[form]
    change = jnp.transpose if shape == made[::-1] else lambda w: w.reshape(made)
    (layer,) = jaxinit.trace_layers(normal(0, *shape), lambda w, x: jnp.tanh(function(change(w), x)), normal(9, 32, 16))
    assert (layer.fan_in, layer.fan_out) == (16, fan_out)
    assert [layer.view[a] for a in layer.batch_axes] == ([5] if fan_out == 12 else [])


def test_a_stack_under_a_shared_input_of_one_layer_is_a_stack():
    (layer,) = jaxinit.trace_layers(
        normal(0, 8, 16, 64), lambda w, x: jnp.tanh(jnp.einsum("td,edf->etf", x, w)), normal(1, 32, 16)
    )
    assert (layer.fan_in, layer.fan_out) == (16, 64)
    new = jaxinit.initialize(
        jax.random.key(0),
        normal(0, 8, 16, 64),
        lambda w, x: jax.vmap(lambda w: x @ w)(w),
        normal(1, 32, 16),
        "orthogonal_critical",
    )
    for kernel in new:
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(16), atol=1e-4)


def test_convolutions_under_vmap_are_members():
    params = {"w": normal(0, 3, 3, 3, 4, 4), "v": normal(1, 3, 3, 3, 4, 4)}
    x = normal(2, 16, 4, 4, 4)

    def apply_fn(p, x):
        return jax.vmap(lambda w, v: convolved(jax.nn.relu(convolved(x, w)), v))(p["w"], p["v"])

    layers = jaxinit.trace_layers(params, apply_fn, x)
    assert [(layer.fan_in, layer.fan_out) for layer in layers] == [(36, 36), (36, 36)]
    new = jaxinit.lsuv(params, apply_fn, x)
    for i in range(3):
        y = convolved(x, new["w"][i])
        np.testing.assert_allclose(jnp.std(y), 1, rtol=1e-3)
        np.testing.assert_allclose(jnp.std(convolved(jax.nn.relu(y), new["v"][i])), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "equation"),
    [((16, 2, 4), "btd,dhk->bthk"), ((16, 4, 2), "btd,dkh->bthk"), ((2, 4, 16), "btd,hkd->bthk")],
)
def test_heads_are_no_ensemble(shape, equation):
    x = normal(1, 8, 6, 16)
    (layer,) = jaxinit.trace_layers(normal(0, *shape), lambda w, x: jnp.tanh(jnp.einsum(equation, x, w)), x)
    assert (layer.fan_in, layer.fan_out) == (16, 8)
