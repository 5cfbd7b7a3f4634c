"""Stacks whose slices are mixed, each by itself, in the body of a loop: every slice still is a separate weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(9, 256, 8)


def symmetric(w):
    return w + w.T


def circulant(w):
    return w[np.subtract.outer(np.arange(8), np.arange(8)) % 8]


def along(make):
    return lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ make(w)), None), x, w)[0]


def along_both(make):
    """One loop in another, along both axes of a stack of stacks."""

    def outer(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ make(w)), None), x, w)[0], None

    return lambda w, x: lax.scan(outer, x, w.reshape(2, 2, *w.shape[1:]))[0]


LOOPS = {
    "scan": (along(symmetric), symmetric, (4, 8, 8)),
    "gathered": (along(circulant), circulant, (4, 8)),
    "a scan in a scan": (along_both(symmetric), symmetric, (4, 8, 8)),
    "fori": (
        lambda w, x: lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ circulant(w[i])), x),
        circulant,
        (4, 8),
    ),
    "jit and checkpoint": (along(jax.checkpoint(jax.jit(symmetric))), symmetric, (4, 8, 8)),
}


@pytest.mark.parametrize("form", LOOPS)
def test_every_slice_has_its_scale(form):
    apply_fn, make, shape = LOOPS[form]
    w = normal(0, *shape) * jnp.array([0.1, 1.0, 3.0, 10.0]).reshape(4, *[1] * (len(shape) - 1))
    (layer,) = jaxinit.trace_layers(w, apply_fn, X)
    assert (layer.stacked, layer.uses, layer.fan_in, layer.note) == (4, 1, 8, None)
    new, report = jaxinit.lsuv(w, apply_fn, X, return_report=True)
    assert report.after[0].size == 4
    x = X
    for i in range(4):
        y = x @ make(new[i])
        np.testing.assert_allclose(jnp.std(y), 1, rtol=1e-3)
        np.testing.assert_allclose(new[i] / jnp.linalg.norm(new[i]), w[i] / jnp.linalg.norm(w[i]), atol=1e-5)
        x = jnp.tanh(y)
    drawn = jaxinit.initialize(jax.random.key(0), w, apply_fn, X, "flax_default")
    sizes = [jnp.mean(make(drawn[i]) ** 2) for i in range(4)]
    np.testing.assert_allclose(sizes, 1 / 8, rtol=0.35)


def total(w, x):
    return LOOPS["scan"][0](w, x) * jnp.mean(jnp.abs(w))


def its_mean_in_each_step(w, x):
    mean = jnp.mean(w, 0)
    return lax.scan(lambda x, w: (jnp.tanh(x @ (w + mean)), None), x, w)[0]


def what_came_before(w, x):
    """Each step takes all slices so far."""

    def step(carry, w):
        x, total = carry
        total = total + w + w.T
        return (jnp.tanh(x @ total), total), None

    return lax.scan(step, (x, jnp.zeros_like(w[0])), w)[0][0]


def total_of_slices(w, x):
    return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) * jnp.mean(jnp.abs(w))


def total_of_mixed_slices(w, x):
    return jnp.tanh(jnp.tanh(x @ symmetric(w[0])) @ symmetric(w[1])) * jnp.mean(jnp.abs(symmetric(w[1])))


@pytest.mark.parametrize(
    "apply_fn", [total, its_mean_in_each_step, what_came_before, total_of_slices, total_of_mixed_slices]
)
def test_slices_that_are_taken_together_too_keep_their_scale(apply_fn):
    w = normal(0, 4, 8, 8)
    with pytest.warns(UserWarning, match="slice|mixed"):
        new = jaxinit.lsuv(w, apply_fn, X)
    np.testing.assert_array_equal(new, w)


def test_a_mixed_slice_that_is_read_again_in_its_step_is_scaled_there_too():
    def apply_fn(w, x):
        def step(x, w):
            return jnp.tanh(x @ symmetric(w)) * jnp.mean(jnp.abs(symmetric(w))), None

        return lax.scan(step, x, w)[0]

    w = 5 * normal(0, 4, 8, 8)
    new = jaxinit.lsuv(w, apply_fn, X)
    x = X
    for i in range(4):
        y = x @ symmetric(new[i])
        np.testing.assert_allclose(jnp.std(y), 1, rtol=1e-3)
        x = jnp.tanh(y) * jnp.mean(jnp.abs(symmetric(new[i])))


@pytest.mark.parametrize(("make", "shape"), [(symmetric, (4, 8, 8)), (circulant, (4, 8))])
def test_slices_that_a_loop_in_python_mixes_have_their_scales(make, shape):
    def apply_fn(w, x):
        for i in range(4):
            x = jnp.tanh(x @ make(w[i]))
        return x

    sizes = jnp.array([0.1, 1.0, 3.0, 10.0]).reshape(4, *[1] * (len(shape) - 1))
    new = jaxinit.lsuv(sizes * normal(0, *shape), apply_fn, X)
    x = X
    for i in range(4):
        y = x @ make(new[i])
        np.testing.assert_allclose(jnp.std(y), 1, rtol=1e-3)
        x = jnp.tanh(y)


def test_slices_that_a_loop_in_python_mixes_have_their_variances():
    def apply_fn(w, x):
        for i in range(3):
            x = jax.nn.relu(x @ symmetric(w[i]))
        return x

    x = 3 * normal(1, 128, 96)
    drawn, report = jaxinit.initialize(jax.random.key(0), normal(0, 3, 96, 96), apply_fn, x, return_report=True)
    assert all("the weight that the program makes of it" in row.reason for row in report.rows)
    sizes = [96 * jnp.mean(symmetric(w) ** 2) for w in drawn]
    np.testing.assert_allclose(sizes, [1 / jnp.mean(x**2), 2, 2], rtol=0.1)


def test_slices_that_are_mixed_with_one_another_have_one_scale_and_the_report_says_so():
    def apply_fn(w, x):
        for i in range(4):
            x = jnp.tanh(x @ (w[i] + w[(i + 1) % 4]))
        return x

    w = normal(0, 4, 8, 8)
    new, report = jaxinit.lsuv(w, apply_fn, X, return_report=True)
    assert "one scale for the whole weight" in report.notes[0]
    np.testing.assert_allclose(new / w, (new / w).reshape(-1)[0], rtol=1e-4)
    seen = []
    x = X
    for i in range(4):
        seen.append(x @ (new[i] + new[(i + 1) % 4]))
        x = jnp.tanh(seen[-1])
    np.testing.assert_allclose(jnp.std(jnp.stack(seen)), 1, rtol=1.1e-2)
