"""The contract of `jaxinit.haar`: accuracy, shapes, dtypes, keys, errors, and the numbers of a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinit import haar

METHODS = ["auto", "reflectors", "small", "qr"]
SHAPES = [(1, 1), (1, 6), (6, 1), (5, 5), (9, 4), (4, 9), (65, 33), (70, 70), (3, 2, 8, 8), (100, 16, 12)]


def deviation(q):
    """max |QᴴQ − I| of tall, |QQᴴ − I| of wide matrices, in double precision."""
    q = np.asarray(q, np.complex128)
    q = q if q.shape[-2] >= q.shape[-1] else q.swapaxes(-1, -2)
    return abs(q.conj().swapaxes(-1, -2) @ q - np.eye(q.shape[-1])).max()


# "auto" is one of the others: "reflectors" for (5, 5), "small" for the last shape.
@pytest.mark.parametrize(
    ("method", "shape"),
    [("auto", (5, 5)), ("auto", (100, 16, 12))]
    + [(m, s) for m in METHODS[1:] for s in SHAPES if m != "small" or min(s[-2:]) <= 32],
)
def test_matrices_are_orthonormal_to_2e_6_in_float32(method, shape):
    q = haar.orthogonal(jax.random.key(0), shape, method=method)
    assert q.shape == shape
    assert q.dtype == jnp.float32
    assert deviation(q) < 2e-6


@pytest.mark.parametrize("shape", [(1, 1), (70, 70), (4, 9), (100, 8, 8), (300, 200)])
def test_unitary_matrices_are_orthonormal_to_2e_6(shape):
    u = haar.unitary(jax.random.key(0), shape)
    assert u.dtype == jnp.complex64
    assert deviation(u) < 2e-6


@pytest.mark.parametrize(
    ("method", "shape"), [("reflectors", (16, 16)), ("reflectors", (2, 20, 30)), ("small", (9, 6, 7)), ("qr", (16, 16))]
)
def test_double_precision_to_1e_14(method, shape):
    with jax.enable_x64(True):
        assert deviation(haar.orthogonal(jax.random.key(0), shape, "float64", method=method)) < 1e-14
        assert deviation(haar.unitary(jax.random.key(0), shape, method=method)) < 1e-14
        assert haar.unitary(jax.random.key(0), shape, method=method).dtype == jnp.complex128


def test_double_precision_in_panels_to_1e_14():
    with jax.enable_x64(True):
        assert deviation(haar.orthogonal(jax.random.key(0), (300, 200))) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8192, 8192), (8192, 64), (100_000, 4, 4), (1000, 3000)])
def test_large_sizes(shape):
    q = haar.orthogonal(jax.random.key(0), shape)
    if len(shape) == 2:
        gram = q.T @ q if shape[0] >= shape[1] else q @ q.T
        assert abs(np.asarray(gram) - np.eye(min(shape))).max() < 1e-5
    else:
        assert deviation(q) < 2e-6


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 4, 4), (2, 0, 0)])
@pytest.mark.parametrize("method", ["auto", "qr"])
def test_zero_sizes_give_empty_arrays(shape, method):
    assert haar.orthogonal(jax.random.key(0), shape, method=method).shape == shape


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (jnp.bfloat16, (20, 20)),
        (jnp.float16, (20, 20)),
        (jnp.float8_e4m3fn, (20, 20)),
        (jnp.bfloat16, (50, 4, 4)),
        pytest.param(jnp.float16, (50, 4, 4), marks=pytest.mark.slow),
        pytest.param(jnp.float8_e4m3fn, (50, 4, 4), marks=pytest.mark.slow),
    ],
)
def test_half_dtypes_are_float32_rounded(dtype, shape):
    half = haar.orthogonal(jax.random.key(0), shape, dtype)
    assert half.dtype == dtype
    full = haar.orthogonal(jax.random.key(0), shape)
    # jit may round an entry on a tie the other way; anything more is a draw in low precision.
    np.testing.assert_allclose(
        half.astype(jnp.float32), full.astype(dtype).astype(jnp.float32), atol=float(jnp.finfo(dtype).eps)
    )


def test_spellings_of_arguments_do_not_matter():
    expected = haar.orthogonal(jax.random.key(7), (2, 5, 3), jnp.float32)
    raw = jax.random.key_data(jax.random.key(7))
    for key, shape, dtype in [
        (raw, (2, 5, 3), None),
        (jax.random.key(7), [2, 5, 3], "float32"),
        (jax.random.key(7), (np.int64(2), np.int32(5), 3), np.dtype("float32")),
    ]:
        np.testing.assert_array_equal(haar.orthogonal(key, shape, dtype), expected)


def test_special_orthogonal_has_determinant_one():
    for shape in ((200, 5, 5), (30, 1, 1), (3, 70, 70)):
        for method in ("reflectors", "qr"):
            q = haar.special_orthogonal(jax.random.key(0), shape, method=method)
            np.testing.assert_allclose(np.linalg.det(np.asarray(q, np.float64)), 1, atol=1e-4)


def test_errors_say_what_was_expected_what_came_and_what_to_do():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"of 2 dimensions or more, got \(3,\)"):
        haar.orthogonal(key, (3,))
    with pytest.raises(ValueError, match=r"no negative entries, got \(3, -1\)"):
        haar.orthogonal(key, (3, -1))
    with pytest.raises(ValueError, match=r"method='lapack'; the methods are 'auto', 'reflectors'"):
        haar.orthogonal(key, (3, 3), method="lapack")
    with pytest.raises(ValueError, match=r"at most 32 columns.*\(40, 40\); use method='reflectors'"):
        haar.orthogonal(key, (40, 40), method="small")
    with pytest.raises(ValueError, match=r"square matrices.*shape=\(3, 4\); use haar.orthogonal"):
        haar.special_orthogonal(key, (3, 4))
    with pytest.raises(TypeError, match=r"orthogonal makes floating numbers, got dtype complex64"):
        haar.orthogonal(key, (3, 3), jnp.complex64)
    with pytest.raises(TypeError, match=r"unitary makes complex numbers, got dtype float32"):
        haar.unitary(key, (3, 3), jnp.float32)
    with pytest.raises(TypeError, match=r"takes a key such as jax.random.key"):
        haar.orthogonal(0, (3, 3))
    with pytest.raises(ValueError, match=r"enter jax.set_mesh\(mesh\), or pass a NamedSharding"):
        haar.orthogonal(key, (8, 3, 3), out_sharding=jax.sharding.PartitionSpec("x"))


PINNED = {
    ("orthogonal", "qr", (4, 4)): (0.902317, 0.481851),
    ("orthogonal", "small", (4, 4)): (-0.849795, -2.580354),
    ("orthogonal", "small", (20, 5, 3)): (-0.749238, -9.235643),
    ("orthogonal", "reflectors", (4, 4)): (-0.849795, -2.342406),
    ("orthogonal", "reflectors", (3, 5)): (-0.688525, -0.569599),
    ("orthogonal", "reflectors", (2, 50, 40)): (-0.179200, 3.673545),
    ("orthogonal", "reflectors", (130, 150)): (-0.094057, 21.215759),
    ("orthogonal", "auto", (8, 16, 16)): (-0.263357, 11.054654),
    ("orthogonal", "auto", (7, 16, 16)): (-0.326687, -1.830558),
    ("orthogonal", "auto", (2, 70, 70)): (-0.138712, -9.215376),
    ("orthogonal", "auto", (65, 65)): (-0.142507, 3.722054),
    ("special_orthogonal", "reflectors", (5, 5)): (-0.688525, -0.858269),
    ("special_orthogonal", "small", (9, 3, 3)): (-0.573952, -1.440805),
    ("unitary", "qr", (3, 3)): ((0.312639 - 0.760553j), (0.794248 - 0.479178j)),
    ("unitary", "small", (8, 3, 3)): ((0.092440 + 0.038117j), (-4.696531 + 3.087670j)),
    ("unitary", "reflectors", (40, 35)): ((0.029481 + 0.012156j), (0.729896 - 2.222918j)),
}


@pytest.mark.parametrize("case", PINNED, ids=str)
def test_numbers_of_a_key_are_part_of_the_contract(case):
    """The first entry and a mix of all entries, for key(0), on every platform and JAX version."""
    sampler, method, shape = case
    q = np.asarray(getattr(haar, sampler)(jax.random.key(0), shape, method=method))
    mix = np.cos(np.arange(q.size)) @ q.ravel()
    np.testing.assert_allclose((q.ravel()[0], mix), PINNED[case], atol=2e-5)
