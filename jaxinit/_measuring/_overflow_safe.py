"""Means and root mean squares of numbers whose squares float32 may not hold."""

import jax.numpy as jnp
from jax import lax

from jaxinit._arrays import drawing_dtype, with_automatic_axes
from jaxinit._stages import hosted
from jaxinit._typing import Array

_MOST = 4096
"""How many numbers can be added one after another without loss of precision."""


def real(x: Array) -> Array:
    """Real numbers of the size of x, in a precision that is enough for statistics."""
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    return x.astype(drawing_dtype(x.dtype))


@hosted(static_argnums=(1,))
def rms(x: Array, axes: tuple[int, ...]) -> Array:
    """The root mean square along some axes."""
    x = real(x)
    scale = divisor(jnp.max(jnp.abs(_some(x, axes)), axes, initial=0, keepdims=True))
    return (jnp.squeeze(scale, axes) * jnp.sqrt(jnp.mean((x * (1 / scale)) ** 2, axes))).astype(jnp.float32)


def size_of(value: Array) -> Array:
    """The root mean square of all numbers of a value; no gradient passes through it."""
    size: Array = with_automatic_axes(lambda x: rms(x, tuple(range(x.ndim))), lax.stop_gradient(value))
    return size


@hosted()
def mean_and_std(x: Array) -> tuple[Array, Array]:
    """The mean over all elements."""
    mean, size = totals([x / x.size, jnp.abs(x) / x.size])
    return mean.astype(jnp.float32), spread(x, mean, size)


def spread(x: Array, mean: Array, size: Array, first: tuple[int, ...] | None = None) -> Array:
    """The standard deviation, given the mean, and the mean of |x| to divide by."""
    scale = divisor(size)
    (squares,) = totals([((x - mean) * (1 / scale)) ** 2 / x.size], first)
    return (scale * jnp.sqrt(squares)).astype(jnp.float32)


def totals(arrays: list[Array], first: tuple[int, ...] | None = None) -> list[Array]:
    """The sums over all elements of arrays of one shape, along these axes first; by default along all but the last.

    There are few operations, since each takes time to compile: the second sums of all arrays are one reduction.
    """
    if first is None:
        first = tuple(range(arrays[0].ndim - 1))
    along = [jnp.sum(x, first) for x in arrays] if first else arrays
    if len(along) == 1 or along[0].size > _MOST:
        return [jnp.sum(x) for x in along]
    zeros = [jnp.zeros((), x.dtype) for x in along]
    axes = tuple(range(along[0].ndim))
    return list(lax.reduce(along, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], axes))


def divisor(size: Array) -> Array:
    """A size that is safe to divide by, even if it, or its reciprocal, is zero or infinite."""
    return jnp.where((size > 0) & jnp.isfinite(size), jnp.maximum(size, 1e-37), 1)


def _some(x: Array, axes: tuple[int, ...]) -> Array:
    """At least every sixteenth slice: their size is close enough to that of all slices to prevent overflow."""
    if not axes:
        return x
    longest = max(axes, key=lambda axis: x.shape[axis])
    length = x.shape[longest]
    return lax.slice_in_dim(x, 0, length, stride=min(16, max(length // 16, 1)), axis=longest)
