"""Means and root mean squares of numbers whose squares float32 may not hold."""

import jax.numpy as jnp
from jax import lax

from jaxinit._dtypes import drawing_dtype
from jaxinit._typing import Array


def real(x: Array) -> Array:
    """Real numbers of the size of x, in a precision to compute statistics in."""
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    return x.astype(drawing_dtype(x.dtype))


def rms(x: Array, axes: tuple[int, ...]) -> Array:
    """The root mean square along some axes."""
    x = real(x)
    scale = size_of(_some(x, axes), axes)
    return (jnp.squeeze(scale, axes) * jnp.sqrt(jnp.mean((x * (1 / scale)) ** 2, axes))).astype(jnp.float32)


def mean_and_std(x: Array) -> tuple[Array, Array]:
    """Over all elements."""
    mean = jnp.mean(x)
    return mean.astype(jnp.float32), rms(x - mean, tuple(range(x.ndim)))


def size_of(x: Array, axes: tuple[int, ...]) -> Array:
    """Something of the size of x to divide by, also where x is zero, infinite, or its reciprocal is."""
    peak = jnp.max(jnp.abs(x), axes, initial=0, keepdims=True)
    return jnp.where((peak > 0) & jnp.isfinite(peak), jnp.maximum(peak, 1e-37), 1)


def _some(x: Array, axes: tuple[int, ...]) -> Array:
    """At least every sixteenth slice: the size of some tells that of all to far less than a factor of 10^19."""
    if not axes:
        return x
    longest = max(axes, key=lambda axis: x.shape[axis])
    length = x.shape[longest]
    return lax.slice_in_dim(x, 0, length, stride=min(16, max(length // 16, 1)), axis=longest)
