"""Primitives that move, cut and join elements, on samples.

Two parts of one value, such as its halves or the value and a shifted copy, are different elements of it. The first
part uses the elements that represent the value, the second uses them in exchanged places, and further parts use
elements of other samples.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._elements import ALIKE, correlation, others_beside
from jaxinit._moments._samples import CHANCE, Samples, aligned, of_array, rolled
from jaxinit._moments._streams import COUNT, Streams


def _factors(shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((n,) if n != 1 else () for n in shape)


def _broadcast(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand, shape = inputs[0], equation.params["shape"]
    factors = list(_factors(shape))
    lengths: list[list[int]] = [[1] * len(f) for f in factors]
    for d, target in enumerate(equation.params["broadcast_dimensions"]):
        if operand.factors[d]:
            factors[target] = operand.factors[d]
            lengths[target] = [operand.values.shape[a] for a in operand.axes(d)]
    values = operand.values.reshape(len(operand.values), *(n for own in lengths for n in own))
    return dataclasses.replace(operand, values=values, factors=tuple(factors))


def _transpose(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand, order = inputs[0], equation.params["permutation"]
    axes = [0, *(a for d in order for a in operand.axes(d))]
    factors = tuple(operand.factors[d] for d in order)
    return dataclasses.replace(operand, values=operand.values.transpose(axes), factors=factors)


def _squeeze(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    dropped = {d % len(inputs[0].factors) for d in equation.params["dimensions"]}
    return dataclasses.replace(inputs[0], factors=tuple(f for d, f in enumerate(inputs[0].factors) if d not in dropped))


def _reshape(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    return reshaped(streams, inputs[0], equation.outputs[0].shape)


def reshaped(streams: Streams, operand: Samples, shape: Sequence[int]) -> Samples:
    """The same elements in another shape: dimensions that are joined keep their factors, others are split."""
    if math.prod(shape) <= 1:
        return dataclasses.replace(operand, factors=((),) * len(shape))
    values, left = operand.values, [f for own in operand.factors for f in own]
    factors: list[tuple[int, ...]] = []
    axis = 1
    for size in shape:
        own: list[int] = []
        missing = size
        while missing > 1:
            if missing % left[0] == 0:
                own.append(left.pop(0))
                missing //= own[-1]
                axis += 1
            elif left[0] % missing == 0:
                values = _parted(streams, values, axis)
                left[0] //= missing
                own.append(missing)
                missing = 1
                axis += 1
            else:
                # Dimensions that share no factors: any two elements represent all.
                return _flattened(streams, operand, shape)
        factors.append(tuple(own))
    return dataclasses.replace(operand, values=values, factors=tuple(factors))


def _parted(streams: Streams, values: np.ndarray, axis: int) -> np.ndarray:
    """Two axes in place of one; its two elements are at different positions along both, as in `Samples.joined`.

    So when the axis is joined again, what was computed from the parts matches the elements that it came from.
    """
    if values.shape[axis] == 1:
        return np.expand_dims(values, axis)
    others = others_beside(streams, values, axis)
    first, second = (np.take(x, [0], axis) for x in (values, others))
    third, fourth = (np.take(x, [1], axis) for x in (others, values))
    return np.stack([np.concatenate([first, third], axis), np.concatenate([second, fourth], axis)], axis)


def _flattened(streams: Streams, operand: Samples, shape: Sequence[int]) -> Samples:
    whole = dataclasses.replace(operand, factors=(tuple(f for own in operand.factors for f in own),)).joined(0)
    factors = _factors(shape)
    values = whole.values
    axis = 1
    for _ in range(sum(map(len, factors)) - 1):
        values = _parted(streams, values, axis)
        axis += 1
    return dataclasses.replace(operand, values=values, factors=factors)


def cut(streams: Streams, operand: Samples, dimension: int, start: int, size: int) -> Samples:
    """`size` elements along a dimension from some position on; parts from other positions are other elements."""
    length = operand.shape[dimension]
    if size == length:
        return operand
    factors = operand.factors[dimension]
    # One of the parts that were folded along the dimension: what they share along the rest of it is kept.
    folded = len(factors) > 1 and size == length // factors[0] and start % size == 0
    operand = operand if folded else operand.joined(dimension)
    axis = operand.axes(dimension)[0]
    number = max(round(start / size), 1) if start else 0
    values = operand.values
    if values.shape[axis] > 1:
        if correlation(values, axis) < ALIKE:
            operand = dataclasses.replace(operand, marks=streams.part_mark(operand.marks, number))
        values = np.flip(values, axis) if number % 2 else values
        values = rolled(values, number // 2)
    if size > 1 and not folded:
        return operand.with_dimension(dimension, values, (size,))
    return operand.with_dimension(dimension, np.take(values, 0, axis), factors[1:] if folded else ())


def resized(operand: Samples, dimension: int, size: int) -> Samples:
    """The same elements for a dimension that becomes shorter, or longer."""
    if size == operand.shape[dimension]:
        return operand
    operand = operand.joined(dimension)
    values = operand.values
    if size > 1:
        if not operand.factors[dimension]:
            values = np.expand_dims(values, 1 + sum(map(len, operand.factors[:dimension])))
        return operand.with_dimension(dimension, values, (size,))
    return operand.with_dimension(dimension, np.take(values, 0, operand.axes(dimension)[0]), ())


def _slice(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand = inputs[0]
    starts, shape = equation.params["start_indices"], equation.outputs[0].shape
    for d, (start, size) in enumerate(zip(starts, shape, strict=True)):
        operand = cut(streams, operand, d, start, size)
    return operand


def _dynamic_slice(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand = inputs[0]
    for d, size in enumerate(equation.outputs[0].shape):
        start = inputs[1 + d].values
        operand = cut(streams, operand, d, int(np.clip(start.reshape(-1)[0], 0, None)), size)
    return operand


def _split(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> list[Samples]:
    axis, start, found = equation.params["axis"], 0, []
    for size in equation.params["sizes"]:
        found.append(cut(streams, inputs[0], axis, start, size))
        start += size
    return found


def _unstack(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> list[Samples]:
    axis = equation.params["axis"]
    parts = [cut(streams, inputs[0], axis, i, 1) for i in range(len(equation.outputs))]
    return [dataclasses.replace(x, factors=x.factors[:axis] + x.factors[axis + 1 :]) for x in parts]


def mixed(parts: Sequence[Samples], shares: Sequence[int], dimension: int) -> Samples:
    """A value whose elements come from several parts, each part in proportion to its size along a dimension."""
    own = (sum(shares),)
    parts = [
        joined.with_dimension(dimension, _with_axis(joined, dimension), own) for joined in _joined(parts, dimension)
    ]
    arrays, factors = aligned(parts)
    if all(len(a) == 1 and a.size == 1 and a == arrays[0].reshape(-1)[0] for a in arrays):
        return Samples(arrays[0], factors, known=all(x.known for x in parts))
    axis = 1 + sum(map(len, factors[:dimension]))
    chosen = _selector(tuple(shares)).reshape(COUNT, *(2 if a == axis else 1 for a in range(1, arrays[0].ndim)))
    values, marks = arrays[0], 0
    for i, (array, part) in enumerate(zip(arrays, parts, strict=True)):
        values = np.where(chosen == i, array, values)
        marks |= part.marks
    return Samples(values, factors, marks | CHANCE, all(x.known for x in parts))


def _joined(parts: Sequence[Samples], dimension: int) -> list[Samples]:
    return [x.joined(dimension) for x in parts]


def _with_axis(x: Samples, dimension: int) -> np.ndarray:
    """Samples with an axis for a dimension, if it had none."""
    if x.factors[dimension]:
        return x.values
    return np.expand_dims(x.values, 1 + sum(map(len, x.factors[:dimension])))


def _selector(shares: tuple[int, ...]) -> np.ndarray:
    """For each sample and each of two positions, which part the element is from; equal wherever shares agree."""
    total, drawn = sum(shares), np.random.default_rng(list(shares))
    first = drawn.permutation(np.arange(COUNT) * total // COUNT)
    second = (first + drawn.integers(1, total, COUNT)) % total
    return np.searchsorted(np.cumsum(shares), np.stack([first, second], 1), side="right")


def _concatenate(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    d = equation.params["dimension"]
    inputs = [x for x, atom in zip(inputs, equation.inputs, strict=True) if math.prod(atom.shape)]
    if len(inputs) == 1:
        return inputs[0]
    return mixed(inputs, [x.shape[d] for x in inputs], d)


def with_size_one(x: Samples, dimension: int) -> Samples:
    """The same with one dimension more, of size one."""
    return dataclasses.replace(x, factors=(*x.factors[:dimension], (), *x.factors[dimension:]))


def _stack(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    d = equation.params["axis"]
    wide = [with_size_one(x, d) for x in inputs]
    return mixed(wide, [1] * len(wide), d) if len(wide) > 1 else wide[0]


def _pad(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand, fill = inputs
    shape = equation.outputs[0].shape
    for d, (low, high, _) in enumerate(equation.params["padding_config"]):
        inside = operand.shape[d]
        if low < 0 or high < 0:
            operand = cut(streams, operand, d, max(-low, 0), shape[d])
        elif shape[d] > inside:
            # The padding is a single number.
            axes = [1] * sum(map(len, operand.factors))
            one = dataclasses.replace(fill, values=fill.values.reshape(-1, *axes), factors=operand.factors)
            operand = mixed([operand, one], [inside, shape[d] - inside], d)
    return operand


def _tile(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    return _spread(inputs[0], equation.outputs[0].shape)


def _spread(operand: Samples, shape: Sequence[int]) -> Samples:
    """The same kind of elements in a larger shape."""
    for d, size in enumerate(shape):
        if size != operand.shape[d]:
            operand = operand.joined(d)
            operand = operand.with_dimension(d, _with_axis(operand, d), (size,))
    return operand


def _updated(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    """The operand that most of the elements come from; a buffer counts as overwritten."""
    operand, update = inputs[:2]
    most = 2 * math.prod(update.shape) >= math.prod(operand.shape) or not operand.marks
    return _spread(update, operand.shape) if most else operand


def _iota(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    shape, d = equation.params["shape"], equation.params["dimension"]
    places = of_array(np.arange(shape[d]).reshape([-1 if a == d else 1 for a in range(len(shape))]))
    factors = list(_factors(shape))
    lengths = [2 if a == d else 1 for a, n in enumerate(shape) if n > 1]
    values = places.values.reshape(len(places.values), *lengths) if shape[d] > 1 else places.values
    return dataclasses.replace(places, values=values, factors=tuple(factors))


RULES: dict[Any, Callable[[Streams, ir.Equation, Sequence[Samples]], Any]] = {
    ir.broadcast_p: _broadcast,
    ir.transpose_p: _transpose,
    ir.squeeze_p: _squeeze,
    ir.reshape_p: _reshape,
    ir.slice_p: _slice,
    ir.dynamic_slice_p: _dynamic_slice,
    ir.split_p: _split,
    ir.unstack_p: _unstack,
    ir.concatenate_p: _concatenate,
    ir.stack_p: _stack,
    ir.pad_p: _pad,
    ir.tile_p: _tile,
    ir.iota_p: _iota,
    ir.dynamic_update_slice_p: _updated,
    ir.rev_p: lambda streams, equation, inputs: inputs[0],
}
