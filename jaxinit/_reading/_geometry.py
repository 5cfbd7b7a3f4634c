"""The operations that form a layer, and the role of each dimension of the weight in them.

A layer is a `dot_general`, a `ragged_dot` or a convolution between data and a weight, or a lookup of rows of a weight.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxinit import _program as ir
from jaxinit._numbers import fans
from jaxinit._reading._dependence import Dependence

OPERATIONS = frozenset({ir.dot_general_p, ir.ragged_dot_p, ir.conv_p, ir.gather_p, ir.dynamic_slice_p})
"""The primitives of layers."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One operation seen from its weight.

    Attributes:
      kind: "dense", "einsum" (batched, grouped, picked by data, or contracting several dimensions), "conv" or "embed".
      in_dims, out_dims, batch_dims: dimensions of the weight that are contracted, that become features of the output,
        and along which there are independent weights. All others are the receptive field.
      placed: dimension of the weight → dimension of the output, for out_dims and those batch_dims that it has.
      fan_in, fan_out: as `jaxinit.fans` counts them; a lookup reads one row, so its fan-in is 1.
      receptive_field: number of taps of a convolution.
      feature_group_count: groups of a convolution.
    """

    kind: str
    in_dims: tuple[int, ...]
    out_dims: tuple[int, ...]
    batch_dims: tuple[int, ...]
    placed: dict[int, int]
    fan_in: int | float
    fan_out: int | float
    receptive_field: int = 1
    feature_group_count: int = 1


def weight_operand(equation: ir.Equation, arguments: Sequence[Dependence]) -> tuple[int, Geometry] | None:
    """Which input of an equation is a weight, and the roles of its dimensions.

    A matrix that grows with no leaf, because it is divided by its own norm, is a weight nevertheless.
    """
    if equation.primitive not in OPERATIONS:
        return None
    for is_weight in (_grows, _is_normalized):
        for i, value in enumerate(arguments):
            others = [x for j, x in enumerate(arguments) if j != i]
            if value.data or not is_weight(value) or not any(x.data for x in others):
                continue
            shape = geometry_of(equation, i, others[0])
            if shape is not None and (is_weight is _grows or (shape.in_dims and shape.out_dims)):
                return i, shape
    return None


def _grows(value: Dependence) -> bool:
    return any(1 in part.degrees.values() for part in value.parts)


def _is_normalized(value: Dependence) -> bool:
    return bool(value.degrees) and value.segments is None and not any(d != 0 for d in value.degrees.values())


def geometry_of(equation: ir.Equation, weight: int, other: Dependence) -> Geometry | None:
    """The geometry of an equation whose input number `weight` is a weight; None if it is not a layer."""
    if equation.primitive is ir.dot_general_p:
        return _product(equation, weight, other, equation.params["dimension_numbers"])
    if equation.primitive is ir.ragged_dot_p and weight == 1:
        return _grouped_product(equation, other)
    if equation.primitive is ir.conv_p and weight == 1 and equation.params["batch_group_count"] == 1:
        return _convolution(equation)
    if equation.primitive is ir.gather_p and weight == 0:
        return _lookup(equation)
    if equation.primitive is ir.dynamic_slice_p and weight == 0:
        return _slice_lookup(equation)
    return None


def _product(
    equation: ir.Equation, weight: int, other: Dependence, numbers: Any, groups: tuple[int, ...] = ()
) -> Geometry | None:
    """The geometry of a product with these dimension numbers; rows of data choose along the dimensions `groups`."""
    (contracted, batched) = numbers
    in_dims, batch_dims = tuple(contracted[weight]), tuple(batched[weight])
    shape, data_shape = equation.inputs[weight].shape, equation.inputs[1 - weight].shape
    if not in_dims:
        return None
    out_dims = tuple(d for d in range(len(shape)) if d not in in_dims + batch_dims + groups)
    data_free = len(data_shape) - len(contracted[1 - weight]) - len(batch_dims)
    first = len(batch_dims) + (data_free if weight == 1 else 0)
    placed = {d: first + i for i, d in enumerate(out_dims)} | {d: i for i, d in enumerate(batch_dims)}
    fan_in, fan_out = (math.prod(shape[d] for d in dims) for dims in (in_dims, out_dims))
    if len(in_dims) == 1 and other.pattern.hot in contracted[1 - weight]:
        return Geometry("embed", in_dims, out_dims, batch_dims, placed, 1, fan_out)
    batch_dims += groups
    kind = "dense" if len(in_dims) == 1 and len(out_dims) <= 1 and not batch_dims else "einsum"
    return Geometry(kind, in_dims, out_dims, batch_dims, placed, fan_in, fan_out)


def _grouped_product(equation: ir.Equation, other: Dependence) -> Geometry | None:
    """A matrix for each group of the rows of data; other kinds of groups multiply weights with themselves."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    groups = tuple(numbers.rhs_group_dimensions)
    return _product(equation, 1, other, numbers.dot_dimension_numbers, groups) if groups else None


def _convolution(equation: ir.Equation) -> Geometry:
    numbers, shape = equation.params["dimension_numbers"], equation.inputs[1].shape
    out_dim, in_dim, *spatial = numbers.rhs_spec
    groups, dilation = equation.params["feature_group_count"], equation.params["lhs_dilation"]
    fan_in, fan_out = fans(
        shape, in_dim, out_dim, feature_group_count=groups, lhs_dilation=tuple(dilation) if spatial else 1
    )
    receptive_field = math.prod(shape[d] for d in spatial)
    placed = {out_dim: numbers.out_spec[1]}
    return Geometry("conv", (in_dim,), (out_dim,), (), placed, fan_in, fan_out, receptive_field, groups)


def _lookup(equation: ir.Equation) -> Geometry | None:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out_rank = equation.inputs[0].shape, len(equation.outputs[0].shape)
    # A batch of dynamic slices also lists the dimensions that it keeps whole.
    rows = tuple(d for d in numbers.start_index_map if d in numbers.collapsed_slice_dims or sizes[d] != shape[d])
    single = all(sizes[d] == 1 for d in rows)
    if (
        ir.fills(equation)
        or not rows
        or not (single or len(numbers.offset_dims) < out_rank)
        or numbers.operand_batching_dims
    ):
        return None
    kept = [d for d in range(len(shape)) if d not in numbers.collapsed_slice_dims]
    placed = dict(zip(kept, numbers.offset_dims, strict=True))
    out_dims = tuple(d for d in kept if d not in rows)
    return Geometry("embed", rows, out_dims, (), {d: placed[d] for d in out_dims}, 1, _size(shape, out_dims))


def _slice_lookup(equation: ir.Equation) -> Geometry | None:
    shape, sizes = equation.inputs[0].shape, equation.params["slice_sizes"]
    rows = tuple(d for d, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size)
    if not rows or any(sizes[d] != 1 for d in rows):
        return None
    out_dims = tuple(d for d in range(len(shape)) if d not in rows)
    return Geometry("embed", rows, out_dims, (), {d: d for d in out_dims}, 1, _size(shape, out_dims))


def _size(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[d] for d in dims)
