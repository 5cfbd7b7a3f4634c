"""The random draws of this package: the numbers of `jax.random`, in one place.

Every random initializer draws through the functions below, in a dtype of 32 bits or more. They return
what `jax.random` returns, bit for bit; on CPU, with Threefry keys, two to three times faster (`_threefry`).
If a release of JAX derives other words from a key (a comparison of a few words shows it), JAX's own draws are used.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit._arrays._eager import outside_traces
from jaxinit._arrays._threefry import first_words, floats_from_one_to_two, stored
from jaxinit._typing import Array, DTypeLike, Scalar

# Smaller arrays are left to jax.random: for them, the boundary around the hash costs as much as the hash
# (benchmarks/random_draws.py).
_FEWEST = 256


def normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Standard normal draws; for a complex dtype E|z|² = 1."""
    draws: Array = _normal(key, shape, dtype)
    return draws


def stored_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Like `normal`, for draws that are read several times: XLA's CPU fusion does not repeat them in each reader."""

    def draw(key: Array) -> Array:
        return normal(key, shape, dtype)

    draws: Array = lax.platform_dependent(key, cpu=functools.partial(stored, draw), default=draw)
    return draws


def uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike, minval: Scalar = 0.0, maxval: Scalar = 1.0) -> Array:
    """Uniform draws on [minval, maxval), real dtypes only."""
    draws: Array = _uniform(key, minval, maxval, shape, dtype)
    return draws


def truncated_normal(key: Array, lower: Scalar, upper: Scalar, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Standard normal draws conditioned on (lower, upper), real dtypes only."""
    draws: Array = _truncated_normal(key, lower, upper, shape, dtype)
    return draws


# The choice is made inside jit: an eager call then costs one dispatch, and the flags that the choice depends on
# are in the key of jit's own cache. The platform is decided only when the program is lowered.


@jax.jit(static_argnums=(1, 2))
def _normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return _choose(
        functools.partial(_cpu_normal, shape, np.dtype(dtype)),
        lambda key: jax.random.normal(key, shape, dtype),
        _has_fast_draw(key, shape, dtype),
        key,
    )


@jax.jit(static_argnums=(3, 4))
def _uniform(key: Array, minval: Array, maxval: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return _choose(
        functools.partial(_cpu_uniform, shape, np.dtype(dtype)),
        lambda key, minval, maxval: jax.random.uniform(key, shape, dtype, minval, maxval),
        _has_fast_draw(key, shape, dtype, minval, maxval),
        key,
        minval,
        maxval,
    )


@jax.jit(static_argnums=(3, 4))
def _truncated_normal(key: Array, lower: Array, upper: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return _choose(
        functools.partial(_cpu_truncated_normal, shape, np.dtype(dtype)),
        lambda key, lower, upper: jax.random.truncated_normal(key, lower, upper, shape, dtype),
        _has_fast_draw(key, shape, dtype, lower, upper),
        key,
        lower,
        upper,
    )


def _choose(cpu: Callable[..., Array], default: Callable[..., Array], has_fast_draw: bool, *operands: Array) -> Array:
    if not has_fast_draw:
        return default(*operands)
    draws: Array = lax.platform_dependent(*operands, cpu=cpu, default=default)
    return draws


def _has_fast_draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike, *parameters: Array) -> bool:
    return (
        getattr(jax.config, "jax_threefry_partitionable")  # noqa: B009 (attributes unknown to mypy)
        and jax.random.key_impl(key) == "threefry2x32"
        and jax.random.key_data(key).shape == (2,)
        and _is_wide_inexact(np.dtype(dtype))
        and all(isinstance(size, int | np.integer) for size in shape)  # with jax.export they may be symbolic
        and _FEWEST <= math.prod(shape) < 2**32
        and all(np.ndim(parameter) == 0 for parameter in parameters)
        and _has_words_of_jax(64 if np.finfo(dtype).bits == 64 else 32)
    )


@functools.cache
def _has_words_of_jax(bits: int) -> bool:
    """Whether the installed JAX derives from a key the same random words as `_threefry`, of 32 or 64 bits."""
    count = 5

    def compare() -> bool:
        with jax.enable_x64(bits == 64), jax.threefry_partitionable(True):  # type: ignore[no-untyped-call]
            key = jax.random.key(0x0123456789ABCDEF if bits == 64 else 0x01234567, impl="threefry2x32")
            draw = jax.jit(lambda key: jax.random.bits(key, (count,), np.dtype(f"uint{bits}")))
            theirs = np.asarray(draw(key))
            return np.array_equal(first_words(np.asarray(jax.random.key_data(key)), count, bits), theirs)

    return outside_traces(compare)


def words_of(key: Array) -> Array | None:
    """The two words of a typed or raw key from which NumPy derives the same words as JAX; None for other keys."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    kind = str(jax.random.key_impl(key)) if typed else getattr(jax.config, "jax_default_prng_impl")  # noqa: B009
    return words if kind == "threefry2x32" and words.shape == (2,) and _has_words_of_jax(32) else None


def _is_wide_inexact(dtype: np.dtype[Any]) -> bool:
    # With 64-bit types disabled, jax.random narrows them and warns.
    wide = dtype.name in ("float32", "float64", "complex64", "complex128")
    return wide and jax.dtypes.canonicalize_dtype(dtype) == dtype


# The operations of jax.random, one by one, including the shapes of intermediate results. If the same formula is
# written differently, XLA simplifies it differently, and some program rounds it differently.


def _cpu_uniform(shape: tuple[int, ...], dtype: np.dtype[Any], key: Array, minval: Array, maxval: Array) -> Array:
    low = lax.broadcast_to_rank(lax.convert_element_type(minval, dtype), len(shape))
    high = lax.broadcast_to_rank(lax.convert_element_type(maxval, dtype), len(shape))
    unit = floats_from_one_to_two(jax.random.key_data(key), shape, dtype) - np.array(1, dtype)
    return jnp.maximum(low, unit * (high - low) + low)


def _cpu_normal(shape: tuple[int, ...], dtype: np.dtype[Any], key: Array) -> Array:
    if dtype.kind == "c":
        real_key, imag_key = jax.random.split(key)
        component = np.finfo(dtype).dtype
        real = _cpu_normal(shape, component, real_key).astype(dtype)
        imag = _cpu_normal(shape, component, imag_key).astype(dtype)
        return (real + 1j * imag) / np.array(np.sqrt(2), dtype)
    # u is uniform on the open interval (-1, 1), where Φ⁻¹((1 + u) / 2) = √2 erf⁻¹(u) is finite.
    above_minus_one = np.nextafter(np.array(-1, dtype), np.array(0, dtype), dtype=dtype)
    u = _cpu_uniform(shape, dtype, key, jnp.asarray(above_minus_one), jnp.ones((), dtype))
    return lax.mul(np.array(np.sqrt(2), dtype), lax.erf_inv(u))


def _cpu_truncated_normal(
    shape: tuple[int, ...], dtype: np.dtype[Any], key: Array, lower: Array, upper: Array
) -> Array:
    lower, upper = lax.convert_element_type(lower, dtype), lax.convert_element_type(upper, dtype)
    sqrt2 = np.array(np.sqrt(2), dtype)
    u = _cpu_uniform(shape, dtype, key, lax.erf(lower / sqrt2), lax.erf(upper / sqrt2))
    # Rounding must not carry a draw out of the open interval. nextafter has no derivative.
    smallest = lax.nextafter(lax.stop_gradient(lower), np.array(np.inf, dtype))
    largest = lax.nextafter(lax.stop_gradient(upper), np.array(-np.inf, dtype))
    return jnp.clip(lax.mul(sqrt2, lax.erf_inv(u)), smallest, largest)
