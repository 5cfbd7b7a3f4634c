"""Means and covariances of a layer's output u and its bias b, and the scale that gives s·u + b the variance wanted.

Var(s·u + b) = s² Var(u) + 2s Cov(u, b) + Var(b), a quadratic in s. Everything is accumulated in float32 or wider.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._dtypes import drawing_dtype
from jaxinit._typing import Array

DEAD = 1
NO_ROOT = 2
NOT_FINITE = 4
NOT_CONVERGED = 8
NOT_REPRODUCIBLE = 16
NOT_REACHED = 32
ZERO = 64

_SMALLEST_VARIANCE = 1e-36
"""Below it, squares vanish in float32."""

_CONSTANT = 1e-12
"""A variance of so many times the squared mean is rounding, not signal."""


class Moments(NamedTuple):
    """Moments over so many pooled elements (`size`); those of the bias are zero where there is none."""

    size: Array
    mean_u: Array
    mean_b: Array
    var_u: Array
    cov: Array
    var_b: Array


def wide(x: Array) -> Array:
    """In float32, or wider if it is."""
    return x.astype(drawing_dtype(x.dtype))


@functools.partial(jax.jit, static_argnums=2)
def moments(u: Array, bias: Array | None, axes: tuple[int, ...]) -> Moments:
    """Moments of u over these axes, and of a bias that has size 1 where it does not vary."""
    # First along the axes in which the bias is the same, and there in two passes, because squares of a large mean
    # would swamp the variance; then over what is left, the means and variances of each channel, which is little.
    u = wide(u)
    size = math.prod(u.shape[axis] for axis in axes)
    first = tuple(axis for axis in axes if bias is None or bias.shape[axis] == 1)
    if bias is None and len(first) > 1:
        first = first[:-1]  # sums along the last axis are slower
    second = tuple(axis for axis in axes if axis not in first)
    count = math.prod(u.shape[axis] for axis in first)
    means = jnp.sum(u, first, keepdims=True) / count
    centred = u - means
    within = jnp.sum(jnp.real(centred * centred.conj()), first, keepdims=True) / count
    if bias is None:
        (mean_u,) = _means([means], second)
        off = means - mean_u
        (var_u,) = _means([within + jnp.real(off * off.conj())], second)
        zero = jnp.zeros_like(var_u)
        found = (mean_u, jnp.zeros_like(mean_u), var_u, zero, zero)
    else:
        b = jnp.broadcast_to(wide(bias).astype(u.dtype), means.shape)
        mean_u, mean_b = _means([means, b], second)
        off, off_b = means - mean_u, b - mean_b
        squares = [within + jnp.real(off * off.conj()), jnp.real(off * off_b.conj()), jnp.real(off_b * off_b.conj())]
        var_u, cov, var_b = _means(squares, second)
        found = (mean_u, mean_b, var_u, cov, var_b)
    kept = [n for axis, n in enumerate(u.shape) if axis not in axes]
    return Moments(jnp.asarray(size, jnp.float32), *(jnp.broadcast_to(x.squeeze(axes), kept) for x in found))


def _means(arrays: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """Means over these axes, which stay with size 1; one reduction for all arrays, since each costs compile time."""
    zeros = [jnp.zeros((), x.dtype) for x in arrays]
    sums = lax.reduce(arrays, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], axes)
    count = math.prod(arrays[0].shape[axis] for axis in axes)
    return [lax.expand_dims(x, axes) / count for x in sums]


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
        a.mean_u + share * du,
        a.mean_b + share * db,
        pooled(a.var_u, b.var_u, du * jnp.conj(du)),
        pooled(a.cov, b.cov, du * jnp.conj(db)),
        pooled(a.var_b, b.var_b, db * jnp.conj(db)),
    )


def scaled(m: Moments, s: Array) -> Moments:
    """Moments of s·u and b."""
    return m._replace(mean_u=s * m.mean_u, var_u=s * s * m.var_u, cov=s * m.cov)


def std(m: Moments) -> Array:
    """Standard deviation of u + b."""
    return jnp.sqrt(jnp.maximum(m.var_u + 2 * m.cov + m.var_b, 0))


@jax.jit
def solve(m: Moments, target: Array) -> tuple[Array, Array]:
    """The smallest s > 0 with Var(s·u + b) = target², and flags; s = 1 where there is none."""
    a, c, d = m.var_u, m.cov, m.var_b - target * target
    finite = jnp.isfinite(a + c + d)
    dead = (a < _SMALLEST_VARIANCE) | (a < _CONSTANT * jnp.square(jnp.abs(m.mean_u)))
    discriminant = c * c - a * d
    # Each root in the form that does not cancel: one division by or of the sum of |c| and the square root.
    total = jnp.abs(c) + jnp.sqrt(jnp.maximum(discriminant, 0))
    grows = (d < 0) & (c <= 0)
    s = jnp.where(grows, total, jnp.abs(d)) / jnp.where(grows, a, total)
    exists = (d < 0) | ((d > 0) & (c < 0) & (discriminant >= 0))
    s = jnp.where(finite & ~dead & exists & (s > 0) & (s < jnp.inf), s, 1)
    # Without the barrier the compiler repeats all this wherever s is used.
    s = lax.optimization_barrier(s)  # type: ignore[no-untyped-call]
    silent = jnp.where((a == 0) & (m.mean_u == 0), ZERO, DEAD)
    flags = jnp.where(~finite, NOT_FINITE, jnp.where(dead, silent, jnp.where(exists, 0, NO_ROOT)))
    return s, flags.astype(jnp.int32)


def zeros_of(shape_tree: Any) -> Any:
    """Arrays of zeros with these shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape_tree)
