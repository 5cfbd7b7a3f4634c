"""Means and covariances of a layer's output u and its bias b, and the scale that gives s·u + b the target variance.

Var(s·u + b) = s² Var(u) + 2s Cov(u, b) + Var(b), a quadratic in s. Everything is accumulated in float32 or wider.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit._arrays import drawing_dtype
from jaxinit._stages import hosted
from jaxinit._typing import Array, DTypeLike

DEAD = 1
NO_ROOT = 2
NOT_FINITE = 4
NOT_CONVERGED = 8
NOT_REPRODUCIBLE = 16
NOT_REACHED = 32
ZERO = 64
NOT_HELD = 128

_SMALLEST_VARIANCE = 1e-36
"""Below this, squares vanish in float32."""

_CONSTANT = 1e-12
"""A variance below this share of the squared mean is rounding, not signal."""


class Moments(NamedTuple):
    """Moments over `size` pooled elements; those of the bias are zero if there is no bias."""

    size: Array
    mean_u: Array
    mean_b: Array
    var_u: Array
    cov: Array
    var_b: Array


def wide(x: Array) -> Array:
    """In float32, or wider if it already is."""
    return x.astype(drawing_dtype(x.dtype))


@hosted(static_argnums=(2,))
def moments(u: Array, bias: Array | None, axes: tuple[int, ...]) -> Moments:
    """Moments of u over these axes, and of a bias that has size 1 along axes where it does not vary."""
    # First along the axes in which the bias is constant, then over the sums of each channel, which are few. In as few
    # operations as possible, since each costs compile time; but centred before squaring, because squares of a large
    # mean would swamp the variance.
    u = wide(u)
    size = math.prod(u.shape[axis] for axis in axes)
    first = tuple(axis for axis in axes if bias is None or bias.shape[axis] == 1)
    if bias is None and len(first) > 1:
        first = first[:-1]  # sums along the last axis are slower
    left = [axis for axis in range(u.ndim) if axis not in first]
    second = tuple(i for i, axis in enumerate(left) if axis in axes)
    kept = tuple(axis for axis in range(u.ndim) if axis not in axes)
    kept_of_left = tuple(i for i in range(len(left)) if i not in second)

    shares = _sum([u], first)[0] / size  # the contribution of each channel to the mean
    if bias is None:
        (mean_u,) = _sum([shares], second)
    else:
        b = jnp.broadcast_to(wide(bias).astype(u.dtype).squeeze(first), shares.shape)
        mean_u, total_b = _sum([shares, b], second)
    off = u - lax.broadcast_in_dim(mean_u, u.shape, kept)
    (squares,) = _sum([_times(off, off)], first)
    if bias is None:
        (var_u,) = _sum([squares], second)
        zero = lax.full_like(var_u, 0)
        return _moments(size, mean_u, lax.full_like(mean_u, 0), var_u / size, zero, zero)
    channels = math.prod(u.shape[left[i]] for i in second)
    mean_b = total_b / channels
    off_u = shares - lax.broadcast_in_dim(mean_u / channels, shares.shape, kept_of_left)
    off_b = b - lax.broadcast_in_dim(mean_b, shares.shape, kept_of_left)
    products = [squares, _times(off_u, off_b), _times(off_b, off_b)]
    var_u, cov, var_b = _sum(products, second)
    return _moments(size, mean_u, mean_b, var_u / size, cov, var_b / channels)


def _times(a: Array, b: Array) -> Array:
    """The real part of a·b̄."""
    return jnp.real(a * b.conj()) if jnp.issubdtype(a.dtype, jnp.complexfloating) else lax.mul(a, b)


def mean_dtype(dtype: DTypeLike) -> type[np.generic]:
    """The dtype of means: those of complex outputs are complex, so that means of several uses can be compared."""
    return np.complex64 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float32


def _moments(size: int, mean_u: Array, mean_b: Array, *variances: Array) -> Moments:
    means = (lax.convert_element_type(mean, mean_dtype(mean_u.dtype)) for mean in (mean_u, mean_b))
    return Moments(jnp.float32(size), *means, *(lax.convert_element_type(x, jnp.float32) for x in variances))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum(arrays: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """Sums over these axes, in one reduction for all arrays."""
    if not axes:
        return arrays
    zeros = [jnp.zeros((), x.dtype) for x in arrays]
    return list(lax.reduce(arrays, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], axes))


@_sum.defjvp
def _sum_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    """One reduction for each tangent: JAX cannot differentiate one of several arrays."""
    (arrays,), (changes,) = primals, tangents
    return _sum(arrays, axes), [jnp.sum(x, axes) for x in changes]


def nothing(like: Moments) -> Moments:
    """Moments over no elements."""
    return jax.tree.map(jnp.zeros_like, like)


def merged(a: Moments, b: Moments) -> Moments:
    """Moments over the elements of both (Chan, Golub & LeVeque 1979)."""
    size = a.size + b.size
    share = b.size / jnp.maximum(size, 1)
    both = (1 - share) * share
    du, db = b.mean_u - a.mean_u, b.mean_b - a.mean_b

    def pooled(x: Array, y: Array, between: Array) -> Array:
        return x + share * (y - x) + both * jnp.real(between)

    return Moments(
        size,
        a.mean_u + jnp.asarray(share, du.dtype) * du,
        a.mean_b + jnp.asarray(share, db.dtype) * db,
        pooled(a.var_u, b.var_u, du * jnp.conj(du)),
        pooled(a.cov, b.cov, du * jnp.conj(db)),
        pooled(a.var_b, b.var_b, db * jnp.conj(db)),
    )


@hosted()
def scaled(m: Moments, s: Array) -> Moments:
    """Moments of s·u and b."""
    return m._replace(mean_u=jnp.asarray(s, m.mean_u.dtype) * m.mean_u, var_u=s * s * m.var_u, cov=s * m.cov)


@hosted()
def std(m: Moments) -> Array:
    """Standard deviation of u + b."""
    return jnp.sqrt(jnp.maximum(m.var_u + 2 * m.cov + m.var_b, 0))


@hosted()
def solve(m: Moments, target: Array) -> tuple[Array, Array]:
    """The smallest s > 0 with Var(s·u + b) = target², and flags; s = 1 if there is none."""
    a, c, d = m.var_u, m.cov, m.var_b - target * target
    dead = a < jnp.maximum(_SMALLEST_VARIANCE, _CONSTANT * jnp.real(m.mean_u * m.mean_u.conj()))
    # Each root in the form that does not cancel: one division by or of the sum of |c| and the square root, which is NaN
    # if there is no root.
    total = jnp.abs(c) + jnp.sqrt(c * c - a * d)
    below, falls, distance = d < 0, c <= 0, jnp.abs(d)
    found = (below | falls) & (jnp.minimum(distance, total) > 0) & (total < jnp.inf)
    known, grows = found & ~dead, below & falls
    # The division comes last: the compiler repeats whatever follows a division wherever s is used.
    s = jnp.where(known, jnp.where(grows, total, distance), 1.0) / jnp.where(known, jnp.where(grows, a, total), 1.0)
    finite = jnp.isfinite(a + c + d)
    silent = jnp.where((a == 0) & (m.mean_u == 0), ZERO, DEAD)
    flags = jnp.where(~finite, NOT_FINITE, jnp.where(dead, silent, jnp.where(found, 0, NO_ROOT)))
    return s, flags.astype(jnp.int32)


def zeros_of(shape_tree: Any) -> Any:
    """Arrays of zeros with these shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape_tree)
