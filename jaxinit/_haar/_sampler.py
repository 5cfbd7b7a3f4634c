"""The public samplers: check the arguments, choose a method, cast and place the result.

A method draws frames in the working dtype: orthonormal columns if they are tall, else orthonormal rows. It fixes which
Gaussian goes where, and "auto" depends on the shape alone, so a key gives the same matrix, up to rounding, on every
platform; how the Gaussians are multiplied out is the platform's choice. The figures of "auto" are those of
`benchmarks/haar.py` on CPUs, kept in `benchmarks/results/`.

"qr" is the reference that the other methods are tested against. A QR routine is free to choose the signs of R's
diagonal, and LAPACK's choice makes Q not Haar; multiplying the columns of Q by the phases of that diagonal makes the
factorisation unique and Q Haar (Mezzadri 2007, arXiv:math-ph/0609050).
"""

import functools
import math
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import canonical_shape, drawing_dtype, jitted_alone, output_dtype, random, sharded
from jaxinit._checks import check_key, check_rank
from jaxinit._haar import _reflectors, _small, _unrolled
from jaxinit._typing import Array, DTypeLike, OutSharding, Shape

Method: TypeAlias = Literal["auto", "reflectors", "small", "qr"]

SMALL_COLUMNS = 16
SMALL_BATCH = 8
"""From this many matrices of at most 16 columns on, "small" is faster than the panels on CPU. A method fixes the
numbers of a key, so changing these thresholds changes them on every platform."""


def orthogonal(
    key: Array,
    shape: Shape,
    dtype: DTypeLike = None,
    *,
    method: Method = "auto",
    out_sharding: OutSharding = None,
) -> Array:
    """Draws matrices uniformly from the orthogonal group, or from a Stiefel manifold.

    A square Q is Haar on O(n): P(UQV ∈ A) = P(Q ∈ A) for all fixed orthogonal U and V, so det Q is +1 or −1
    with equal probability. A tall matrix is n × m with QᵀQ = I, a wide one has QQᵀ = I, both with the
    distribution that all rotations leave unchanged. Every matrix of the batch is independent.

    For a given shape, dtype and method, a key yields the same numbers (up to rounding) on every platform, under
    `jit` and under `vmap`: the method fixes how they are drawn, and the method that `"auto"` chooses depends on
    the shape alone. Platforms differ in how they multiply: a CPU uses panels that shrink, or single reflectors
    for `"small"`; a GPU or TPU uses panels of one shape, because it takes long to compile each new shape.

    Args:
      key: a typed or raw JAX key.
      shape: `(*batch, n, m)`.
      dtype: real floating dtype, default JAX's default float. Dtypes of fewer than 32 bits are sampled in
        float32 and rounded.
      method: `"reflectors"` (Householder reflectors of Gaussian vectors in panels, products only),
        `"small"` (the same, drawn with the batch last, for batches of matrices with few columns), `"qr"`
        (QR of a Gaussian matrix, sign-corrected; the only one that calls LAPACK or cuSOLVER), or `"auto"`.
      out_sharding: the sharding of the result, as for `jax.random.normal`; a `NamedSharding` or
        `PartitionSpec` with automatic mesh axes is honoured too.

    Returns:
      An array of that shape and dtype; empty if a dimension is zero.

    Raises:
      ValueError: if the shape has fewer than two dimensions or a negative one, or the method is unknown or
        does not fit the shape.
      TypeError: if the dtype is not a real floating one.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinit.haar
      >>> q = jaxinit.haar.orthogonal(jax.random.key(0), (10, 3, 3))
      >>> bool(jnp.allclose(q.mT @ q, jnp.eye(3)[None], atol=1e-5))
      True

    References:
      Stewart, 1980, "The efficient generation of random orthogonal matrices with an application to condition
      estimators", SIAM J. Numer. Anal. 17(3).
      Joffrain, Low, Quintana-Ortí, van de Geijn, Van Zee, 2006, "Accumulating Householder transformations,
      revisited", ACM Trans. Math. Softw. 32(2).
    """
    return _sample("orthogonal", key, shape, dtype, method, out_sharding)


def unitary(
    key: Array,
    shape: Shape,
    dtype: DTypeLike = None,
    *,
    method: Method = "auto",
    out_sharding: OutSharding = None,
) -> Array:
    """Draws matrices uniformly from the unitary group, or from a complex Stiefel manifold.

    A square Q is Haar on U(n): P(UQV ∈ A) = P(Q ∈ A) for all fixed unitary U and V, so its eigenvalues are
    those of the circular unitary ensemble. A tall matrix has QᴴQ = I, a wide one QQᴴ = I.

    Args:
      key: a typed or raw JAX key.
      shape: `(*batch, n, m)`.
      dtype: complex64 or complex128, default the complex counterpart of JAX's default float.
      method: as for `orthogonal`.
      out_sharding: as for `orthogonal`.

    Returns:
      An array of that shape and dtype; empty if a dimension is zero.

    Raises:
      ValueError: as `orthogonal`.
      TypeError: if the dtype is not complex.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinit.haar
      >>> q = jaxinit.haar.unitary(jax.random.key(0), (3, 5))
      >>> bool(jnp.allclose(q @ q.conj().mT, jnp.eye(3, dtype=q.dtype), atol=1e-5))
      True

    Reference:
      Mezzadri, 2007, "How to generate random matrices from the classical compact groups", Notices of the
      AMS 54(5), arXiv:math-ph/0609050.
    """
    return _sample("unitary", key, shape, dtype, method, out_sharding)


def special_orthogonal(
    key: Array,
    shape: Shape,
    dtype: DTypeLike = None,
    *,
    method: Method = "auto",
    out_sharding: OutSharding = None,
) -> Array:
    """Draws rotations uniformly: Haar on SO(n), the orthogonal matrices of determinant +1.

    Args:
      key: a typed or raw JAX key.
      shape: `(*batch, n, n)`.
      dtype: as for `orthogonal`.
      method: as for `orthogonal`.
      out_sharding: as for `orthogonal`.

    Returns:
      An array of that shape and dtype; empty if a dimension is zero.

    Raises:
      ValueError: if the last two dimensions differ, and as `orthogonal`.
      TypeError: if the dtype is not a real floating one.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinit.haar
      >>> q = jaxinit.haar.special_orthogonal(jax.random.key(0), (3, 3))
      >>> round(float(jnp.linalg.det(q)), 3)
      1.0

    Reference:
      Stewart, 1980, "The efficient generation of random orthogonal matrices with an application to condition
      estimators", SIAM J. Numer. Anal. 17(3).
    """
    return _sample("special_orthogonal", key, shape, dtype, method, out_sharding, special=True)


def _sample(
    name: str,
    key: Array,
    shape: Shape,
    dtype: DTypeLike,
    method: Method,
    out_sharding: OutSharding,
    special: bool = False,
) -> Array:
    caller = f"haar.{name}"
    dimensions = canonical_shape(shape)
    check_rank(caller, dimensions, 2, "(*batch, n, m)")
    if special and dimensions[-1] != dimensions[-2]:
        raise ValueError(
            f"{caller} needs square matrices, shape=(*batch, n, n), but got shape={dimensions}; "
            "use haar.orthogonal for tall and wide ones"
        )
    result_dtype = output_dtype(caller, dtype, "complex" if name == "unitary" else "real")
    chosen = _checked_method(caller, method, dimensions)
    draw = functools.partial(_draw, shape=dimensions, dtype=result_dtype, method=chosen, special=special)
    key = check_key(caller, key)
    return draw(key) if out_sharding is None else sharded(draw, key, out_sharding)


@functools.partial(jitted_alone, static_argnames=("shape", "dtype", "method", "special"))
def _draw(key: Array, *, shape: tuple[int, ...], dtype: np.dtype[Any], method: str, special: bool) -> Array:
    if math.prod(shape) == 0:
        return jnp.zeros(shape, dtype)
    *batch, n, m = shape
    return _METHODS[method](key, tuple(batch), n, m, drawing_dtype(dtype), special).astype(dtype)


def _checked_method(caller: str, method: Method, shape: tuple[int, ...]) -> str:
    columns = min(shape[-2:])
    if method == "auto":
        return method_for(shape[:-2], columns)
    if method not in _METHODS:
        known = ", ".join(repr(m) for m in ("auto", *_METHODS))
        raise ValueError(f"{caller} got method={method!r}; the methods are {known}")
    if method == "small" and columns > _small.MOST_COLUMNS:
        raise ValueError(
            f"{caller} with method='small' supports at most {_small.MOST_COLUMNS} columns (or rows, if there "
            f"are fewer), but got shape={shape}; use method='reflectors' or 'auto'"
        )
    return method


def method_for(batch: tuple[int, ...], columns: int) -> str:
    """The method that "auto" chooses."""
    if columns <= SMALL_COLUMNS and math.prod(batch) >= SMALL_BATCH:
        return "small"
    return "reflectors"


def _by_qr(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    gaussian = random.normal(key, (*batch, max(n, m), min(n, m)), dtype)
    q, r = jnp.linalg.qr(gaussian)
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    q = q * _unrolled.phase_of(diagonal, jnp.ones_like(diagonal, dtype=diagonal.real.dtype))[..., None, :]
    if special:
        sign = jnp.sign(jnp.linalg.det(q))
        q = q.at[..., -1].multiply(sign[..., None])
    return q.mT if n < m else q


_METHODS = {"reflectors": _reflectors.sample, "small": _small.sample, "qr": _by_qr}
