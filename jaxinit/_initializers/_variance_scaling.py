"""Variance scaling: weights whose variance is scale / fan, so that signals keep their size through a layer.

LeCun, Glorot (Xavier) and He (Kaiming) are members of the family with a fixed scale, mode and distribution.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import random
from jaxinit._checks import check_choice, check_flag, check_integer, check_number
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._initializers._draws import scaled_normal, truncated_in_modulus, truncated_variance, uniform_on_disk
from jaxinit._numbers import Fans, check_dilation, fans
from jaxinit._typing import Array, Axis, DTypeLike, Scalar

_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
_DISTRIBUTIONS = ("truncated_normal", "normal", "uniform")
# The standard deviation of a standard normal truncated to (-2, 2), to the digits that JAX has.
_TRUNCATED_STDDEV = 0.87962566103423978


class VarianceScaling(Initializer):
    """The base of the family; a member fixes or asks for scale, mode and distribution."""

    scale: Any
    mode: Any
    distribution: Any
    in_axis: Axis
    out_axis: Axis
    batch_axis: Axis
    feature_group_count: int
    transpose: bool
    lhs_dilation: Axis

    def _check(self) -> None:
        check_number("scale", self.scale, nonnegative=True)
        check_choice("mode", self.mode, _MODES)
        check_choice("distribution", self.distribution, _DISTRIBUTIONS)
        check_integer("feature_group_count", self.feature_group_count, 1)
        check_flag("transpose", self.transpose)
        object.__setattr__(self, "lhs_dilation", check_dilation(self.lhs_dilation))

    def fans(self, shape: tuple[int, ...]) -> Fans:
        """Fan-in and fan-out of a weight of this shape, as this initializer counts them."""
        return fans(
            shape,
            self.in_axis,
            self.out_axis,
            self.batch_axis,
            feature_group_count=self.feature_group_count,
            transpose=self.transpose,
            lhs_dilation=self.lhs_dilation,
        )

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        variance = self._variance(shape, dtype)
        sqrt = jnp.sqrt if isinstance(variance, jax.Array) else np.sqrt
        if self.distribution == "normal":
            return scaled_normal(key, shape, dtype, sqrt(variance))
        is_complex = jnp.issubdtype(dtype, np.complexfloating)
        if self.distribution == "uniform":
            if is_complex:
                return uniform_on_disk(key, shape, dtype) * sqrt(variance)
            return random.uniform(key, shape, dtype, -1) * sqrt(dtype.type(3) * variance)
        if is_complex:
            stddev = sqrt(variance) / dtype.type(math.sqrt(truncated_variance(2.0)))
            return truncated_in_modulus(key, 2.0, shape, dtype) * stddev
        stddev = sqrt(variance) / dtype.type(_TRUNCATED_STDDEV)
        return random.truncated_normal(key, -2, 2, shape, dtype) * stddev

    def _variance(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        fan_in, fan_out = self.fans(shape)
        denominator = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
            "fan_geo_avg": (fan_in * fan_out) ** 0.5,
        }[self.mode]
        variance = self.scale / denominator
        return jnp.asarray(variance, dtype) if isinstance(variance, jax.Array) else dtype.type(variance)


@initializer
class variance_scaling(VarianceScaling):
    r"""Weights of mean zero and variance scale / n, with n the fan that `mode` names.

    .. math::
        \operatorname{Var} w = \frac{\text{scale}}{n}, \qquad
        n = \text{fan\_in},\; \text{fan\_out},\;
        \tfrac12(\text{fan\_in} + \text{fan\_out}) \text{ or } \sqrt{\text{fan\_in} \cdot \text{fan\_out}}

    "truncated_normal" truncates at two standard deviations and corrects the variance for it, for complex weights
    too (where JAX's variance is 1.9% too large); "uniform" is an interval around zero, or a disk.

    Args:
      scale: not negative; `jaxinit.gain(activation)**2` suits any activation. A JAX scalar may be traced.
      mode: "fan_in", "fan_out", "fan_avg" or "fan_geo_avg".
      distribution: "truncated_normal", "normal" or "uniform".
      in_axis: axis or axes of the input features.
      out_axis: axis or axes of the output features.
      batch_axis: axis or axes along which independent weights are stacked. All others are the receptive
        field.
      dtype: default dtype of the result.
      feature_group_count: groups of a grouped or depthwise convolution.
      transpose: whether the kernel is stored (*spatial, out, in), as by `transpose_kernel=True` in Flax.
      lhs_dilation: what Flax's ConvTranspose calls strides; see `jaxinit.fans`.

    Raises:
      TypeError, ValueError: when made, if the scale is negative or not a number, or the mode or distribution is
        unknown; when called, if the shape has fewer than two dimensions, or axes overlap or are out of
        range.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> gelu = jaxinit.variance_scaling(jaxinit.gain("gelu") ** 2, "fan_in", "normal")
      >>> gelu(jax.random.key(0), (128, 64)).shape
      (128, 64)

    Reference: He et al., 2015 (arXiv:1502.01852); Glorot & Bengio, 2010.
    """

    scale: Scalar
    mode: str
    distribution: str
    in_axis: Axis = -2
    out_axis: Axis = -1
    batch_axis: Axis = ()
    dtype: DTypeLike = None
    feature_group_count: int = dataclasses.field(default=1, kw_only=True)
    transpose: bool = dataclasses.field(default=False, kw_only=True)
    lhs_dilation: Axis = dataclasses.field(default=1, kw_only=True)
