"""Draws with the rounding, and in the order, of JAX's own initializers, so that the numbers are JAX's.

JAX has multiplied normal draws by their scale in two orders, (√2 · erf⁻¹(u)) · scale and (√2 · scale) · erf⁻¹(u), which
differ in the last bit from release to release. Drawing a few numbers shows which order the installed release uses,
so version numbers need not be known.

Complex draws on a disk, or truncated in modulus, depend on the modulus alone: a modulus and an angle are drawn by
inversion, from the two halves of the key.
"""

import functools
import math
from collections.abc import Iterator
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

    def read() -> bool:
        jaxpr = jax.make_jaxpr(lambda key: jax.nn.initializers.normal(0.3)(key, shape, dtype))(jax.random.key(0))
        names = list(_names(jaxpr.jaxpr))
        if "erf_inv" not in names:  # another way of drawing: compare numbers
            key = jax.random.key(0)
            theirs = jax.nn.initializers.normal(0.3)(key, shape, dtype)
            return bool((theirs == _scale_first(key, shape, dtype, dtype.type(0.3))).all())
        return names[names.index("erf_inv") :].count("mul") == 1

    return outside_traces(read)


def _names(jaxpr: Any) -> Iterator[str]:
    """The names of the primitives of a program, with calls inlined."""
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is None:
            yield eqn.primitive.name
        else:
            yield from _names(getattr(inner, "jaxpr", inner))


def uniform_on_disk(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uniform on the disk of radius √2, on which E|z|² = 1."""
    key_modulus, key_angle = jax.random.split(key)
    modulus = jnp.sqrt(2 * random.uniform(key_modulus, shape, _real(dtype)))
    return _polar(modulus.astype(dtype), key_angle, shape, dtype)


def truncated_in_modulus(key: Array, upper: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
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
