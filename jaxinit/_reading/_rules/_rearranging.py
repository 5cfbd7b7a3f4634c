"""Primitives that move, copy, cut, join or look up elements, and those that return them unchanged."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, Segments, inhomogeneous, together
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._origin import Origin
from jaxinit._reading._rules._rule import Move, PrimitiveRule, is_free, register, rule_of, scale_free


def _moved(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """The first operand, with its elements elsewhere."""
    operand = inputs[0]
    if operand.segments is not None:
        return _segments_moved(equation, operand)
    move = rule_of(equation).move(equation)
    return operand.without_origins() if move is None else operand.map(move)


def _segments_moved(equation: ir.Equation, operand: Dependence) -> Dependence:
    """A concatenation, moved as a whole."""
    segments, rule = operand.segments, rule_of(equation)
    assert segments is not None
    dimension, move = rule.dimensions(equation).get(segments.dimension), rule.move(equation)
    if dimension is None or move is None:
        return inhomogeneous([operand])
    moves: list[Move] = [move] * len(segments.sizes)
    if equation.primitive is ir.reshape_p:
        sizes = equation.params["new_sizes"]
        moves = [
            functools.partial(_reshaped, sizes=(*sizes[:dimension], size, *sizes[dimension + 1 :]))
            for size in segments.sizes
        ]
    parts = tuple(part.map(own) for part, own in zip(segments.parts, moves, strict=True))
    return with_segments(Segments(dimension, segments.sizes, parts))


def _reshaped(origin: Origin, sizes: Sequence[int]) -> Origin | None:
    return origin.reshaped(sizes)


def with_segments(segments: Segments) -> Dependence:
    """A value that is a concatenation."""
    return dataclasses.replace(inhomogeneous(segments.parts), segments=segments)


def _whole(equation: ir.Equation) -> dict[int, int]:
    return {d: d for d in range(len(equation.inputs[0].shape))}


# Identities


def _cast(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """A cast drops the fractional part; whether a number is zero does not change with its scale."""
    if ir.is_floating(equation.inputs[0]) and not ir.is_floating(equation.outputs[0]):
        return scale_free(inputs) if equation.outputs[0].dtype == jnp.bool_ else inhomogeneous(inputs)
    return inputs[0]


def _handed_on(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inputs[0]


def _stays(equation: ir.Equation) -> Move:
    return lambda origin: origin


def _same_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    return inputs[0]


_IDENTITY = PrimitiveRule(
    _handed_on, linear="all", elementwise=True, rearranges=True, move=_stays, dimensions=_whole, pattern=_same_pattern
)
register(dataclasses.replace(_IDENTITY, dependence=_cast), ir.convert_p)
register(dataclasses.replace(_IDENTITY, elementwise=False), ir.optimization_barrier_p)
register(_IDENTITY, *ir.IDENTITIES - {ir.convert_p, ir.optimization_barrier_p})

# Moves


def _transpose(equation: ir.Equation) -> Move:
    return lambda origin: origin.transposed(equation.params["permutation"])


def _transpose_dimensions(equation: ir.Equation) -> dict[int, int]:
    return {d: p for p, d in enumerate(equation.params["permutation"])}


def _reverse(equation: ir.Equation) -> Move:
    return lambda origin: origin.reversed(equation.params["dimensions"])


def _reverse_dimensions(equation: ir.Equation) -> dict[int, int]:
    return {d: d for d in range(len(equation.inputs[0].shape)) if d not in equation.params["dimensions"]}


def _squeezed_dims(equation: ir.Equation) -> tuple[int, ...]:
    rank = len(equation.inputs[0].shape)
    return tuple(d % rank for d in equation.params["dimensions"])


def _squeeze(equation: ir.Equation) -> Move:
    return lambda origin: origin.squeezed(_squeezed_dims(equation))


def _squeeze_dimensions(equation: ir.Equation) -> dict[int, int]:
    gone = _squeezed_dims(equation)
    return {d: p for p, d in enumerate(d for d in range(len(equation.inputs[0].shape)) if d not in gone)}


def _reshape(equation: ir.Equation) -> Move:
    order, sizes = equation.params["dimensions"], equation.params["new_sizes"]
    return lambda origin: (origin if order is None else origin.transposed(order)).reshaped(sizes)


def _reshape_dimensions(equation: ir.Equation) -> dict[int, int]:
    shape, sizes = equation.inputs[0].shape, equation.params["new_sizes"]
    order = equation.params["dimensions"] or range(len(shape))
    shape = tuple(shape[d] for d in order)
    after = {(math.prod(sizes[:p]), n): p for p, n in enumerate(sizes)}
    return {d: p for i, d in enumerate(order) if (p := after.get((math.prod(shape[:i]), shape[i]))) is not None}


def _broadcast(equation: ir.Equation) -> Move:
    params = equation.params
    return lambda origin: origin.broadcast(params["shape"], params["broadcast_dimensions"])


def _broadcast_dimensions(equation: ir.Equation) -> dict[int, int]:
    params, shape = equation.params, equation.inputs[0].shape
    return {d: p for d, p in enumerate(params["broadcast_dimensions"]) if shape[d] == params["shape"][p]}


def _broadcast_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    kept = _broadcast_dimensions(equation)
    repeats = frozenset(d for d in range(len(equation.params["shape"])) if d not in kept.values())
    found = inputs[0].moved(kept)
    return dataclasses.replace(found, repeats=found.repeats | repeats)


def _slice(equation: ir.Equation) -> Move | None:
    params, shape = equation.params, equation.inputs[0].shape
    if params["strides"] is not None and any(s != 1 for s in params["strides"]):
        return None
    return lambda origin: origin.sliced(params["start_indices"], params["limit_indices"], shape)


def _slice_dimensions(equation: ir.Equation) -> dict[int, int]:
    shape, out = equation.inputs[0].shape, equation.outputs[0].shape
    return {d: d for d in range(len(shape)) if shape[d] == out[d]}


def _tile(equation: ir.Equation) -> Move | None:
    """Repeating single entries is a broadcast; repeating several does not move any of them to one position."""
    shape, repeats = equation.inputs[0].shape, equation.params["reps"]
    if any(n > 1 < k for n, k in zip(shape, repeats, strict=True)):
        return None
    return lambda origin: origin.broadcast(equation.outputs[0].shape, range(len(shape)))


_MOVED = PrimitiveRule(_moved, linear="first", rearranges=True)
register(dataclasses.replace(_MOVED, move=_transpose, dimensions=_transpose_dimensions), ir.transpose_p)
register(dataclasses.replace(_MOVED, move=_reverse, dimensions=_reverse_dimensions), ir.rev_p)
register(dataclasses.replace(_MOVED, move=_squeeze, dimensions=_squeeze_dimensions), ir.squeeze_p)
register(dataclasses.replace(_MOVED, move=_reshape, dimensions=_reshape_dimensions), ir.reshape_p)
register(
    dataclasses.replace(_MOVED, move=_broadcast, dimensions=_broadcast_dimensions, pattern=_broadcast_pattern),
    ir.broadcast_p,
)
register(dataclasses.replace(_MOVED, move=_slice, dimensions=_slice_dimensions), ir.slice_p)
register(dataclasses.replace(_MOVED, move=_tile, dimensions=_slice_dimensions), ir.tile_p)

# Cuts


def _cut(equation: ir.Equation, start: int, stop: int) -> Move:
    shape, axis = equation.inputs[0].shape, equation.params["axis"]
    starts = [start if d == axis else 0 for d in range(len(shape))]
    limits = [stop if d == axis else n for d, n in enumerate(shape)]
    return lambda origin: origin.sliced(starts, limits, shape)


def cuts(equation: ir.Equation) -> list[Move] | None:
    """How an equation that cuts its operand into several outputs changes the origin for each; None for others."""
    if equation.primitive is ir.split_p:
        sizes = equation.params["sizes"]
        return [_cut(equation, sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    if equation.primitive is ir.unstack_p:
        return [functools.partial(_unstacked, equation, i) for i in range(len(equation.outputs))]
    return None


def _unstacked(equation: ir.Equation, index: int, origin: Origin) -> Origin | None:
    found = _cut(equation, index, index + 1)(origin)
    return None if found is None else found.squeezed((equation.params["axis"],))


def _parts(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    operand, found = inputs[0], cuts(equation)
    assert found is not None
    if operand.segments is None:
        return [operand.map(move) for move in found]
    sizes = tuple(equation.params.get("sizes", ()))
    if (operand.segments.dimension, operand.segments.sizes) == (equation.params["axis"], sizes):
        return list(operand.segments.parts)
    return [inhomogeneous([operand])] * len(found)


register(PrimitiveRule(_parts, linear="first", rearranges=True), ir.split_p, ir.unstack_p)

# Joins


def _concatenated(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    if all(x.degrees == inputs[0].degrees and x.terms == inputs[0].terms and x.segments is None for x in inputs):
        return inputs[0].without_origins()
    axis = equation.params["dimension"]
    sizes: list[int] = []
    parts: list[Dependence] = []
    for x, atom in zip(inputs, equation.inputs, strict=True):
        if x.segments is None:
            sizes.append(atom.shape[axis])
            parts.append(x)
        elif x.segments.dimension == axis:
            sizes.extend(x.segments.sizes)
            parts.extend(x.segments.parts)
        else:
            return together([part for other in inputs for part in other.parts])
    return with_segments(Segments(axis, tuple(sizes), tuple(parts)))


def _stacked(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    alike = all(x.degrees == inputs[0].degrees and x.terms == inputs[0].terms and x.segments is None for x in inputs)
    return inputs[0].without_origins() if alike else inhomogeneous(inputs)


def _padded(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inputs[0].without_origins() if inputs[1].zero else inhomogeneous(inputs)


register(PrimitiveRule(_concatenated, linear="all", rearranges=True, pattern=lambda *_: Pattern()), ir.concatenate_p)
register(PrimitiveRule(_stacked, linear="all", rearranges=True, pattern=lambda *_: Pattern()), ir.stack_p)
register(PrimitiveRule(_padded, linear="all", rearranges=True, pattern=lambda *_: Pattern()), ir.pad_p)


def _looked_up(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    operand, *indices = inputs
    if operand.segments is not None or not all(is_free(x) for x in indices):
        return inhomogeneous(inputs)
    if equation.primitive is ir.gather_p and ir.fills(equation):
        return inhomogeneous(inputs)
    move = _known_slice(equation)
    return operand.without_origins() if move is None else operand.map(move)


def _known_slice(equation: ir.Equation) -> Move | None:
    """The move of a dynamic slice whose starts are known."""
    if equation.primitive is not ir.dynamic_slice_p:
        return None
    starts = []
    for start in equation.inputs[1:]:
        if not isinstance(start, ir.Constant) or ir.is_traced(start.value):
            return None
        starts.append(int(start.value))
    shape, sizes = equation.inputs[0].shape, equation.params["slice_sizes"]
    # dynamic_slice clamps a start that would reach beyond the end.
    starts = [min(max(s, 0), n - size) for s, n, size in zip(starts, shape, sizes, strict=True)]
    limits = [s + size for s, size in zip(starts, sizes, strict=True)]
    return lambda origin: origin.sliced(starts, limits, shape)


register(
    PrimitiveRule(_looked_up, linear="first", rearranges=True, move=_known_slice, pattern=lambda *_: NONE),
    ir.gather_p,
    ir.dynamic_slice_p,
)


def _range(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    return Pattern(counts=equation.params["dimension"])


register(PrimitiveRule(pattern=_range), ir.iota_p)
