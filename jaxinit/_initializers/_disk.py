"""Complex draws that depend on the modulus alone: uniform on a disk, and normal truncated in modulus.

A modulus and an angle are drawn by inversion, from the two halves of the key as in JAX, so that the numbers
are JAX's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import random
from jaxinit._typing import Array


def uniform(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uniform on the disk of radius √2, on which E|z|² = 1."""
    key_modulus, key_angle = jax.random.split(key)
    modulus = jnp.sqrt(2 * random.uniform(key_modulus, shape, _real(dtype)))
    return _polar(modulus.astype(dtype), key_angle, shape, dtype)


def truncated_normal(key: Array, upper: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Standard complex normal given |z| < upper; `truncated_variance` is its E|z|²."""
    key_modulus, key_angle = jax.random.split(key)
    mass = 1 - jnp.exp(jnp.array(-(upper**2), dtype))
    below = mass * random.uniform(key_modulus, shape, _real(dtype)).astype(dtype)
    return _polar(jnp.sqrt(-jnp.log(1 - below)), key_angle, shape, dtype)


def truncated_variance(upper: float) -> float:
    r"""E|z|² of a standard complex normal given |z| < u: 1 - u² e^{-u²} / (1 - e^{-u²})."""
    tail = math.exp(-(upper**2))
    return 1 - upper**2 * tail / (1 - tail)


def _polar(modulus: Array, key_angle: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    angle = 2 * np.pi * random.uniform(key_angle, shape, _real(dtype)).astype(dtype)
    return modulus * jnp.exp(1j * angle)


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.complex128 else np.float32)
