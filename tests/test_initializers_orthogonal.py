"""Orthogonal weights keep norms, each in the layout in which a layer uses the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import convolve

import jaxinit


def _assert_orthonormal(matrix, scale=1.0, atol=2e-6):
    """The shorter side of a matrix, or of each in a batch, is orthonormal up to a scale."""
    matrix = jnp.asarray(matrix)
    short = matrix.conj().mT @ matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix @ matrix.conj().mT
    np.testing.assert_allclose(short / scale**2, jnp.broadcast_to(jnp.eye(short.shape[-1]), short.shape), atol=atol)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (3, 3, 4, 8), (1, 1), (1, 5)])
def test_columns_or_rows_are_orthonormal(shape, key):
    for column_axis in (-1, 0):
        w = jaxinit.orthogonal(2.0, column_axis)(key, shape)
        _assert_orthonormal(np.moveaxis(w, column_axis, -1).reshape(-1, shape[column_axis]), 2.0)


def test_each_entry_of_a_stack_is_orthogonal_which_in_jax_is_not_so(key):
    shape = (3, 8, 8)
    stack = jaxinit.orthogonal(batch_axis=0)(key, shape)
    _assert_orthonormal(stack)
    assert not np.allclose(stack[0], stack[1])
    flattened = jax.nn.initializers.orthogonal()(key, shape)
    assert not np.allclose(flattened[0].T @ flattened[0], np.eye(8), atol=0.1)
    spread = jaxinit.orthogonal(batch_axis=(0, 2))(key, (2, 6, 3, 4))
    _assert_orthonormal(np.moveaxis(spread, 2, 1).reshape(6, 6, 4))


def test_gains_by_name_and_by_function(key):
    by_name = jaxinit.orthogonal("tanh")
    assert by_name == jaxinit.orthogonal(jnp.tanh)
    _assert_orthonormal(by_name(key, (5, 5)), jaxinit.gain("tanh"))
    _assert_orthonormal(jaxinit.orthogonal(lambda x: jnp.maximum(x, 0))(key, (5, 5)), np.sqrt(2))
    traced = jax.vmap(lambda scale: jaxinit.orthogonal(scale)(key, (4, 4)))(jnp.array([1.0, 3.0]))
    _assert_orthonormal(traced[1], 3.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_works_where_jax_raises(dtype, key):
    w = jaxinit.orthogonal()(key, (16, 16), dtype)
    assert w.dtype == dtype
    _assert_orthonormal(w.astype(jnp.float32), atol=16 * float(jnp.finfo(dtype).eps))
    with pytest.raises((NotImplementedError, ValueError, TypeError)):
        jax.nn.initializers.orthogonal()(key, (16, 16), dtype)


def test_unitary(key):
    for init in (jaxinit.unitary(), jaxinit.orthogonal(dtype=jnp.complex64)):
        w = init(key, (6, 4))
        assert w.dtype == jnp.complex64
        assert np.abs(w.imag).max() > 0.1
        _assert_orthonormal(w)
    np.testing.assert_array_equal(jaxinit.unitary(batch_axis=0)(key, (2, 3, 3)), jaxinit.haar.unitary(key, (2, 3, 3)))


@pytest.mark.parametrize("spatial", [(3,), (3, 5), (3, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_delta_orthogonal_keeps_the_norm_of_every_image(spatial, groups, key):
    kernel = jaxinit.delta_orthogonal(groups=groups)(key, (*spatial, 4 // groups, 8))
    x = jax.random.normal(key, (2, *(5,) * len(spatial), 4))
    y = convolve(x, kernel, groups)
    norms = [jnp.sqrt(jnp.sum(z**2, axis=tuple(range(1, z.ndim)))) for z in (x, y)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)


def test_delta_orthogonal_narrows_where_jax_raises(key):
    kernel = jaxinit.delta_orthogonal()(key, (3, 3, 8, 4))
    _assert_orthonormal(kernel[1, 1])
    with pytest.raises(ValueError, match="fan_in"):
        jax.nn.initializers.delta_orthogonal()(key, (3, 3, 8, 4))


def test_even_kernels_take_the_tap_that_is_named(key):
    lower = jaxinit.delta_orthogonal()(key, (4, 2, 3, 3))
    theirs = jax.nn.initializers.delta_orthogonal()(key, (4, 2, 3, 3))
    np.testing.assert_array_equal(np.abs(lower).max((2, 3)) > 0, np.abs(theirs).max((2, 3)) > 0)
    upper = jaxinit.delta_orthogonal(centre="upper")(key, (4, 2, 3, 3))
    assert np.argwhere(np.abs(lower).max((2, 3)) > 0).tolist() == [[1, 0]]
    assert np.argwhere(np.abs(upper).max((2, 3)) > 0).tolist() == [[2, 1]]
    x = jax.random.normal(key, (1, 6, 6, 3))
    np.testing.assert_allclose(convolve(x, lower), x @ lower[1, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (16, 16), (3, 3, 8, 24)])
def test_scaled_uniform_orthogonal(shape, key):
    w = jaxinit.scaled_uniform_orthogonal()(key, shape)
    matrix = w[1, 1] if len(shape) == 4 else w
    inputs, outputs = shape[-2:]
    _assert_orthonormal(matrix, max(np.sqrt(outputs / inputs), 1))


def _linear_error(net, shape, key):
    """How far a network is from additive and homogeneous, relative to its output."""
    x, y = jax.random.normal(key, (2, *shape))
    total = net(x) + net(y)
    return float(jnp.max(jnp.abs(net(x + y) - total)) / jnp.max(jnp.abs(total)))


def test_looks_linear_networks_are_linear_over_100_layers(key):
    keys = jax.random.split(key, 102)
    first = jaxinit.looks_linear(form="first")(keys[0], (16, 32))
    hidden = jax.vmap(lambda k: jaxinit.looks_linear()(k, (32, 32)))(keys[1:-1])
    last = jaxinit.looks_linear(form="last")(keys[-1], (32, 16))

    def net(x):
        h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), jax.nn.relu(x @ first), hidden)
        return h @ last

    assert _linear_error(net, (5, 16), key) < 1e-4
    x = jax.random.normal(key, (5, 16))
    np.testing.assert_allclose(jnp.linalg.norm(net(x), axis=1), jnp.linalg.norm(x, axis=1), rtol=1e-4)
    plain = jaxinit.orthogonal()(key, (16, 16))
    assert _linear_error(lambda x: jax.nn.relu(x @ plain), (5, 16), key) > 0.05, "a plain layer is caught"


def test_looks_linear_for_concatenated_relu_and_convolutions(key):
    def crelu(z):
        return jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)], axis=-1)

    last = jaxinit.looks_linear(form="last")(key, (32, 16))
    assert _linear_error(lambda x: crelu(crelu(x) @ last) @ last, (5, 16), key) < 1e-5

    delta = jaxinit.delta_orthogonal()
    kernels = [
        jaxinit.looks_linear(delta, form)(key, shape)
        for form, shape in (("first", (3, 3, 4, 8)), ("hidden", (3, 3, 8, 8)), ("last", (3, 3, 8, 4)))
    ]

    def net(x):
        for kernel in kernels[:-1]:
            x = jax.nn.relu(convolve(x, kernel))
        return convolve(x, kernels[-1])

    assert _linear_error(net, (2, 6, 6, 4), key) < 1e-5


def test_heads_and_gates_are_orthogonal_one_by_one(key):
    heads = jaxinit.blocked(jaxinit.orthogonal(), axis=-1, blocks=4)(key, (16, 32))
    _assert_orthonormal(np.stack(np.split(np.asarray(heads), 4, axis=-1)))
    whole = jaxinit.orthogonal()(key, (16, 32))
    assert not np.allclose(whole[:, :8].T @ whole[:, :8], np.eye(8), atol=0.1), "drawn as one, no head is orthogonal"


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e38])
def test_orthonormalize_of_tiny_and_huge_weights(scale, key):
    w = jax.random.normal(key, (5, 3)) * 0.5
    np.testing.assert_allclose(jaxinit.orthonormalize(scale * w), jaxinit.orthonormalize(w), atol=2e-6)
