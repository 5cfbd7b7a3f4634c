"""Equations that sum rows of a value, or take the maximum, channel by channel, and where its features are afterwards.

Pooling, messages that are added up at the nodes of a graph, and the mean over a sequence are linear in the output of a
layer, or monotone, and keep its features separate. A sum that is divided by the number of its terms is a mean.
"""

import functools
import math
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple, TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._origin import FOREIGN, Factor, Origin
from jaxinit._reading._rules import cuts, rule_of

_OVER_AXES = ir.family("reduce_sum", "reduce_max", "reduce_min")
_ALONG_AXIS = ir.family("cumsum", "cummax", "cummin")
_OVER_WINDOWS = ir.family("reduce_window_sum", "reduce_window_max", "reduce_window_min")
_SCATTERS = ir.family("scatter", "scatter_add", "scatter_max", "scatter_min")
_fft_p = ir.primitive("fft")
_PARTS = ir.family("real", "imag")
_Consumers: TypeAlias = Mapping[ir.Atom, Sequence[ir.Equation | None]]


class Rows(NamedTuple):
    """The state of a value that is followed.

    Attributes:
      features: the dimensions of the output along which its features are.
      terms: how many terms each element of the output is the sum of, if that is the same for all.
    """

    features: frozenset[int]
    terms: int = 1


def rows_together(equation: ir.Equation, position: int, features: Set[int]) -> Rows | None:
    """The state of input number `position`, with features along these dimensions; None for other equations."""
    primitive, params, shape = equation.primitive, equation.params, equation.inputs[position].shape
    if primitive is ir.dot_general_p:
        return _product(equation, position, features)
    if primitive in _SCATTERS:
        # An array that others are written into, or added to, is not moved.
        return Rows(frozenset(features)) if position == 0 else _scattered(equation, features) if position == 2 else None
    if position != 0:
        return None
    if primitive in _OVER_AXES:
        axes = params["axes"]
        if not features.isdisjoint(axes):
            return None
        count = math.prod(shape[a] for a in axes) if primitive is ir.reduce_sum_p else 1
        return Rows(frozenset(d - sum(a < d for a in axes) for d in features), count)
    if primitive in _ALONG_AXIS:
        return None if params["axis"] in features else Rows(frozenset(features))
    if primitive in _OVER_WINDOWS:
        window = params["window_dimensions"]
        return Rows(frozenset(features), math.prod(window)) if all(window[d] == 1 for d in features) else None
    if primitive is _fft_p:
        first = len(shape) - len(params["fft_lengths"])
        return Rows(frozenset(features)) if all(d < first for d in features) else None
    return Rows(frozenset(features)) if primitive in _PARTS else None


def _product(equation: ir.Equation, position: int, features: Set[int]) -> Rows | None:
    """A product with other data, which contracts rows."""
    (contracted, batched) = equation.params["dimension_numbers"]
    if not contracted[position] or not features.isdisjoint(contracted[position]):
        return None
    free = [
        [d for d in range(len(a.shape)) if d not in (*contracted[i], *batched[i])]
        for i, a in enumerate(equation.inputs)
    ]
    first = len(batched[0]) + (len(free[0]) if position == 1 else 0)
    dimensions = {d: i for i, d in enumerate(batched[position])} | {d: first + i for i, d in enumerate(free[position])}
    return Rows(frozenset(dimensions[d] for d in features))


def _scattered(equation: ir.Equation, features: Set[int]) -> Rows | None:
    """Updates that are added up at some positions of another value, or written there."""
    numbers = equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(equation.inputs[0].shape)) if d not in gone]
    dimensions = dict(zip(numbers.update_window_dims, kept, strict=True))
    return Rows(frozenset(dimensions[d] for d in features)) if features <= dimensions.keys() else None


def moved_features(equation: ir.Equation, output: int, features: Set[int]) -> frozenset[int] | None:
    """Where features are after an equation has moved, cut or copied elements; None if they are mixed with others."""
    shape = equation.inputs[0].shape
    if equation.primitive is ir.gather_p:
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        kept = dict(zip((d for d in range(len(shape)) if d not in gone), numbers.offset_dims, strict=True))
        whole = features <= kept.keys() and all(sizes[d] == shape[d] for d in features)
        return frozenset(kept[d] for d in features) if whole else None
    if equation.primitive in (ir.pad_p, ir.dynamic_slice_p):
        return frozenset(features)
    parts = cuts(equation)
    move = rule_of(equation).move(equation) if parts is None else parts[output]
    origin = move and move(Origin.of_leaf(0, shape))
    return None if origin is None else _dimensions_of(origin.dims, frozenset(features))


@functools.lru_cache(maxsize=256)
def _dimensions_of(dims: tuple[tuple[Factor, ...], ...], features: frozenset[int]) -> frozenset[int] | None:
    """The dimensions of a rearranged value that correspond to these axes, if nothing else is along them."""
    axes = [{f.axis for f in dim if f.axis != FOREIGN} for dim in dims]
    found = frozenset(d for d, own in enumerate(axes) if own & features)
    return found if all(axes[d] <= features for d in found) else None


def division_into_mean(output: ir.Atom, count: int, consumers: _Consumers) -> ir.Equation | None:
    """The equation that divides a sum by the number of its terms, if nothing else reads the sum."""
    readers = consumers.get(output, [])
    while len(readers) == 1 and readers[0] is not None and rule_of(readers[0]).rearranges:
        readers = consumers.get(readers[0].outputs[0], [])
    reader = readers[0] if len(readers) == 1 else None
    return reader if reader is not None and divides_by(reader, count) else None


def divides_by(equation: ir.Equation, count: int) -> bool:
    """Whether an equation divides a value by this number, or multiplies it by the inverse."""
    numbers = [x.value for x in equation.inputs if isinstance(x, ir.Constant) and not x.shape and ir.is_known(x)]
    if len(numbers) != 1 or equation.primitive not in (ir.div_p, ir.mul_p):
        return False
    factor = complex(numbers[0]) if equation.primitive is ir.mul_p else 1 / complex(numbers[0] or 1)
    return math.isclose(abs(factor) * count, 1, rel_tol=1e-2)
