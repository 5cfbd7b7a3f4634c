"""Means and covariances of a layer's output u and its bias b, and the scale that gives s·u + b the variance wanted.

Var(s·u + b) = s² Var(u) + 2s Cov(u, b) + Var(b), a quadratic in s. Everything is accumulated in float32 or wider.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinit._dtypes import drawing_dtype
from jaxinit._typing import Array

DEAD = 1
NO_ROOT = 2
NOT_FINITE = 4
NOT_CONVERGED = 8
NOT_REPRODUCIBLE = 16
NOT_REACHED = 32

_SMALLEST_STD = 1e-18
"""Below it, squares vanish in float32."""

_CONSTANT = 1e-6
"""A standard deviation of so many times the mean is rounding, not signal."""


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


def moments(u: Array, bias: Array | None, axes: tuple[int, ...]) -> Moments:
    """Moments over these axes, in two passes: squares of a large mean would swamp the variance."""
    size = jnp.asarray(math.prod(u.shape[axis] for axis in axes), jnp.float32)
    u = wide(u)
    mean_u = jnp.mean(u, axes, keepdims=True)
    centred = u - mean_u
    var_u = _mean_product(centred, centred, axes)
    mean_u = mean_u.reshape(var_u.shape)
    if bias is None:
        zero = jnp.zeros_like(var_u)
        return Moments(size, mean_u, jnp.zeros_like(mean_u), var_u, zero, zero)
    b = wide(bias)
    mean_b = jnp.mean(b, axes, keepdims=True)
    centred_b = b - mean_b
    cov, var_b = _mean_product(centred, centred_b, axes), _mean_product(centred_b, centred_b, axes)
    return Moments(size, mean_u, mean_b.reshape(var_u.shape), var_u, cov, var_b)


def _mean_product(a: Array, b: Array, axes: tuple[int, ...]) -> Array:
    return jnp.mean(jnp.real(a * b.conj()), axes)


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


def solve(m: Moments, target: Array) -> tuple[Array, Array]:
    """The smallest s > 0 with Var(s·u + b) = target², and flags; s = 1 where there is none."""
    a, c, d = m.var_u, m.cov, m.var_b - target * target
    finite = jnp.isfinite(a) & jnp.isfinite(c) & jnp.isfinite(d)
    std_u = jnp.sqrt(a)
    dead = finite & ((std_u < _SMALLEST_STD) | (std_u < _CONSTANT * jnp.abs(m.mean_u)))
    discriminant = c * c - a * d
    root = jnp.sqrt(jnp.maximum(discriminant, 0))
    # Each root in the form that does not cancel: the sum of c and the square root is taken with equal signs.
    one = jnp.ones_like(a)
    positive = jnp.where(c > 0, -d / _nonzero(c + root), (root - c) / _nonzero(a))
    smaller_of_two = d / _nonzero(root - c)
    exists = (d < 0) | ((c < 0) & (discriminant >= 0) & (d > 0))
    s = jnp.where(d < 0, positive, smaller_of_two)
    exists &= jnp.isfinite(s) & (s > 0)
    s = jnp.where(finite & ~dead & exists, s, one)
    flags = jnp.where(~finite, NOT_FINITE, jnp.where(dead, DEAD, jnp.where(exists, 0, NO_ROOT)))
    return s, flags.astype(jnp.int32)


def _nonzero(x: Array) -> Array:
    return jnp.where(x == 0, jnp.ones_like(x), x)


def zeros_of(shape_tree: Any) -> Any:
    """Arrays of zeros with these shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape_tree)
