"""The activation that follows a layer: the elementwise function between its pre-activation and whatever comes next.

A value is followed through all that takes it element by element, together with known numbers, random bits and slopes
that are parameters, and through all that only moves, cuts, copies or joins elements. Where it is taken otherwise, it
goes on: the activation is the one function of it that goes on there.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._eager import outside_traces
from jaxinit._reading._consumers import ELEMENTWISE, Consumers, consumers_of
from jaxinit._reading._expressions import ARGUMENT, Expression, Parameter, Step, concrete, ordered, reaches, sources
from jaxinit._reading._flow import programs_of
from jaxinit._reading._traced_activation import TracedActivation as TracedActivation
from jaxinit._reading._units import Analysis
from jaxinit._typing import Array

_POINTS = np.linspace(-7.5, 7.5, 61, dtype=np.float32)
_MOVES = frozenset(
    {ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.rev_p, ir.broadcast_p, ir.slice_p, ir.dynamic_slice_p, ir.pad_p}
    | {ir.split_p, ir.unstack_p, ir.gather_p, ir.tile_p}
)
"""The elements of the first input, elsewhere or in part; `pad` adds others."""
_JOINS = frozenset({ir.concatenate_p, ir.stack_p, ir.dynamic_update_slice_p})
"""The elements of several inputs, side by side."""
_SUMS = (ir.add_p, ir.add_any_p)


class Onward(NamedTuple):
    """What a value goes on as.

    Attributes:
      activation: the elementwise function of it that goes on; None if there are several, or none that is not linear.
      multiplier: by how much numbers and random factors multiply its standard deviation, if that is all they do.
    """

    activation: TracedActivation | None
    multiplier: float


class _Place(NamedTuple):
    """A value whose elements are one function of elements of the start.

    Attributes:
      expression: the function.
      way: how elements have been moved; values that came the same way have the same elements at the same places.
      within: (start, stop) along each dimension within which elements of the start lie; None if anywhere.
    """

    expression: Expression
    way: Any
    within: tuple[tuple[int, int], ...] | None


def onward(
    analysis: Analysis, program: ir.Program, start: ir.Variable, leaves: Sequence[Any] = (), *, biases: bool = False
) -> Onward:
    """What all of `start` goes on as.

    Args:
      analysis: of the whole program.
      program: the part of it that makes `start`.
      start: the value.
      leaves: the leaves of the parameters, whose values count where they are known.
      biases: whether parameters that are added to it may be left out, as biases are that are zero at the start.
    """
    consumers = consumers_of(analysis)
    refused: set[Expression] = set()
    while True:
        exits = _Walk(analysis, consumers, program, start, biases, refused).exits()
        # A parameter that multiplies all of it belongs to what comes next; as a slope it multiplies a part.
        scales = [x for x in ordered(exits) if _reads_parameter(x) and not _remains(exits, x)]
        if not scales:
            break
        refused.update(scales)
    if not exits or exits[0] is ARGUMENT or any(reaches(x, exits[0]) for x in exits[1:]):
        return Onward(None, 1.0)
    read = {x.leaf for x in sources(exits[0]) if isinstance(x, Parameter)}
    found = TracedActivation(exits[0], {i: concrete(leaves[i]) if leaves else None for i in read})
    return Onward(None, found.spread) if exits[0].degree == 1 else Onward(found, 1.0)


def following_activation(
    analysis: Analysis, program: ir.Program, start: ir.Variable, leaves: Sequence[Any] = ()
) -> TracedActivation | None:
    """The elementwise function that all of `start` goes through next; None if it goes on as it is, or divides."""
    return onward(analysis, program, start, leaves).activation


def _reads_parameter(x: Expression) -> bool:
    """Whether a step applies a parameter to a function of the argument."""
    return (
        isinstance(x, Step)
        and x.degree > 0
        and any(y.degree == 0 and any(isinstance(s, Parameter) for s in sources(y)) for y in x.inputs)
    )


def _remains(exits: Iterable[Expression], step: Expression) -> bool:
    """Whether the argument still goes into all that a step goes into, without this step."""
    return all(reaches(x, step, decisions=False) for x in exits if step in ordered([x]))


class _Walk:
    """One walk from a value to where it goes on, in execution order."""

    def __init__(
        self,
        analysis: Analysis,
        consumers: Consumers,
        program: ir.Program,
        start: ir.Variable,
        biases: bool,
        refused: set[Expression],
    ):
        self.analysis, self.consumers, self.program = analysis, consumers, program
        self.biases, self.refused = biases, refused
        whole = tuple((0, n) for n in start.shape)
        self.inside: dict[ir.Atom, _Place] = {start: _Place(ARGUMENT, (), whole)}

    def exits(self) -> list[Expression]:
        """What the value goes on as: each function once, in the order in which they are made."""
        outside: set[ir.Atom] = set()
        pending: list[int] = []
        seen: set[ir.Equation] = set()

        def enter(value: ir.Atom) -> None:
            for equation in self.program.readers.get(value, ()):
                if equation is None:
                    outside.add(value)
                elif equation not in seen:
                    seen.add(equation)
                    heapq.heappush(pending, self.program.numbers[equation])

        for value in self.inside:
            enter(value)
        while pending:
            equation = self.program.equations[heapq.heappop(pending)]
            if equation in self.consumers.idle:
                continue
            found = None if equation in self.analysis.sites else self._through(equation)
            if found is None:
                outside.update(a for a in equation.inputs if a in self.inside)
                continue
            self.inside.update(found)
            for value in found:
                enter(value)
        return list(dict.fromkeys(place.expression for v, place in self.inside.items() if v in outside))

    def _through(self, equation: ir.Equation) -> dict[ir.Atom, _Place] | None:
        """What an equation makes of values that are followed; None where it does more than that."""
        if equation.primitive in _JOINS:
            return self._joined(equation)
        if equation.primitive in _MOVES:
            place = self.inside.get(equation.inputs[0])
            further = any(a in self.inside for a in equation.inputs[1:])
            return None if place is None or further else self._moved(equation, place)
        return self._mapped(equation) if equation.primitive in ELEMENTWISE else None

    def _mapped(self, equation: ir.Equation) -> dict[ir.Atom, _Place] | None:
        (output,) = equation.outputs
        places = [self.inside[a] for a in equation.inputs if a in self.inside]
        if any(p.way != places[0].way for p in places):
            return None
        bias = self._without_bias(equation, places)
        if bias is not None:
            return {output: bias}
        inputs = [self.inside[a].expression if a in self.inside else self.consumers.of(a) for a in equation.inputs]
        known = [x for x in inputs if x is not None]
        if len(known) < len(inputs):
            return None
        made = self.consumers.expressions.step(equation, known)
        if made in self.refused or (_reads_parameter(made) and equation.primitive not in (ir.mul_p, ir.div_p)):
            return None
        return {output: places[0]._replace(expression=made)}

    def _without_bias(self, equation: ir.Equation, places: list[_Place]) -> _Place | None:
        """The value itself where a parameter is added to it."""
        first, *others = equation.inputs
        adds = equation.primitive in _SUMS or (equation.primitive is ir.sub_p and first in self.inside)
        if not (self.biases and adds and len(places) == 1 and places[0].expression.degree == 1):
            return None
        other = self.analysis.of(others[0] if first in self.inside else first)
        return places[0] if not other.data and any(part.degrees for part in other.parts) else None

    def _moved(self, equation: ir.Equation, place: _Place) -> dict[ir.Atom, _Place]:
        found: dict[ir.Atom, _Place] = {}
        start = 0
        for i, output in enumerate(equation.outputs):
            within = None if place.within is None else _within(equation, output, place.within, start)
            start += output.shape[equation.params["axis"]] if equation.primitive is ir.split_p else 1
            if within is None or all(a < b for a, b in within):
                found[output] = place._replace(way=(place.way, equation.primitive, _moves(equation), i), within=within)
        return found

    def _joined(self, equation: ir.Equation) -> dict[ir.Atom, _Place] | None:
        """Elements side by side: of one function all, and of other values."""
        (output,) = equation.outputs
        places = [self.inside.get(a) for a in equation.inputs]
        own = [p for p in places if p is not None]
        if any(p.expression is not own[0].expression for p in own):
            return None
        within = None
        if equation.primitive is ir.concatenate_p and all(p.within is not None for p in own):
            within = _within_joined(equation, [p and p.within for p in places])
        ways = tuple(p and p.way for p in places)
        way = (ways, equation.primitive, tuple(a.shape for a in equation.inputs), _moves(equation))
        return {output: _Place(own[0].expression, way, within)}


def _moves(equation: ir.Equation) -> str:
    """All that decides where elements go, other than what they are: parameters, and the values of further inputs."""
    further = [repr(a.value) if isinstance(a, ir.Constant) and not a.shape else id(a) for a in equation.inputs[1:]]
    return repr((sorted((name, repr(x)) for name, x in equation.params.items()), further))


def _within(
    equation: ir.Equation, output: ir.Variable, within: tuple[tuple[int, int], ...], start: int
) -> tuple[tuple[int, int], ...] | None:
    """Within which places of an output the elements lie that lay within these; None if anywhere."""
    primitive, params, shape = equation.primitive, equation.params, equation.inputs[0].shape
    whole = all(place == (0, n) for place, n in zip(within, shape, strict=True))
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


def is_concatenated_relu(analysis: Analysis, start: ir.Variable) -> bool:
    """Whether a value goes on as the concatenation [relu(z), relu(−z)], or the other way round."""
    program = next((p for p in programs_of(analysis.program) if any(start in e.outputs for e in p.equations)), None)
    points = jnp.asarray(_POINTS)
    # What is made of the value, at some points: one function of it, or two that are concatenated.
    known: dict[ir.Atom, tuple[Array, ...]] = {start: (points,)}

    def evaluate() -> bool:
        for equation in program.equations if program else ():
            inputs = equation.inputs
            if equation.primitive is ir.concatenate_p and len(inputs) == 2 and all(a in known for a in inputs):
                known[equation.outputs[0]] = known[inputs[0]] + known[inputs[1]]
            elif (
                equation.primitive in ir.ELEMENTWISE
                and any(a in known for a in inputs)
                and all(a in known or _is_number(a) for a in inputs)
            ):
                sides = max(len(known.get(a, ())) for a in inputs)
                branches = [
                    [known[a][i] if a in known else jnp.full_like(points, _number(a)) for a in inputs]
                    for i in range(sides)
                ]
                known[equation.outputs[0]] = tuple(equation.bind(*branch)[0] for branch in branches)
        pairs = [values for values in known.values() if len(values) == 2]
        positive, negative = jnp.maximum(points, 0), jnp.maximum(-points, 0)
        return any(
            np.array_equal(a, x) and np.array_equal(b, y)
            for a, b in pairs
            for x, y in ((positive, negative), (negative, positive))
        )

    return bool(outside_traces(evaluate))


def _is_number(atom: ir.Atom) -> bool:
    return isinstance(atom, ir.Constant) and np.ndim(atom.value) == 0 and not ir.is_traced(atom.value)


def _number(atom: ir.Atom) -> Any:
    assert isinstance(atom, ir.Constant)
    return atom.value
