"""The random draws of this package: the numbers of `jax.random`, asked for in one place.

Every random initializer draws through the three functions below, in a dtype of 32 bits or more.
"""

import jax

from jaxinit._typing import Array, DTypeLike, Scalar


def normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Standard normal draws; for a complex dtype E|z|² = 1."""
    return jax.random.normal(key, shape, dtype)


def uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike, minval: Scalar = 0.0, maxval: Scalar = 1.0) -> Array:
    """Uniform draws on [minval, maxval), real dtypes only."""
    return jax.random.uniform(key, shape, dtype, minval, maxval)


def truncated_normal(key: Array, lower: Scalar, upper: Scalar, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Standard normal draws conditioned on (lower, upper), real dtypes only."""
    return jax.random.truncated_normal(key, lower, upper, shape, dtype)
