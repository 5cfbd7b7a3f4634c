"""`auto` draws each slice of a stack with the variance for its own input: measured on data, slice by slice.

One variance for all slices fails every one of these bounds: after a ReLU, the first of four slices, which reads raw
inputs, would have outputs of 1.7 instead of 1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit

WIDTH = 192
SLICES = 3


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def normal(seed, *dims):
    return jax.random.normal(jax.random.key(seed), dims)


def scanned(weights, x, make=lambda w: w, **options):
    """The mean squares of the outputs of a loop that turns each slice into a kernel, in order of iteration."""
    found = loop(weights, x, make, **options)[1]
    return found[::-1] if options else found


def loop(weights, x, make=lambda w: w, **options):
    def step(x, w):
        y = x @ make(w)
        return nn.relu(y), jnp.mean(jnp.square(y.astype(jnp.float32)))

    return lax.scan(step, x, weights, **options)


def nested(weights, x):
    return lax.scan(lambda x, own: loop(own, x), x, weights)[1]


def members_in_a_loop(weights, x):
    def step(x, w):
        y = jax.vmap(jnp.matmul)(x, w)
        return nn.relu(y), jnp.mean(y**2, (1, 2))

    return lax.scan(step, jnp.broadcast_to(x, (2, *x.shape)), weights)[1]


def gated(weights, x):
    """Halves of one matrix, one of which gates the other."""

    def step(x, w):
        y = x @ w
        opened, value = jnp.split(y, 2, -1)
        return nn.sigmoid(opened) * value, jnp.mean(y**2)

    return lax.scan(step, x, weights)[1]


def normed(weights, x):
    return scanned(weights, x, lambda w: w["g"][None] * w["v"] / jnp.linalg.norm(w["v"], axis=0, keepdims=True))


def centred(weights, x):
    return scanned(weights, x, lambda w: w - jnp.mean(w, 0, keepdims=True))


def of_two_parts(weights, x):
    def step(x, w):
        y = x.astype(jnp.complex64) @ lax.complex(*w)
        return nn.relu(y.real), jnp.mean(jnp.abs(y) ** 2)

    return lax.scan(step, x, (weights["re"], weights["im"]))[1]


def spelled_out(weights, x):
    def step(x, w):
        y = (x[..., None] * w[None]).sum(-2)
        return nn.relu(y), jnp.mean(y**2)

    return lax.scan(step, x, weights)[1]


SQUARE = (SLICES, WIDTH, WIDTH)
FORMS = {
    "a loop": (shape(*SQUARE), scanned),
    "from the end": (shape(*SQUARE), lambda p, x: scanned(p, x, reverse=True)),
    "flipped": (shape(*SQUARE), lambda p, x: scanned(p[::-1], x)),
    "along the second axis": (shape(WIDTH, SLICES, WIDTH), lambda p, x: scanned(jnp.moveaxis(p, 1, 0), x)),
    "by a counter": (shape(*SQUARE), lambda p, x: _by_counter(p, x)),
    "recomputed": (shape(*SQUARE), lambda p, x: jax.checkpoint(scanned)(p, x)),
    "half precision": (shape(*SQUARE, dtype=jnp.bfloat16), scanned),
    "an ensemble": (shape(2, *SQUARE), lambda p, x: jax.vmap(scanned, (0, None))(p, x)),
    "an ensemble behind the stack": (shape(SLICES, 2, WIDTH, WIDTH), members_in_a_loop),
    "nested": (shape(2, 2, WIDTH, WIDTH), nested),
    "nested the other way": (shape(2, 2, WIDTH, WIDTH), lambda p, x: nested(jnp.swapaxes(p, 0, 1)[::-1], x)),
    "nested, one axis": (shape(4, WIDTH, WIDTH), lambda p, x: nested(p.reshape(2, 2, WIDTH, WIDTH), x)),
    "fused": (shape(SLICES, WIDTH, 2 * WIDTH), gated),
    "weight norm": ({"v": shape(*SQUARE), "g": shape(SLICES, WIDTH)}, normed),
    "centred": (shape(*SQUARE), centred),
    "symmetric": (shape(*SQUARE), lambda p, x: scanned(p, x, lambda w: w + w.T)),
    "real and imaginary parts": ({"re": shape(*SQUARE), "im": shape(*SQUARE)}, of_two_parts),
    "spelled out": (shape(SLICES, 96, 96), spelled_out),
}


def _by_counter(p, x):
    def step(i, carry):
        x, found = carry
        y = x @ p[i]
        return nn.relu(y), found.at[i].set(jnp.mean(y**2))

    return lax.fori_loop(0, SLICES, step, (x, jnp.zeros(SLICES)))[1]


@pytest.mark.parametrize("form", FORMS)
def test_each_slice_of_a_stack_gives_unit_variance(form):
    params, model = FORMS[form]
    width = 96 if form == "spelled out" else WIDTH
    x = 2 + 3 * normal(1, 128, width)
    x = x.astype(jax.tree.leaves(params)[0].dtype)
    found = [model(jaxinit.initialize(jax.random.key(i), params, model, x), x) for i in range(4)]
    # Units of a layer scatter by √(2/192) = .1 a draw, which stays for all that follow.
    np.testing.assert_allclose(np.mean(found, 0), 1, rtol=0.25, err_msg=form)


def test_a_stack_that_is_used_twice_is_right_in_the_end():
    """Its first slice reads raw inputs, and later a ReLU's outputs: at first too large by √2, which it corrects."""

    def model(p, x):
        x, first = loop(p, x)
        return jnp.concatenate([first, loop(p, x)[1]])

    x = normal(2, 128, WIDTH)
    found = [model(jaxinit.initialize(jax.random.key(i), shape(*SQUARE), model, x), x) for i in range(4)]
    np.testing.assert_allclose(np.mean(found, 0), [2**0.5] * SLICES + [1] * SLICES, rtol=0.25)


def test_turns_that_are_not_walked_through_are_like_the_last():
    """If there are many slices, only the first few are checked, in whatever order the leaf has them."""

    def model(p, x):
        return lax.scan(lambda x, w: (nn.relu(x @ w), None), x, p, reverse=True)[0]

    params, x = shape(80, 24, 24), shape(8, 24)
    drawn, report = jaxinit.initialize(jax.random.key(0), params, model, x, return_report=True)
    moments = 24 * np.mean(np.square(drawn), (1, 2))
    np.testing.assert_allclose([moments[-1], np.mean(moments[:-1])], [1, 2], rtol=0.2)
    (row,) = report.rows
    assert row.reason == "inputs of mean square 0.5 to 1 by slice"
    assert row.init.endswith("by slice")


def test_a_slice_that_takes_what_is_not_known_counts_as_one_and_the_report_says_so():
    def model(p, x):
        return lax.scan(lambda x, w: (jnp.sort(x @ w, -1), None), x, p)[0]

    drawn, report = jaxinit.initialize(
        jax.random.key(0), shape(3, 64, 64), model, 3 * normal(1, 64, 64), return_report=True
    )
    np.testing.assert_allclose(64 * np.mean(np.square(drawn), (1, 2)), [1 / 9, 1, 1], rtol=0.1)
    assert "unknown for 2 of 3 and taken as 1" in report.rows[0].reason


def test_slices_that_take_the_same_are_drawn_alike():
    def model(p, x):
        return lax.scan(lambda x, w: (nn.relu(x @ w), None), nn.relu(x @ p["in"]), p["stack"])[0]

    params = {"in": shape(8, 32), "stack": shape(4, 32, 32)}
    _, report = jaxinit.initialize(jax.random.key(0), params, model, shape(8, 8), return_report=True)
    assert {row.path: row.init for row in report.rows}["stack"].startswith("variance_scaling(scale=2.0")
    assert not any("slice" in f"{row.init}{row.reason}" for row in report.rows)


def test_stacks_are_drawn_the_same_under_jit_and_from_values():
    x = normal(3, 8, WIDTH)
    drawn = jaxinit.initialize(jax.random.key(0), shape(*SQUARE), scanned, x)
    again = jax.jit(lambda key, x: jaxinit.initialize(key, drawn, scanned, x))(jax.random.key(0), x)
    ratio = np.sqrt(np.mean(np.square(drawn), (1, 2)) / np.mean(np.square(again), (1, 2)))
    np.testing.assert_allclose(ratio[1:], 1, rtol=1e-3)
    np.testing.assert_allclose(ratio[0] ** 2 * np.mean(x**2), 1, rtol=1e-3)


def test_mup_of_a_stack_keeps_its_slices():
    def model(p, x):
        return scanned(p, x)

    base = jaxinit.schemes.mup(shape(SLICES, 64, 64))
    drawn = jaxinit.initialize(jax.random.key(0), shape(*SQUARE), model, shape(8, WIDTH), base)
    np.testing.assert_allclose(WIDTH * np.mean(np.square(drawn), (1, 2)), [1, 2, 2], rtol=0.1)
