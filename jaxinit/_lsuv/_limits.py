"""The scales that a weight's dtype can hold: float16 and float8 have a smaller range than scales may need."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxinit._arrays import with_automatic_axes
from jaxinit._reading import Factor, Weight, axis_factors, in_order_of_leaf, part_of
from jaxinit._typing import Array, DTypeLike

_LEVELS = 16
"""How many representable steps the largest entry must be above zero, so that rounding keeps the variance to 1%."""


class Limits(NamedTuple):
    """The smallest and the largest scale that the dtype of a weight can hold."""

    smallest: Array
    largest: Array

    def hold(self, scale: Array) -> Array:
        """Whether each scale is between them."""
        return (scale >= self.smallest) & (scale <= self.largest)


def is_narrow(dtype: DTypeLike) -> bool:
    """Whether a floating dtype has a smaller range than float32."""
    return bool(jnp.issubdtype(dtype, jnp.floating)) and float(jnp.finfo(dtype).max) < 1e38


def limits_of(
    weights: Iterable[Weight], factors: Mapping[Weight, tuple[Factor, ...]], leaves: Sequence[Any]
) -> dict[Weight, Limits]:
    """The limits of the weights in narrow dtypes, stacked dimensions first."""

    def limits(leaves: Sequence[Any]) -> dict[Weight, Limits]:
        found = {}
        for weight in weights:
            dtype = jnp.result_type(leaves[weight.leaf])
            if not is_narrow(dtype):
                continue
            info = jnp.finfo(dtype)
            largest = _largest_entries(part_of(leaves[weight.leaf], weight), weight, factors[weight])
            alive = largest > 0
            divisor = jnp.where(alive, largest, 1)
            smallest = jnp.float32(info.smallest_subnormal) * _LEVELS
            found[weight] = Limits(
                # A scale of one is always possible, however small the entries are.
                jnp.minimum(jnp.where(alive, smallest / divisor, 0), 1),
                jnp.where(alive, jnp.float32(info.max) / divisor, jnp.inf),
            )
        return found

    bounded: dict[Weight, Limits] = with_automatic_axes(limits, list(leaves))
    return bounded


def _largest_entries(part: Array, weight: Weight, factors: tuple[Factor, ...]) -> Array:
    """The largest absolute value among the elements that share a scale, stacked dimensions first."""
    known = [*weight.stack, *factors]
    axes = [f for a, (start, stop) in enumerate(weight.region) for f in axis_factors(a, stop - start, known)]
    split = jnp.abs(part.astype(jnp.float32)).reshape([f.size for f in axes])
    largest = jnp.max(split, [i for i, f in enumerate(axes) if f not in known], initial=0.0)
    order = [f for f in axes if f in known]
    return in_order_of_leaf(jnp.transpose(largest, [order.index(f) for f in known]), known)
