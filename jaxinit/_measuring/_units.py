"""How the units of a layer differ: whether they are all equal and stay so, and how far they are from orthogonal.

Units that start equal become different if their gradients differ. But unless they are zero, they initially have the
same output, and later layers see one number. A layer without a gradient may be waiting for a zero layer
above that is about to move, such as a readout or a branch that starts at zero. So it is not counted if some layer of
zeros has a gradient that differs over inputs and over units.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinit._reading import Factor, View, Weight, in_order_of_leaf, part_of, view
from jaxinit._stages import hosted
from jaxinit._typing import Array

_COMPARED = 32
"""How many units are used when they are compared with one another."""

_SAME = 1e-3
"""Deviations of this share of the size of a weight or gradient are rounding."""
_LOOKED_AT = {"in": 64, "out": 16}
"""How many inputs and units are compared, evenly spaced, and how many entries of all other axes."""
_OTHERS = 4


def variety(leaf: Array, weight: Weight) -> tuple[Array, Array] | None:
    """How far a weight, or its gradient, varies over its units and over its inputs, relative to its size, by slice.

    None where the roles of its axes are not known, and for lookups; 1 along an axis of size one.
    """
    axes = view(weight)
    if axes is None:
        return None
    return _variety(part_of(leaf, weight), axes, weight.stack)


@hosted(static_argnums=(1, 2))
def _variety(part: Array, axes: View, stack: tuple[Factor, ...]) -> tuple[Array, Array]:
    x = _some(part.reshape(axes.shape), axes)
    rest = tuple(d for d in range(x.ndim) if d not in axes.stack_axes)
    order = sorted(stack, key=lambda f: (f.axis, -f.stride))
    turned = [order.index(f) for f in stack]

    def off_first(along: Sequence[int]) -> Array:
        first = x
        for axis in along:
            first = lax.slice_in_dim(first, 0, 1, axis=axis)
        return jnp.abs(x - first)

    def largest(a: list[Array], b: list[Array]) -> list[Array]:
        return [jnp.maximum(x, y) for x, y in zip(a, b, strict=True)]

    # In one reduction, since each takes time to compile.
    compared = [jnp.abs(x), off_first(axes.out_axes), off_first(axes.in_axes)]
    peak, *found = lax.reduce(compared, [jnp.zeros((), y.dtype) for y in compared], largest, rest)

    def of_size(found: Array, along: Sequence[int]) -> Array:
        if all(x.shape[d] == 1 for d in along):
            return jnp.ones(peak.size, jnp.float32)
        share = jnp.transpose(found / jnp.where(peak > 0, peak, 1), turned)
        return in_order_of_leaf(share, stack).reshape(-1).astype(jnp.float32)

    return of_size(found[0], axes.out_axes), of_size(found[1], axes.in_axes)


def _some(x: Array, axes: View) -> Array:
    for along, most in ((axes.out_axes, _LOOKED_AT["out"]), (axes.in_axes, _LOOKED_AT["in"])):
        for axis in along:
            x = lax.slice_in_dim(x, 0, x.shape[axis], stride=-(-x.shape[axis] // most), axis=axis)
    for axis in set(range(x.ndim)) - {*axes.out_axes, *axes.in_axes, *axes.stack_axes}:
        x = lax.slice_in_dim(x, 0, x.shape[axis], stride=-(-x.shape[axis] // _OTHERS), axis=axis)
    return x


def equal_units(
    weight_norm: Array, gradient_norm: Array, weights_over_units: Array, over_units: Array, over_inputs: Array
) -> Array:
    """For each row, whether its units are equal and stay so, or all have the same output though they are not zero.

    Args:
      weight_norm, gradient_norm: of each row.
      weights_over_units: the variety of each weight over its units.
      over_units, over_inputs: the variety of its gradient.
    """
    moved = gradient_norm > 0
    about_to_move = (weight_norm == 0) & moved & (over_units > _SAME) & (over_inputs > _SAME)
    same = weights_over_units < _SAME
    equal = same & (over_units < _SAME) & (moved | ~jnp.any(about_to_move))
    return equal | (same & (weight_norm > 0))


def leaning(leaf: Array, weight: Weight) -> Array | None:
    """How far the units of a weight, or its inputs if these are fewer, are from orthogonal, slice by slice.

    The largest product of two of them, as a share of their mean square; None where the roles of axes are not known.
    """
    axes = view(weight)
    if axes is None or axes.batch_axes:
        return None
    return _leaning(part_of(leaf, weight), axes, weight.stack)


@hosted(static_argnums=(1, 2))
def _leaning(part: Array, axes: View, stack: tuple[Factor, ...]) -> Array:
    x = part.reshape(axes.shape)
    inside = [d for d in range(x.ndim) if d not in axes.stack_axes and d not in axes.out_axes]
    sizes = [math.prod(x.shape[d] for d in along) for along in (inside, axes.out_axes)]
    x = jnp.transpose(x, (*axes.stack_axes, *inside, *axes.out_axes)).reshape(-1, *sizes).astype(jnp.float32)
    x = x[:, :, :_COMPARED] if sizes[0] >= sizes[1] else jnp.swapaxes(x[:, :_COMPARED], 1, 2)
    x = x / jnp.maximum(jnp.max(jnp.abs(x), (1, 2), keepdims=True), 1e-37)
    gram = jnp.abs(jnp.swapaxes(x, 1, 2) @ x)
    own = jnp.eye(gram.shape[-1], dtype=bool)[None]
    square = jnp.sum(jnp.where(own, gram, 0), (1, 2)) / gram.shape[-1]
    off = jnp.max(jnp.where(own, 0, gram), (1, 2))
    share = off / jnp.where(square > 0, square, 1)
    order = sorted(stack, key=lambda f: (f.axis, -f.stride))
    share = jnp.transpose(share.reshape([f.size for f in order]), [order.index(f) for f in stack])
    return in_order_of_leaf(share, stack).reshape(-1)
