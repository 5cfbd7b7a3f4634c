"""The activation that follows a layer: the elementwise function between its pre-activation and whatever comes next.

A value is followed through operations that use it element by element, together with known numbers, random bits and
slopes that are parameters, and through operations that only move, cut, copy or join elements. Where it is used
otherwise, it arrives: the activation is the one function of it that arrives there.

Before the activation, other terms may be added to a layer's output, such as biases and the outputs of other layers, and
a map by channels may be applied, as by a batch normalization with running statistics: the activation is what follows
them. A branch that is added to the value that it is computed from goes on in the sum without an activation of its own.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._consumers import ELEMENTWISE, Consumers, consumers_of
from jaxinit._reading._expressions import ARGUMENT, Expression, Parameter, Step, concrete, ordered, reaches, sources
from jaxinit._reading._layers import Analysis
from jaxinit._reading._moved_elements import JOINS, MOVES, MovedElements, beside, joined, moved
from jaxinit._reading._partials import is_outer
from jaxinit._reading._rows import division_into_mean, rows_together
from jaxinit._reading._traced_activation import TracedActivation as TracedActivation


class Onward(NamedTuple):
    """What a value becomes.

    Attributes:
      activation: the elementwise function of it that it becomes; None if there are several, or only linear ones.
      multiplier: by how much numbers and random factors multiply its standard deviation, if that is all they do.
    """

    activation: TracedActivation | None
    multiplier: float


def onward(
    analysis: Analysis,
    program: ir.Program,
    start: ir.Variable,
    leaves: Sequence[Any] = (),
    *,
    through: bool = False,
    features: Iterable[int] | None = None,
) -> Onward:
    """What all of `start` becomes.

    Args:
      analysis: of the whole program.
      program: the part of it that makes `start`.
      start: the value.
      leaves: the leaves of the parameters, whose values are used where they are known.
      through: whether it is followed through sums with other terms and maps by channels. These terms and factors are
        left out of the function, as are biases that are initially zero.
      features: the dimensions of the value along which features are, if it is followed through sums over others, too.
    """
    consumers = consumers_of(analysis)
    start = _past_sums(analysis, consumers, program, start) if through else start
    scales: set[Expression] = set()
    kept = None if features is None else frozenset(features)
    while True:
        exits = _Following(analysis, consumers, program, start, through, scales, kept).exits()
        # A parameter that multiplies the whole value is a map by channels, or belongs to what comes next; as a slope it
        # multiplies a part.
        more = [x for x in ordered(exits) if _reads_parameter(x) and not _remains(exits, x)]
        if not more:
            break
        scales.update(more)
    if not exits or exits[0] is ARGUMENT or any(reaches(x, exits[0]) for x in exits[1:]):
        return Onward(None, 1.0)
    read = {x.leaf for x in sources(exits[0]) if isinstance(x, Parameter)}
    found = TracedActivation(exits[0], {i: concrete(leaves[i]) if leaves else None for i in read})
    return Onward(None, found.spread) if exits[0].degree == 1 else Onward(found, 1.0)


def following_activation(
    analysis: Analysis, program: ir.Program, start: ir.Variable, leaves: Sequence[Any] = ()
) -> TracedActivation | None:
    """The next elementwise function of all of `start`; None if there is none, or several."""
    return onward(analysis, program, start, leaves).activation


def _past_sums(analysis: Analysis, consumers: Consumers, program: ir.Program, start: ir.Variable) -> ir.Variable:
    """The last of a chain of sums that a value goes into, each of which is read only by the next."""
    passed: list[ir.Variable] = []
    while start not in consumers.ends:
        passed.append(start)
        readers = program.readers.get(start, [])
        equation = readers[0] if len(readers) == 1 else None
        if equation is None or equation.primitive not in ir.ADDITIONS or equation in analysis.uses:
            break
        (output,) = equation.outputs
        made = _Following(analysis, consumers, program, start, True, set()).through_equation(equation)
        if made is None or made[output].expression is not ARGUMENT:
            break
        start = output
    end = consumers.ends.get(start, start)
    consumers.ends.update(dict.fromkeys(passed, end))
    return end


def _reads_parameter(x: Expression) -> bool:
    """Whether a step applies a parameter to a function of the argument."""
    return (
        isinstance(x, Step)
        and x.degree > 0
        and any(y.degree == 0 and any(isinstance(s, Parameter) for s in sources(y)) for y in x.inputs)
    )


def _remains(exits: Iterable[Expression], step: Expression) -> bool:
    """Whether the argument still enters all inputs of a step without this step."""
    return all(reaches(x, step, decisions=False) for x in exits if step in ordered([x]))


class _Following:
    """One walk from a value to where it is used otherwise, in execution order."""

    def __init__(
        self,
        analysis: Analysis,
        consumers: Consumers,
        program: ir.Program,
        start: ir.Variable,
        through: bool,
        scales: set[Expression],
        features: frozenset[int] | None = None,
    ):
        self.analysis, self.consumers, self.program = analysis, consumers, program
        self.start, self.through, self.scales = start, through, scales
        whole = tuple((0, n) for n in start.shape)
        self.inside: dict[ir.Atom, MovedElements] = {start: MovedElements(ARGUMENT, (), whole, features)}
        self.means: set[ir.Equation] = set()
        self.readers = program.readers

    def exits(self) -> list[Expression]:
        """What the value becomes: each function once, and functions of others after those."""
        outside = self._outside(self.program, list(self.inside))
        found = dict.fromkeys(elements.expression for v, elements in self.inside.items() if v in outside)
        return [x for x in ordered(list(found)) if x in found]

    def _outside(self, program: ir.Program, starts: Iterable[ir.Atom]) -> set[ir.Atom]:
        """Follows values through a program; returns those that are used otherwise."""
        outside: set[ir.Atom] = set()
        pending: list[int] = []
        seen: set[ir.Equation] = set()

        def enter(value: ir.Atom) -> None:
            for equation in program.readers.get(value, ()):
                if equation is None:
                    outside.add(value)
                elif equation not in seen:
                    seen.add(equation)
                    heapq.heappush(pending, program.numbers[equation])

        for value in starts:
            enter(value)
        while pending:
            equation = program.equations[heapq.heappop(pending)]
            if equation in self.consumers.idle:
                continue
            self.readers = program.readers
            if self.through and ir.subprograms(equation):
                outside |= self._entered(equation)
                continue
            found = None if equation in self.analysis.uses else self.through_equation(equation)
            if found is None:
                outside.update(a for a in equation.inputs if a in self.inside)
                continue
            self.inside.update(found)
            for value in found:
                enter(value)
        return outside

    def _entered(self, equation: ir.Equation) -> set[ir.Atom]:
        """Follows values into a loop or a branch that reads them, or slices of them; returns those used otherwise."""
        outside = {a for a in _not_entered(equation) if a in self.inside}
        programs = (equation.body,) if isinstance(equation, ir.While) else ir.subprograms(equation)
        for inner, entered in zip(programs, ir.entrances(equation), strict=True):
            own = [(v, atom) for v, atom in entered if atom in self.inside]
            for v, atom in own:
                elements = self.inside[atom]
                sliced = v.shape != atom.shape
                features = elements.features
                if features is not None and sliced:
                    features = None if 0 in features else frozenset(d - 1 for d in features)
                self.inside[v] = MovedElements(elements.expression, (elements.way, equation, sliced), None, features)
            outside |= self._outside(inner, [v for v, _ in own])
        return outside

    def through_equation(self, equation: ir.Equation) -> dict[ir.Atom, MovedElements] | None:
        """The result of an equation for values that are followed; None if it does more than that."""
        if equation.primitive in JOINS:
            return joined(equation, self.inside)
        if equation.primitive in MOVES:
            elements = self.inside.get(equation.inputs[0])
            further = any(a in self.inside for a in equation.inputs[1:])
            return None if elements is None or further else moved(equation, elements)
        if equation.primitive in ELEMENTWISE:
            return self._mapped(equation)
        if not self.through:
            return None
        return self._scaled(equation) if is_outer(equation) else self._summed_up(equation)

    def _scaled(self, equation: ir.Equation) -> dict[ir.Atom, MovedElements] | None:
        """The value itself, if a product that contracts nothing multiplies it."""
        own = [i for i, a in enumerate(equation.inputs) if a in self.inside]
        if len(own) != 1:
            return None
        elements, (output,) = self.inside[equation.inputs[own[0]]], equation.outputs
        grows = math.prod(output.shape) > math.prod(equation.inputs[own[0]].shape)
        apart = not self.consumers.is_computed_from(equation.inputs[1 - own[0]], self.start)
        if grows or not apart or elements.expression.degree != 1:
            return None
        return {output: beside(elements, equation)._replace(within=None, features=None)}

    def _summed_up(self, equation: ir.Equation) -> dict[ir.Atom, MovedElements] | None:
        """The value itself, if its rows are summed, or their maximum taken, and its features stay separate."""
        own = [i for i, a in enumerate(equation.inputs) if a in self.inside]
        if len(own) != 1 or len(equation.outputs) != 1:
            return None
        elements, (output,) = self.inside[equation.inputs[own[0]]], equation.outputs
        if elements.features is None or elements.expression.degree != 1:
            return None
        others = [a for i, a in enumerate(equation.inputs) if i != own[0]]
        rows = rows_together(equation, own[0], elements.features)
        if rows is None or any(self.consumers.is_computed_from(a, self.start) for a in others):
            return None
        mean = division_into_mean(output, rows.terms, self.readers) if rows.terms > 1 else None
        if mean is not None:
            self.means.add(mean)
        return {output: beside(elements, equation)._replace(within=None, features=rows.features)}

    def _mapped(self, equation: ir.Equation) -> dict[ir.Atom, MovedElements] | None:
        (output,) = equation.outputs
        several = [self.inside[a] for a in equation.inputs if a in self.inside]
        if any(p.way != several[0].way for p in several):
            return None
        if equation in self.means:
            return {output: several[0]}
        if self.through and len(several) == 1 and several[0].expression.degree == 1:
            left_out = self._left_out(equation, several[0])
            if left_out is not None:
                return {output: left_out}
        inputs = [self.inside[a].expression if a in self.inside else self.consumers.of(a) for a in equation.inputs]
        known = [x for x in inputs if x is not None]
        if len(known) < len(inputs):
            return None
        made = self.consumers.expressions.step(equation, known)
        if made in self.scales:
            return (
                {output: beside(several[0], equation)} if self.through and several[0].expression.degree == 1 else None
            )
        if _reads_parameter(made) and equation.primitive not in (ir.mul_p, ir.div_p):
            return None
        return {output: several[0]._replace(expression=made)}

    def _left_out(self, equation: ir.Equation, elements: MovedElements) -> MovedElements | None:
        """The value itself, if another term is added to it, or a map by channels multiplies it."""
        if equation.primitive not in (*ir.ADDITIONS, ir.mul_p, ir.div_p):
            return None
        first, second = equation.inputs
        other = second if first in self.inside else first
        value = self.analysis.of(other)
        if equation.primitive in ir.ADDITIONS:
            # A difference with a layer's output is a sum with that of its negative weight.
            if not value.data and any(part.degrees for part in value.parts):
                return elements
            adds = equation not in self.consumers.streams and not self.consumers.is_computed_from(other, self.start)
            return beside(elements, equation) if adds and (value.data or self._is_array(other)) else None
        multiplies = equation.primitive is ir.mul_p or (equation.primitive is ir.div_p and first in self.inside)
        if not multiplies or not (value.data or self._is_array(other)):
            return None
        return None if self.consumers.is_computed_from(other, self.start) else beside(elements, equation)

    def _is_array(self, atom: ir.Atom) -> bool:
        """Whether a value that does not depend on data is more than an elementwise function of numbers."""
        return ir.is_floating(atom) and self.consumers.of(atom) is None


def _not_entered(equation: ir.Equation) -> Sequence[ir.Atom]:
    """The inputs of a loop or a branch that are not one value, or one slice of it, in every iteration."""
    match equation:
        case ir.Scan():
            return equation.inputs[equation.num_consts : equation.num_consts + equation.num_carry]
        case ir.Switch():
            return equation.inputs[:1]
        case ir.While():
            first = equation.condition_consts
            return equation.inputs[:first] + equation.inputs[first + equation.body_consts :]
    return equation.inputs
