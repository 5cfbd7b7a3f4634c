"""Normal, uniform and truncated-normal weights of a given scale, whatever the shape.

A fixed scale suits one width only: `normal(0.01)` lets signals vanish in a deep network and `normal(5.0)` lets
them explode or saturate. The families of variance scaling choose it from the shape.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxinit._arrays import as_scalar, random
from jaxinit._checks import check_number, check_ordered
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._initializers._draws import scaled_normal
from jaxinit._typing import Array, DTypeLike, Scalar


@initializer
class normal(Initializer):
    r"""Normal weights of mean zero.

    .. math:: w \sim N(0, \text{stddev}^2)

    Complex ones have E|w|² = stddev². In floats of fewer than 32 bits the draws are rounded from float32, where
    JAX's own take only 128 distinct values (bfloat16) and have no tails.

    Args:
      stddev: standard deviation, not negative; a JAX scalar may be traced.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: stddev is not a number, negative, infinite or NaN.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.normal(0.02)(jax.random.key(0), (2, 2)).shape
      (2, 2)
    """

    stddev: Scalar = 1e-2
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("stddev", self.stddev, nonnegative=True)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return scaled_normal(key, shape, dtype, as_scalar(self.stddev, dtype))


@initializer
class uniform(Initializer):
    r"""Uniform weights between `minval`, zero by default, and `scale`.

    .. math:: w \sim U[\text{minval}, \text{scale})

    Zero is JAX's convention; the symmetric interval of PyTorch and Keras is `uniform(b, minval=-b)`. In floats of fewer
    than 32 bits, rounding may return `scale` itself.

    Args:
      scale: upper end of the interval, not negative; a JAX scalar may be traced.
      dtype: default dtype of the result.
      minval: lower end of the interval; a JAX scalar may be traced.

    Raises:
      TypeError, ValueError: an end of the interval is not a number, infinite or NaN, or scale is negative.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> weights = jaxinit.uniform(0.5)(jax.random.key(0), (100,))
      >>> bool((weights >= 0).all() and (weights < 0.5).all())
      True
    """

    allowed = "real"

    scale: Scalar = 1e-2
    dtype: DTypeLike = None
    minval: Scalar = dataclasses.field(default=0.0, kw_only=True)

    def _check(self) -> None:
        check_number("scale", self.scale, nonnegative=True)
        check_number("minval", self.minval)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if isinstance(self.minval, float | int) and self.minval == 0:
            return random.uniform(key, shape, dtype) * as_scalar(self.scale, dtype)
        low = as_scalar(self.minval, dtype)
        return low + random.uniform(key, shape, dtype) * (as_scalar(self.scale, dtype) - low)


@initializer
class truncated_normal(Initializer):
    r"""Normal weights conditioned on an interval.

    .. math:: w = \text{stddev} \cdot z, \qquad z \sim N(0, 1) \text{ given lower} < z < \text{upper}

    As in JAX, `stddev` is that of the normal before truncation: with the default bounds the result has
    0.8796 times that standard deviation.

    Args:
      stddev: standard deviation before truncation, not negative; a JAX scalar may be traced.
      dtype: default dtype of the result.
      lower: lower bound, in standard deviations.
      upper: upper bound, in standard deviations.

    Raises:
      TypeError, ValueError: a hyperparameter is not a number or not finite, stddev is negative, or lower is not
        below upper.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> weights = jaxinit.truncated_normal(0.1)(jax.random.key(0), (1000,))
      >>> bool(abs(weights).max() < 0.2)
      True
    """

    allowed = "real"

    stddev: Scalar = 1e-2
    dtype: DTypeLike = None
    lower: Scalar = -2.0
    upper: Scalar = 2.0

    def _check(self) -> None:
        check_number("stddev", self.stddev, nonnegative=True)
        check_number("lower", self.lower)
        check_number("upper", self.upper)
        check_ordered("lower", self.lower, "upper", self.upper)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        draws = random.truncated_normal(key, self.lower, self.upper, shape, dtype)
        return draws * as_scalar(self.stddev, dtype)
