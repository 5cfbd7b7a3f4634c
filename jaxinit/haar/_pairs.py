"""Two standard normals from each Threefry hash: the draws of the samplers of this package's Haar matrices.

`jax.random` takes one number from the two words of a hash; the numbers of a Haar matrix are this package's own,
so both words are used, by Box & Muller's transform (1958): with u and t uniform on (0, 1),

    √(−2 ln u) cos 2πt  and  √(−2 ln u) sin 2πt

are independent standard normals.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit import _random
from jaxinit._threefry import stored, threefry2x32
from jaxinit._typing import Array, DTypeLike


def normal_pairs(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Array, Array]:
    """Two independent arrays of standard normals; for a complex dtype E|z|² = 1. Both are kept in memory on CPU."""
    dtype = np.dtype(dtype)
    if dtype.itemsize // (1 + (dtype.kind == "c")) != 4 or not _is_threefry(key) or math.prod(shape) >= 2**32:
        draws = _random.stored_normal(key, (2, *shape), dtype)
        return draws[0], draws[1]
    if dtype.kind == "c":
        first, second = (_stored_complex(k, shape) * dtype.type(math.sqrt(0.5)) for k in jax.random.split(key))
        return first, second
    pair = _stored_complex(key, shape)
    return pair.real, pair.imag


def _is_threefry(key: Array) -> bool:
    return jax.random.key_impl(key) == "threefry2x32" and jax.random.key_data(key).shape == (2,)


def _stored_complex(key: Array, shape: tuple[int, ...]) -> Array:
    draw = functools.partial(_complex_normal, shape)
    pair: Array = lax.platform_dependent(key, cpu=functools.partial(stored, draw), default=draw)
    return pair


def _complex_normal(shape: tuple[int, ...], key: Array) -> Array:
    """One standard normal in the real and one in the imaginary part: one array, so that the hash is computed once."""
    first, second = threefry2x32(jax.random.key_data(key), shape)
    radius = jnp.sqrt(-2 * jnp.log(_fraction(first)))
    # The angle is a quarter of the circle, named by two bits, and a part of it, from −π/4 to π/4.
    cosine, sine = _cosine_and_sine((_fraction(second << np.uint32(2)) - np.float32(0.5)) * np.float32(math.pi / 2))
    quarter = second >> np.uint32(30)
    radius = jnp.where(quarter >= 2, -radius, radius)
    turned = quarter % 2 == 1
    return lax.complex(jnp.where(turned, -sine, cosine) * radius, jnp.where(turned, cosine, sine) * radius)


def _fraction(word: Array) -> Array:
    """The upper 23 bits of a word as the middle of one of 2²³ equal parts of (0, 1)."""
    return (word >> np.uint32(9)).astype(np.int32).astype(np.float32) * np.float32(2**-23) + np.float32(2**-24)


def _cosine_and_sine(angle: Array) -> tuple[Array, Array]:
    """Their series, to float32's rounding for |angle| ≤ π/4; XLA's CPU compiler does not vectorise its own."""
    square = angle * angle
    cosine, sine = jnp.ones_like(angle), jnp.ones_like(angle)
    for power in (8, 6, 4, 2):
        cosine = 1 - cosine * square * np.float32(1 / (power * (power - 1)))
        sine = 1 - sine * square * np.float32(1 / (power * (power + 1)))
    return cosine, angle * sine
