"""`orthonormalize` computes an orthonormal matrix from a weight's own entries, for any weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxinit import haar
from jaxinit._haar import orthonormal_or_zero, orthonormalize
from jaxinit._haar._concrete import converted, product


def deviation(q):
    """max |QᴴQ − I| of a tall, |QQᴴ − I| of a wide (..., n, m), in double precision."""
    q = np.asarray(q, np.complex128)
    q = q if q.shape[-2] >= q.shape[-1] else q.swapaxes(-1, -2)
    return abs(q.conj().swapaxes(-1, -2) @ q - np.eye(q.shape[-1])).max()


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (70, 70), (200, 100), (1, 9)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_result_is_orthonormal(shape, dtype):
    w = jax.random.normal(jax.random.key(0), shape, dtype)
    q = orthonormalize(w)
    assert q.shape == shape
    assert q.dtype == dtype
    assert deviation(q) < 4e-6


@pytest.mark.parametrize("shape", [(64, 64), (200, 70), (70, 200)])
def test_vectors_of_any_length_become_orthonormal(shape):
    w = jax.random.normal(jax.random.key(0), shape)
    huge = jnp.where(w > 0, jnp.complex64(3e38 + 3e38j), jnp.complex64(-3e38 + 3e38j))  # whose absolute value overflows
    rows, columns = (jnp.logspace(-20, 0, n) for n in shape)
    for weight in (w.at[0].multiply(1e-18), w.at[0, 0].set(1e19), w * rows[:, None], w * columns[None], huge):
        assert deviation(orthonormalize(weight)) < 4e-6
    # The length of a vector does not matter: that of a tall one is a column, of a wide one a row.
    lengths = jnp.exp2(-jnp.arange(min(shape), dtype=jnp.float32))
    longer = w * (lengths[None] if shape[0] > shape[1] else lengths[:, None])
    np.testing.assert_allclose(orthonormalize(longer), orthonormalize(w), atol=2e-6)


def test_a_gaussian_weight_becomes_haar():
    """E tr = 0, E tr² = 1, det and entry law over 20,000 weights; false alarm below 1e-6 each."""
    w = 0.02 * jax.random.normal(jax.random.key(1), (20_000, 4, 4))
    q = np.asarray(orthonormalize(w, batch_axis=0), np.float64)
    trace = np.trace(q, axis1=1, axis2=2)
    assert abs(trace.mean()) * np.sqrt(len(q)) < 4.9
    assert abs((trace**2).mean() - 1) * np.sqrt(len(q) / 2) < 4.9
    assert st.binomtest(int((np.linalg.det(q) > 0).sum()), len(q)).pvalue > 1e-6
    for i, j in ((0, 0), (1, 2), (3, 3)):
        assert st.kstest(q[:, i, j] ** 2, st.beta(0.5, 1.5).cdf).pvalue > 1e-6


@pytest.mark.parametrize("shape", [(6, 6), (90, 70), (30, 80)])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 300.0])
def test_an_orthonormal_weight_is_kept_up_to_scale(shape, scale):
    q = haar.orthogonal(jax.random.key(2), shape)
    np.testing.assert_allclose(orthonormalize(scale * q), q, atol=3e-6)


def test_an_orthonormal_half_precision_weight_is_kept():
    q = haar.orthogonal(jax.random.key(2), (64, 64), jnp.bfloat16)
    w = orthonormalize(q)
    assert w.dtype == jnp.bfloat16
    np.testing.assert_allclose(w.astype(float), q.astype(float), atol=1e-2)


@pytest.mark.parametrize(
    "w",
    [
        np.zeros((5, 3)),
        np.zeros((70, 70)),
        np.diag([1.0, 0.0, 2.0, 0.0]),
        np.ones((64, 64)),
        np.outer(np.arange(80.0), np.arange(70.0)),
        np.ones((3, 50)),
        1e-30 * np.ones((4, 4)),
        np.arange(400.0).reshape(20, 20),
    ],
    ids=["zero", "zero in panels", "zero columns", "ones", "rank one", "wide ones", "tiny", "rank two"],
)
def test_a_degenerate_weight_gives_an_orthonormal_matrix(w):
    q = orthonormalize(jnp.asarray(w, jnp.float32))
    assert np.isfinite(q).all()
    assert deviation(q) < 2e-5


def test_receptive_field_belongs_to_fan_in():
    w = jax.random.normal(jax.random.key(3), (3, 3, 8, 16))
    q = orthonormalize(w)
    assert deviation(q.reshape(72, 16)) < 2e-6
    transposed = orthonormalize(jnp.transpose(w, (3, 2, 0, 1)), in_axis=1, out_axis=0)
    assert deviation(transposed.reshape(16, 72)) < 2e-6


def test_tuples_of_axes_and_batches():
    w = jax.random.normal(jax.random.key(4), (5, 12, 4, 3))
    q = orthonormalize(w, in_axis=1, out_axis=(2, 3), batch_axis=0)
    assert deviation(q.reshape(5, 12, 12)) < 2e-6
    each = jnp.stack([orthonormalize(x, in_axis=0, out_axis=(1, 2)) for x in w])
    np.testing.assert_allclose(q, each, atol=1e-6)


def test_jit_and_vmap_agree_with_the_loop():
    w = jax.random.normal(jax.random.key(5), (4, 9, 7))
    loop = jnp.stack([orthonormalize(x) for x in w])
    np.testing.assert_allclose(jax.jit(jax.vmap(orthonormalize))(w), loop, atol=1e-6)


def test_an_empty_weight_is_returned():
    assert orthonormalize(jnp.zeros((0, 3))).shape == (0, 3)


def test_errors_say_what_to_do():
    w = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"in_axis=5 is out of range for the shape \(3, 4\)"):
        orthonormalize(w, in_axis=5)
    with pytest.raises(ValueError, match=r"must name different axes"):
        orthonormalize(jnp.ones((3, 4, 5)), in_axis=2, out_axis=-1)
    with pytest.raises(TypeError, match=r"dtype int32; cast it first"):
        orthonormalize(jnp.ones((2, 2), int))


@pytest.mark.parametrize("shape", [(1, 9), (5, 3), (150, 70), (3, 3, 4, 8)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.bfloat16])
def test_numpy_makes_the_same_matrix_of_the_same_reflectors(shape, dtype):
    drawn = jax.random.normal(jax.random.key(3), shape, jnp.complex64 if dtype == jnp.complex64 else jnp.float32)
    w = 0.02 * np.asarray(drawn)
    kinds = (
        w,
        0 * w,
        3 * np.array(orthonormalize(drawn)),
        np.concatenate([0 * w[..., :1], w[..., 1:]], axis=-1),
        w * np.logspace(-15, 10, shape[-1], dtype=np.float32),
    )
    for kind in kinds:
        weight = jnp.asarray(kind).astype(dtype)
        for zeros_stay in (False, True) if shape == (5, 3) else (False,):
            wanted = orthonormal_or_zero(weight, -2, -1, (), zeros_stay=zeros_stay)
            found = converted(np.asarray(weight), (len(shape) - 1,), (), zeros_stay)
            assert found.dtype == weight.dtype
            tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(found.astype(complex), np.asarray(wanted).astype(complex), atol=tolerance)


def test_numpy_takes_each_matrix_of_a_stack_by_itself():
    w = jax.random.normal(jax.random.key(4), (2, 6, 3, 4))
    found = converted(np.asarray(w), (1,), (0, 3), zeros_stay=False)
    np.testing.assert_allclose(found, orthonormalize(w, in_axis=2, out_axis=1, batch_axis=(0, 3)), atol=1e-5)


@pytest.mark.parametrize("sizes", [(3, 200, 5), (130, 64, 70), (65, 129, 200)])
def test_products_in_tiles_are_products(sizes):
    rows, terms, columns = sizes
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, terms)), rng.normal(size=(terms, columns))
    np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-9, atol=1e-12)
