"""Where the elements of a value are after they have been moved, cut, copied or joined with others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._expressions import Expression
from jaxinit._reading._rows import moved_features

MOVES = frozenset(
    {ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.rev_p, ir.broadcast_p, ir.slice_p, ir.dynamic_slice_p, ir.pad_p}
    | {ir.split_p, ir.unstack_p, ir.gather_p, ir.tile_p}
)
"""Primitives that move or select the elements of the first input; `pad` adds others."""
JOINS = frozenset({ir.concatenate_p, ir.stack_p, ir.dynamic_update_slice_p})
"""Primitives that put the elements of several inputs side by side."""


class MovedElements(NamedTuple):
    """A value whose elements are one function of elements of the start.

    Attributes:
      expression: the function.
      way: how elements have been moved; values with equal ways have the same elements in the same positions.
      within: (start, stop) along each dimension that contains the elements of the start; None if unknown.
      features: the dimensions along which the features of the start are; None if unknown.
    """

    expression: Expression
    way: Any
    within: tuple[tuple[int, int], ...] | None
    features: frozenset[int] | None = None


def moved(equation: ir.Equation, elements: MovedElements) -> dict[ir.Atom, MovedElements]:
    """Where elements are after an equation that moves, cuts or copies them."""
    found: dict[ir.Atom, MovedElements] = {}
    start = 0
    for i, output in enumerate(equation.outputs):
        within = None if elements.within is None else _within(equation, output, elements.within, start)
        start += output.shape[equation.params["axis"]] if equation.primitive is ir.split_p else 1
        if within is None or all(a < b for a, b in within):
            features = None if elements.features is None else moved_features(equation, i, elements.features)
            way = (elements.way, equation.primitive, _moves(equation), i)
            found[output] = elements._replace(way=way, within=within, features=features)
    return found


def joined(equation: ir.Equation, inside: Mapping[ir.Atom, MovedElements]) -> dict[ir.Atom, MovedElements] | None:
    """Elements side by side: all of one function, and those of other values."""
    (output,) = equation.outputs
    several = [inside.get(a) for a in equation.inputs]
    own = [p for p in several if p is not None]
    if any(p.expression is not own[0].expression for p in own):
        return None
    within = None
    if equation.primitive is ir.concatenate_p and all(p.within is not None for p in own):
        within = _within_joined(equation, [p and p.within for p in several])
    ways = tuple(p and p.way for p in several)
    way = (ways, equation.primitive, tuple(a.shape for a in equation.inputs), _moves(equation))
    places_of_features = {p.features for p in own}
    features = own[0].features if equation.primitive is ir.concatenate_p and len(places_of_features) == 1 else None
    return {output: MovedElements(own[0].expression, way, within, features)}


def beside(elements: MovedElements, equation: ir.Equation) -> MovedElements:
    """Where another value, which is left out, has been added to a value or multiplied with it."""
    return elements._replace(way=(elements.way, equation))


def _moves(equation: ir.Equation) -> str:
    """Everything that decides where elements go, apart from their values: parameters, and further inputs."""
    further = [repr(a.value) if isinstance(a, ir.Constant) and not a.shape else id(a) for a in equation.inputs[1:]]
    return repr((sorted((name, repr(x)) for name, x in equation.params.items()), further))


def _within(
    equation: ir.Equation, output: ir.Variable, within: tuple[tuple[int, int], ...], start: int
) -> tuple[tuple[int, int], ...] | None:
    """The region of an output that contains the elements that were in this region of the input; None if unknown."""
    primitive, params, shape = equation.primitive, equation.params, equation.inputs[0].shape
    whole = all(elements == (0, n) for elements, n in zip(within, shape, strict=True))
    if primitive is ir.transpose_p:
        return tuple(within[d] for d in params["permutation"])
    if primitive is ir.squeeze_p:
        gone = {d % len(shape) for d in params["dimensions"]}
        return tuple(x for d, x in enumerate(within) if d not in gone)
    if primitive is ir.slice_p:
        strides = params["strides"] or [1] * len(shape)
        cuts = zip(within, params["start_indices"], params["limit_indices"], strides, strict=True)
        return tuple((max(0, -(-(a - s) // k)), -(-(min(b, e) - s) // k)) for (a, b), s, e, k in cuts)
    if primitive is ir.split_p:
        axis, size = params["axis"], output.shape[params["axis"]]
        return tuple(
            (max(a - start, 0), min(b - start, size)) if d == axis else (a, b) for d, (a, b) in enumerate(within)
        )
    if primitive is ir.pad_p:
        configuration = zip(within, params["padding_config"], strict=True)
        return tuple((low + a * (gap + 1), low + (b - 1) * (gap + 1) + 1) for (a, b), (low, _, gap) in configuration)
    return tuple((0, n) for n in output.shape) if whole else None


def _within_joined(
    equation: ir.Equation, parts: list[tuple[tuple[int, int], ...] | None]
) -> tuple[tuple[int, int], ...]:
    axis, start = equation.params["dimension"], 0
    found: list[tuple[int, int]] | None = None
    for atom, part in zip(equation.inputs, parts, strict=True):
        if part is not None:
            moved = [(a + start, b + start) if d == axis else (a, b) for d, (a, b) in enumerate(part)]
            pairs = zip(found or moved, moved, strict=True)
            found = [(min(a, c), max(b, d)) for (a, b), (c, d) in pairs]
        start += atom.shape[axis]
    assert found is not None
    return tuple(found)
