"""Elements looked up or added at given indices, such as messages along a graph's edges that are added at its nodes.

Each position holds the sum of as many elements as there are indices that name it. If the indices are known numbers,
they are counted; otherwise each index names a random position, so the counts are binomial.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._elements import others_beside
from jaxinit._moments._moves import cut, reshaped, resized
from jaxinit._moments._samples import CHANCE, Samples, aligned, of_array
from jaxinit._moments._streams import COUNT, Streams
from jaxinit._moments._sums import mean_of

_ADD = ir.primitive("scatter_add")
SCATTERS = ir.family("scatter", "scatter_add")
INDEXED = SCATTERS | {ir.gather_p}
"""Primitives that depend on the numbers of indices."""
_LEVELS = 8
"""How many different counts are distinguished."""


def gathered(streams: Streams, equation: ir.Equation, operand: Samples) -> Samples:
    """Slices of data from positions that are looked up; any two of them are different ones."""
    numbers, shape = equation.params["dimension_numbers"], equation.outputs[0].shape
    picked, batched = (list(map(int, x)) for x in (numbers.collapsed_slice_dims, numbers.operand_batching_dims))
    for d, size in enumerate(equation.params["slice_sizes"]):
        if d not in (*picked, *batched):
            operand = cut(streams, operand, d, 0, size)
    source = dict(zip(map(int, numbers.offset_dims), _others(operand, picked, batched), strict=True))
    of_indices = [d for d in range(len(shape)) if d not in source]
    source |= {of_indices[i]: d for d, i in zip(batched, numbers.start_indices_batching_dims, strict=True)}
    looked_up = [d for d in range(len(shape)) if d not in source]
    kept = sorted(source)
    found = _with_last(operand, [source[d] for d in kept], picked)
    # The positions come last, then where the output has them.
    sizes = [shape[d] for d in looked_up]
    found = resized(found, len(kept), math.prod(sizes))
    found = reshaped(streams, found, (*(shape[d] for d in kept), *sizes))
    order = [*kept, *looked_up]
    back = [order.index(d) for d in range(len(shape))]
    values = found.values.transpose([0, *(a for d in back for a in found.axes(d))])
    return dataclasses.replace(found, values=values, factors=tuple(found.factors[d] for d in back))


def _others(x: Samples, *dims: Sequence[int]) -> list[int]:
    return [d for d in range(len(x.factors)) if not any(d in own for own in dims)]


def _with_last(x: Samples, kept: Sequence[int], last: Sequence[int]) -> Samples:
    """Some dimensions, with all others joined into one at the end."""
    order = [*kept, *last]
    values = x.values.transpose([0, *(a for d in order for a in x.axes(d))])
    factors = *(x.factors[d] for d in kept), sum((x.factors[d] for d in last), ())
    return dataclasses.replace(x, values=values, factors=factors).joined(len(kept))


class _Layout(NamedTuple):
    """The dimensions of a scatter.

    Attributes:
      named: the dimensions of the operand along which indices name a position, one after the other.
      batches: the other dimensions that the indices have as well → those of the indices.
      source: dimension of the operand → that of the updates, for those that are not named.
      summed: the dimensions of the updates along which one index follows another.
    """

    named: tuple[int, ...]
    batches: dict[int, int]
    source: dict[int, int]
    summed: tuple[int, ...]


def scattered(
    streams: Streams, equation: ir.Equation, inputs: Sequence[Samples], indices: np.ndarray | None
) -> Samples | None:
    """The result of a scatter; None if it writes windows that are smaller than the operand.

    Args:
      streams: of random numbers.
      equation: the scatter, which adds updates or writes them.
      inputs: the operand, the indices and the updates.
      indices: their numbers, if they are known.
    """
    layout, shape = _layout(equation), equation.outputs[0].shape
    if layout is None:
        return None
    first, places = layout.named[0], math.prod(shape[d] for d in layout.named)
    operand = reshaped(streams, inputs[0], (*shape[:first], places, *shape[layout.named[-1] + 1 :]))
    counts = _counts(equation, layout, indices)
    pairs = _at_two_places(streams, _in_order(inputs[2], layout), first, places)

    def mean(size: int) -> Samples:
        """The result for this many elements at a position."""
        *lengths, last = pairs.values.shape[1:]
        flat = pairs.values.reshape(len(pairs.values), -1, last)
        found = flat[..., 0] if last == 1 or size == 1 else mean_of(streams, flat, size)
        return dataclasses.replace(pairs, values=found.reshape(len(found), *lengths), factors=pairs.factors[:-1])

    levels = _levels(counts.values) if equation.primitive is _ADD else [1]
    (old, number, *means), factors = aligned([operand, counts, *map(mean, levels)])
    if equation.primitive is _ADD:
        level = np.abs(number[..., None] - np.array(levels)).argmin(-1)
        values = old + number * sum(np.where(level == i, m, 0) for i, m in enumerate(means))
    else:
        values = np.where(number > 0, means[0], old)
    marks = operand.marks | pairs.marks | counts.marks | streams.mark()
    return reshaped(streams, Samples(values, factors, marks, operand.known and pairs.known), shape)


def _layout(equation: ir.Equation) -> _Layout | None:
    numbers = equation.params["dimension_numbers"]
    operand, indices, updates = (atom.shape for atom in equation.inputs)
    named = tuple(sorted(map(int, numbers.scatter_dims_to_operand_dims)))
    if not named or named != tuple(sorted(map(int, numbers.inserted_window_dims))):
        return None
    if named != tuple(range(named[0], named[0] + len(named))) or 0 in updates:
        return None
    windows = tuple(map(int, numbers.update_window_dims))
    along = dict(enumerate(d for d in range(len(updates)) if d not in windows))
    batched = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    batches = {int(d): int(i) for d, i in batched.items()}
    rest = [d for d in range(len(operand)) if d not in named and d not in batches]
    source = dict(zip(rest, windows, strict=True))
    if any(operand[d] != updates[source[d]] for d in rest):
        return None
    summed = tuple(d for i, d in along.items() if i not in batches.values())
    assert len(along) == len(indices) - 1
    return _Layout(named, batches, source | {d: along[i] for d, i in batches.items()}, summed)


def _counts(equation: ir.Equation, layout: _Layout, indices: np.ndarray | None) -> Samples:
    """How many indices name a position, with all positions along one dimension; of size one without indices."""
    shape, first = equation.outputs[0].shape, layout.named[0]
    others = [d for d in range(len(shape)) if d not in layout.named]
    wide = [shape[d] if d in layout.batches else 1 for d in others]
    sizes = [shape[d] for d in layout.named]
    places = math.prod(sizes)
    if indices is None:
        count = math.prod(equation.inputs[2].shape[d] for d in layout.summed)
        # The same for all scatters of these sizes, such as that of messages and that of their number.
        drawn = np.random.default_rng([count, places]).binomial(count, 1 / places, (COUNT, 2))
        factors = tuple((n,) if n != 1 else () for n in (*wide[:first], places, *wide[first:]))
        lengths = [2 if i == first else 1 for i, own in enumerate(factors) if own]
        return Samples(drawn[:, : 2 if places > 1 else 1].reshape(COUNT, *lengths).astype(float), factors, CHANCE)
    batched = [layout.batches[d] for d in others if d in layout.batches]
    columns = np.moveaxis(indices, [*batched, -1], range(-1 - len(batched), 0))
    columns = columns.reshape(-1, *(shape[d] for d in others if d in layout.batches), indices.shape[-1])
    by_dim = dict(zip(equation.params["dimension_numbers"].scatter_dims_to_operand_dims, columns.T, strict=True))
    named = [by_dim[d] for d in layout.named]
    inside = np.all([(x >= 0) & (x < n) for x, n in zip(named, sizes, strict=True)], 0)
    place = np.ravel_multi_index([np.clip(x, 0, n - 1) for x, n in zip(named, sizes, strict=True)], sizes)
    # One row for each batch, and one more position for indices that are out of range.
    rows = np.where(inside, place, places).T.reshape(len(columns), -1).T
    found = np.array([np.bincount(row, minlength=places + 1)[:places] for row in rows])
    return of_array(np.moveaxis(found.reshape(*wide, places), -1, first).astype(float))


def _in_order(updates: Samples, layout: _Layout) -> Samples:
    """The updates with the dimensions of the operand that are not named, and one for all that are added."""
    found = _with_last(updates, [layout.source[d] for d in sorted(layout.source)], layout.summed)
    if found.factors[-1]:
        return found
    return dataclasses.replace(found, values=found.values[..., None], factors=(*found.factors[:-1], (1,)))


def _at_two_places(streams: Streams, elements: Samples, dimension: int, places: int) -> Samples:
    """Elements, and others at another position, along a new dimension."""
    axis = 1 + sum(map(len, elements.factors[:dimension]))
    values = elements.values
    own: tuple[int, ...] = ()
    if places > 1:
        values = np.stack([values, others_beside(streams, values, values.ndim - 1)], axis)
        own = (places,)
    factors = (*elements.factors[:dimension], own, *elements.factors[dimension:])
    return dataclasses.replace(elements, values=values, factors=factors)


def _levels(counts: np.ndarray) -> list[int]:
    """A few counts that represent all of them."""
    found = np.unique(counts[counts > 0])
    if len(found) > _LEVELS:
        found = np.unique(np.quantile(counts[counts > 0], (np.arange(_LEVELS) + 0.5) / _LEVELS).round())
    # Of a mixture of counts some are fractions.
    return sorted({max(1, round(float(n))) for n in found}) or [1]
