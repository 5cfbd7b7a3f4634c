"""Sparse weights: each unit has a fixed number of connections, however many inputs there are.

So a unit's pre-activation has the same size at any width, and units differ more from one another than with
dense weights (Martens 2010).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import as_scalar, layout, random
from jaxinit._checks import check_integer, check_number
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, Axis, DTypeLike, Scalar


@initializer
class sparse(Initializer):
    r"""Exactly `num_nonzero` normal weights into each output unit, at positions drawn without replacement.

    .. math:: w \sim N(0, \text{stddev}^2) \text{ at } k \text{ of the fan\_in positions, } 0 \text{ elsewhere}

    The variance of a unit's pre-activation is num_nonzero · stddev² times the mean square of the inputs: 15 with the
    defaults, which the paper chose to drive tanh and sigmoid units into their curved range.

    Args:
      num_nonzero: how many weights of each output unit are not zero.
      stddev: their standard deviation, not negative; a JAX scalar may be traced.
      in_axis: axis or axes of the input features; all axes but these, the output's and the batch's are the
        receptive field and count as inputs.
      out_axis: axis or axes of the output features.
      batch_axis: axis or axes along which independent weights are stacked.
      dtype: default dtype of the result.
      sparsity: instead of `num_nonzero` the share of each unit's weights that are zero, from 0 to 1, rounded up to
        whole weights. `torch.nn.init.sparse_(w, s, std)` counts it over the outputs of each input, for its w of shape
        (out, in); its counterpart is `sparse(stddev=std, in_axis=-1, out_axis=-2, sparsity=s)`.

    Raises:
      TypeError, ValueError: when made, on a number of weights below one, a sparsity outside 0 to 1, both of them, or a
        bad stddev; when called, on more weights than inputs, or axes that do not fit the shape.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> weights = jaxinit.sparse(3)(jax.random.key(0), (20, 4))
      >>> (weights != 0).sum(axis=0)
      Array([3, 3, 3, 3], dtype=int32)
      >>> (jaxinit.sparse(sparsity=0.9)(jax.random.key(0), (20, 4)) != 0).sum(axis=0)
      Array([2, 2, 2, 2], dtype=int32)

    Reference: Martens, Deep learning via Hessian-free optimization, 2010.
    """

    num_nonzero: int = 15
    stddev: Scalar = 1.0
    in_axis: Axis = -2
    out_axis: Axis = -1
    batch_axis: Axis = ()
    dtype: DTypeLike = None
    sparsity: float | None = dataclasses.field(default=None, kw_only=True)

    def _check(self) -> None:
        check_integer("num_nonzero", self.num_nonzero, 1)
        check_number("stddev", self.stddev, nonnegative=True)
        if self.sparsity is None:
            return
        check_number("sparsity", self.sparsity, nonnegative=True)
        if not isinstance(self.sparsity, int | float) or self.sparsity > 1:
            raise ValueError(f"sparsity must be a number from 0 to 1, the share of zeros, got {self.sparsity!r}")
        if self.num_nonzero != 15:
            raise ValueError(f"pass num_nonzero or sparsity, not both: got {self.num_nonzero} and {self.sparsity}")

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        axes = layout(shape, self.in_axis, self.out_axis, self.batch_axis)
        if axes.is_lookup_table:
            raise ValueError(f"{self!r} needs an input axis that is not also its output axis")
        input_axes = (*axes.receptive_axes, *axes.in_axes)
        unit_axes = (*axes.batch_axes, *axes.out_axes)
        inputs, units = axes.size(input_axes), axes.size(unit_axes)
        count = self.num_nonzero if self.sparsity is None else inputs - math.ceil(self.sparsity * inputs)
        if count > inputs:
            raise ValueError(
                f"num_nonzero={self.num_nonzero} exceeds the {inputs} inputs of a unit in the shape {shape}; "
                "lower it for this layer"
            )
        key_places, key_weights = jax.random.split(key)
        # The largest of independent uniforms are at positions drawn without replacement.
        scores = random.uniform(key_places, (units, inputs), np.dtype(np.float32))
        _, places = jax.lax.top_k(scores, count)
        weights = random.normal(key_weights, places.shape, dtype) * as_scalar(self.stddev, dtype)
        rows = jnp.zeros((units, inputs), dtype).at[jnp.arange(units)[:, None], places].set(weights)
        order = (*unit_axes, *input_axes)
        sorted_rows = rows.reshape(tuple(shape[axis] for axis in order))
        return jnp.transpose(sorted_rows, np.argsort(order).tolist())
