"""SIREN: uniform weights for networks whose activation is sin(omega · x)."""

import math
from typing import Any

import numpy as np

from jaxinit._arrays import as_scalar, random
from jaxinit._checks import check_flag, check_number
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._numbers import fans
from jaxinit._typing import Array, Axis, DTypeLike, Scalar


@initializer
class siren(Initializer):
    r"""Uniform weights for sinusoidal networks, where a layer computes sin(omega · (Wx + b)).

    .. math::
        w \sim U\left(-\tfrac1n, \tfrac1n\right) \text{ in the first layer}, \qquad
        w \sim U\left(-\tfrac{\sqrt{6/n}}{\omega}, \tfrac{\sqrt{6/n}}{\omega}\right) \text{ in the others}

    with n the fan-in. Pre-activations of the second layer are then standard normal, and in deeper layers their
    standard deviation settles at 0.893, the root of q = 1 - exp(-2q).

    Args:
      omega: frequency factor of the activation, positive; a JAX scalar may be traced.
      first: whether the layer is the one that reads the coordinates.
      in_axis, out_axis, batch_axis: as in `variance_scaling`.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: omega is not a positive number; when called, on axes that do not fit the shape.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> weights = jaxinit.siren(first=True)(jax.random.key(0), (2, 64))
      >>> bool(abs(weights).max() <= 0.5)
      True

    Reference: Sitzmann et al., 2020 (arXiv:2006.09661).
    """

    allowed = "real"

    omega: Scalar = 30.0
    first: bool = False
    in_axis: Axis = -2
    out_axis: Axis = -1
    batch_axis: Axis = ()
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("omega", self.omega, positive=True)
        check_flag("first", self.first)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        fan_in, _ = fans(shape, self.in_axis, self.out_axis, self.batch_axis)
        bound = 1 / fan_in if self.first else math.sqrt(6 / fan_in) / self.omega
        return random.uniform(key, shape, dtype, -1) * as_scalar(bound, dtype)
