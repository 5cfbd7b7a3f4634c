"""Lookups: by numbers that the program knows they are moves, by others linear maps of what is looked up in."""

from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, inhomogeneous
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._rules._rule import Move, PrimitiveRule, is_free, register


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
