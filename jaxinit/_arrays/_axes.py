"""Axes and sizes: which axes of a weight are its input, output, batch and receptive field.

The layout is the one that Flax uses: a kernel of shape (*spatial, in, out) has `in_axis=-2` and
`out_axis=-1`; all other axes, except those of `batch_axis`, are its receptive field.
"""

import math
import operator
from collections.abc import Mapping, Set
from typing import NamedTuple

from jaxinit._checks import shown
from jaxinit._typing import Axis, Shape


class Layout(NamedTuple):
    """Non-negative axes by role, each tuple in ascending or given order, and the shape that they refer to."""

    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    batch_axes: tuple[int, ...]
    receptive_axes: tuple[int, ...]

    def size(self, axes: tuple[int, ...]) -> int:
        """The product of the sizes of these axes; 1 for no axes."""
        return math.prod(self.shape[axis] for axis in axes)

    @property
    def is_lookup_table(self) -> bool:
        """Whether rows are looked up: a matrix whose input axis is its output axis."""
        return bool(self.in_axes) and self.in_axes == self.out_axes


def canonical_shape(shape: Shape) -> tuple[int, ...]:
    """`shape` as a tuple of Python integers.

    Raises:
      TypeError: it is not a sequence of integers.
      ValueError: an entry is negative.
    """
    if type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape):
        return shape
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError as error:
        raise TypeError(
            f"shape must be a sequence of integers such as (128, 64), got {shape!r}; "
            "write (n,) for a vector of n entries"
        ) from error
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must have no negative entries, got {sizes}")
    return sizes


def canonical_axis(name: str, axis: Axis) -> int | tuple[int, ...]:
    """`axis` as a Python integer or a tuple of them, from any sequence or NumPy integers.

    Raises:
      TypeError: it is neither an integer nor a sequence of integers.
    """
    if type(axis) is int:
        return axis
    try:
        if isinstance(axis, (str, bytes, bool, Mapping, Set)):
            raise TypeError
        if hasattr(axis, "__index__"):
            return operator.index(axis)
        if any(isinstance(entry, bool) for entry in axis):
            raise TypeError
        return tuple(operator.index(entry) for entry in axis)
    except TypeError:
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {shown(axis)}") from None


def axis_indices(name: str, axis: Axis, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`axis` as a tuple of distinct axes in range(len(shape)).

    Raises:
      ValueError: an axis is out of range or named twice.
    """
    axis = canonical_axis(name, axis)
    axes = (axis,) if isinstance(axis, int) else axis
    rank = len(shape)
    if not all(-rank <= entry < rank for entry in axes):
        raise ValueError(f"{name}={axis} is out of range for the shape {shape} of {rank} dimension{'s' * (rank != 1)}")
    indices = tuple(entry % rank for entry in axes)
    if len(set(indices)) < len(indices):
        raise ValueError(f"{name}={axis} names an axis of the shape {shape} twice")
    return indices


def layout(shape: Shape, in_axis: Axis = -2, out_axis: Axis = -1, batch_axis: Axis = ()) -> Layout:
    """Sorts the axes of `shape` by role.

    Raises:
      ValueError: an axis is out of range or has two roles. The one exception is a matrix whose input and
        output axis are the same: a lookup table, as in Flax's Embed (`in_axis=-2, out_axis=0`).
    """
    shape = canonical_shape(shape)
    if len(shape) < 2 and in_axis == -2 and out_axis == -1:
        raise ValueError(
            f"the shape {shape} has no fan-in and fan-out: a weight needs an input axis and an output axis, "
            "so two dimensions or more. For a bias use zeros_init(), constant(0.1), lstm_bias() or "
            "chrono(); for other vectors normal() or uniform(), or name in_axis and out_axis"
        )
    in_axes = axis_indices("in_axis", in_axis, shape)
    out_axes = axis_indices("out_axis", out_axis, shape)
    batch_axes = axis_indices("batch_axis", batch_axis, shape)
    taken = {*in_axes, *out_axes, *batch_axes}
    receptive_axes = tuple(axis for axis in range(len(shape)) if axis not in taken)
    found = Layout(shape, in_axes, out_axes, batch_axes, receptive_axes)
    overlap = len(taken) < len(in_axes) + len(out_axes) + len(batch_axes)
    lookup_table = (
        in_axes == out_axes and len(in_axes) == 1 and len(receptive_axes) == 1 and in_axes[0] not in batch_axes
    )
    if overlap and not lookup_table:
        raise ValueError(
            f"in_axis={in_axis}, out_axis={out_axis} and batch_axis={batch_axis} must name different axes "
            f"of the shape {shape}; only a matrix may have in_axis equal to out_axis, namely the lookup table "
            "of an embedding"
        )
    return found
