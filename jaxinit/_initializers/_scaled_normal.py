"""Normal draws times a scale, rounded as JAX's own initializers round them.

JAX has multiplied in two orders, (√2 · erf⁻¹(u)) · scale and (√2 · scale) · erf⁻¹(u), which differ in the last bit
from release to release. Which one is installed is found out by drawing a few numbers, so that no version number
has to be known.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import outside_traces, random
from jaxinit._typing import Array


def scaled_normal(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any) -> Array:
    """Normal draws of this standard deviation, a scalar of the dtype; for complex ones E|z|² = scale²."""
    if jnp.issubdtype(dtype, np.complexfloating) or not _scale_goes_first():
        return random.normal(key, shape, dtype) * scale
    return _scale_first(key, shape, dtype, scale)


def _scale_first(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any) -> Array:
    above_minus_one = np.nextafter(dtype.type(-1), dtype.type(0))
    draws = random.uniform(key, shape, dtype, above_minus_one, dtype.type(1))
    return (dtype.type(np.sqrt(2)) * scale) * jax.lax.erf_inv(draws)


@functools.cache
def _scale_goes_first() -> bool:
    """Whether JAX's `normal` initializer multiplies the scale by √2 before the draws."""
    shape, dtype = (64,), np.dtype(np.float32)

    def compare() -> bool:
        key = jax.random.key(0)
        theirs = jax.nn.initializers.normal(0.3)(key, shape, dtype)
        return bool((theirs == _scale_first(key, shape, dtype, dtype.type(0.3))).all())

    return outside_traces(compare)
