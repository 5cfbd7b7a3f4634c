"""Dtypes: what an initializer may return, and the dtype it draws in before rounding.

JAX samples half-precision normals from a handful of bits (128 distinct values in bfloat16, tails cut at 2.9),
so floats of fewer than 32 bits are drawn in float32 here and rounded once at the end.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import shown
from jaxinit._typing import Array, DTypeLike, Scalar

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_COMPLEX64, _COMPLEX128 = np.dtype(np.complex64), np.dtype(np.complex128)
_KINDS: dict[str, tuple[type, str]] = {
    "inexact": (np.inexact, "floating or complex"),
    "real": (np.floating, "floating"),
    "complex": (np.complexfloating, "complex"),
}


def canonical_dtype(dtype: DTypeLike) -> np.dtype[Any] | None:
    """The NumPy dtype that a scalar class, a name or a dtype means; None stays None.

    Raises:
      TypeError: it does not name a dtype.
    """
    if dtype is None or dtype is float:  # JAX also treats Python's float as its default
        return None
    if isinstance(dtype, np.dtype):
        return dtype
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or issubclass(found.type, np.void):  # NumPy turns an empty dictionary into a dtype without fields
        raise TypeError(f"dtype must be a dtype such as 'float32' or jnp.bfloat16, got {shown(dtype)}")
    return found


def output_dtype(init: object, dtype: DTypeLike, allowed: str) -> np.dtype[Any]:
    """The dtype of the result: the default float for None, 64 bits only where JAX has them enabled.

    Raises:
      TypeError: it is not a dtype, or not one of those allowed ("any", "inexact", "real" or "complex").
    """
    if dtype is None or dtype is float:
        return _default(allowed)
    wanted = canonical_dtype(dtype)
    assert wanted is not None
    if not _is_allowed(wanted, allowed):
        kind = _KINDS[allowed][1]
        raise TypeError(
            f"{init} makes {kind} numbers, got dtype {wanted.name}; "
            f"pass a dtype such as jnp.{'complex64' if allowed == 'complex' else 'float32'} and convert the result"
        )
    if wanted.itemsize < 8:
        return wanted
    given = np.dtype(jax.dtypes.canonicalize_dtype(wanted))
    if given != wanted and dtype not in (int, complex):
        warnings.warn(
            f"dtype {wanted.name} needs jax.config.update('jax_enable_x64', True); the result is {given.name}",
            UserWarning,
            stacklevel=3,
        )
    return given


@functools.cache
def _is_allowed(dtype: np.dtype[Any], allowed: str) -> bool:
    if allowed == "any":
        return True
    # float8_e8m0fnu, a format for scales, is floating but cannot hold negative numbers.
    return bool(jnp.issubdtype(dtype, _KINDS[allowed][0]) and float(jnp.finfo(dtype).min) < 0)


def _default(allowed: str) -> np.dtype[Any]:
    """JAX's default float, or its complex counterpart if only complex dtypes are allowed."""
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if allowed == "complex":
        return _COMPLEX128 if wide else _COMPLEX64
    return _FLOAT64 if wide else _FLOAT32


@functools.cache
def drawing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype to draw in: float32 for every smaller float, otherwise the dtype itself."""
    small = jnp.issubdtype(dtype, np.floating) and jnp.finfo(dtype).bits < 32
    return _FLOAT32 if small else dtype


def round_to(values: Array, dtype: np.dtype[Any]) -> Array:
    """The values in this dtype; values that are too large become its largest, never infinity or NaN."""
    if values.dtype == dtype:
        return values
    if jnp.issubdtype(dtype, np.floating) and jnp.issubdtype(values.dtype, np.floating):
        limits = jnp.finfo(dtype)
        values = jnp.clip(values, values.dtype.type(limits.min), values.dtype.type(limits.max))
    return values.astype(dtype)


def as_scalar(value: Scalar, dtype: np.dtype[Any]) -> Any:
    """A hyperparameter as a scalar of this dtype, in NumPy unless it is a JAX scalar, which saves a dispatch."""
    if isinstance(value, jax.Array):
        return jnp.asarray(value, dtype)
    if abs(value) > _largest(dtype):
        raise ValueError(f"{value} does not fit into {dtype.name}; use a smaller number or a wider dtype")
    return dtype.type(value)


@functools.cache
def _largest(dtype: np.dtype[Any]) -> float:
    return float(jnp.finfo(dtype).max) if jnp.issubdtype(dtype, np.inexact) else float("inf")
