"""What a value is used for: whether it weighs other data, and whether it goes directly into a layer."""

import heapq
from collections.abc import Iterator

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, programs_of
from jaxinit._reading._rules import rule_of

_PRODUCTS = (ir.mul_p, ir.div_p)


class Onwards:
    """Which equations read each value of a program, including those inside loops and branches."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.readers: dict[ir.Atom, list[ir.Equation]] = {}
        self.entered: dict[ir.Atom, list[ir.Atom]] = {}
        self.number: dict[ir.Equation, int] = {}
        for program in programs_of(flow.analysis.program):
            for equation in program.equations:
                self.number[equation] = len(self.number)
                for atom in dict.fromkeys(equation.inputs):
                    self.readers.setdefault(atom, []).append(equation)
                for pairs in ir.entrances(equation):
                    for inner, outer in pairs:
                        self.entered.setdefault(outer, []).append(inner)
        self.carried: set[ir.Atom] = set()
        for equation in self.number:
            if isinstance(equation, ir.Scan):
                self.carried.update(equation.body.inputs[equation.num_consts :][: equation.num_carry])
        self.taken = {entry.equation: entry for use in flow.analysis.uses.values() for entry in use.entries}

    def weighs(self, value: ir.Atom) -> bool:
        """Whether all elementwise functions of a value go into products with other data.

        This holds for gates, step sizes and decays: only the factor by which they change matters.
        """
        found = False
        for equation, inside in self._through(value, linear=False):
            others = [a for a in equation.inputs if self.flow.is_data(a) and a not in inside]
            if equation.primitive not in _PRODUCTS or not others:
                return False
            found = True
        return found

    def is_added(self, value: ir.Atom) -> bool:
        """Whether a value, or some multiple of it, is added to other data next, and goes nowhere else."""
        exits = [equation for equation, _ in self._through(value, linear=True)]
        return bool(exits) and all(equation.primitive in (ir.add_p, ir.add_any_p) for equation in exits)

    def keeps(self, value: ir.Atom) -> bool:
        """Whether some function of a value multiplies the state that a loop carries, as a decay does."""
        products = (equation for equation, _ in self._through(value, linear=False) if equation.primitive is ir.mul_p)
        return any(not self.carried.isdisjoint(equation.inputs) for equation in products)

    def enters_a_layer(self, value: ir.Atom) -> bool:
        """Whether a layer takes a value, or some multiple of it, as data."""
        return any(
            equation in self.taken and self.taken[equation].data in inside
            for equation, inside in self._through(value, linear=True)
        )

    def _through(self, value: ir.Atom, linear: bool) -> Iterator[tuple[ir.Equation, set[ir.Atom]]]:
        """The equations that use a function of a value other than element by element, or with other data."""
        inside: set[ir.Atom] = set()
        queue: list[tuple[int, int]] = []
        waiting: dict[int, ir.Equation] = {}

        def enter(atom: ir.Atom) -> None:
            pending = [atom]
            while pending:
                atom = pending.pop()
                if atom in inside:
                    continue
                inside.add(atom)
                pending.extend(self.entered.get(atom, ()))
                for equation in self.readers.get(atom, ()):
                    if self.number[equation] not in waiting:
                        waiting[self.number[equation]] = equation
                        heapq.heappush(queue, (self.number[equation], 0))

        enter(value)
        while queue:
            equation = waiting[heapq.heappop(queue)[0]]
            if ir.subprograms(equation):
                continue
            alone = all(a in inside for a in equation.inputs if self.flow.is_data(a))
            rule = rule_of(equation)
            goes_on = rule.elementwise or rule.rearranges
            if linear:
                goes_on &= bool(rule.linear == "all" or rule.is_linear_in([a in inside for a in equation.inputs]))
            if alone and goes_on and equation not in self.taken:
                for v in equation.outputs:
                    enter(v)
            else:
                yield equation, inside
