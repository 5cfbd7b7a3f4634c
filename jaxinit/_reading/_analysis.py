"""Which operations of a program are layers, of which weights, and which weights share a scale.

One walk in execution order computes the dependence of every value (see `_dependence`) and records each operation
between data and a weight as a use. Uses that read the same part of a leaf belong to one weight: the smallest part of
the parameters that can be scaled on its own (see `_grouping`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from jaxinit import _program as ir
from jaxinit._reading import _dependence as dependence
from jaxinit._reading import _rules as rules
from jaxinit._reading._complex_pairs import complex_pairs
from jaxinit._reading._dependence import DATA, INDEPENDENT, Dependence
from jaxinit._reading._ensembles import mark_ensembles
from jaxinit._reading._experts import Picked, picked_weight
from jaxinit._reading._geometry import OPERATIONS
from jaxinit._reading._grouping import grouped
from jaxinit._reading._layers import Analysis, Entry
from jaxinit._reading._mixed_slices import MixedSlices
from jaxinit._reading._mixed_with_data import REASON, leaves_mixed_in, union, weights_among
from jaxinit._reading._notes import Notes
from jaxinit._reading._regions import Region, regions
from jaxinit._reading._towers import inputs_of_towers
from jaxinit._reading._uses import Uses
from jaxinit._reading._weights import Loop, Weights

_MOST_TOWERS = 8
"""The maximum number of towers that build on one another; further ones are not read."""


def analyse(program: ir.Program, leaf_count: int) -> Analysis:
    """Walks a program whose first `leaf_count` inputs are the leaves of the parameters; the others are data."""
    as_data: frozenset[ir.Atom] = frozenset()
    for _ in range(_MOST_TOWERS):
        walk = _Analyser(program, leaf_count, as_data)
        more = walk.towers - as_data
        if not more:
            break
        as_data |= more
    weights = grouped(walk.weights.weights.values(), walk.notes.uses.values(), walk.notes.reads)
    mark_ensembles(program, weights)
    return Analysis(
        program,
        walk.dependences,
        walk.notes.uses,
        weights,
        walk.notes.opaque,
        walk.notes.reads,
        walk.notes.read_leaves,
        as_data,
        frozenset(walk.noise),
    )


def _of_input(variable: ir.Variable, index: int, leaf_count: int) -> Dependence:
    """A leaf, if it holds floating-point numbers and so can be scaled; otherwise data."""
    if index >= leaf_count:
        return DATA
    return dependence.of_leaf(index, variable.shape) if ir.is_floating(variable) else INDEPENDENT


class _Known:
    """What values depend on, for the part of a program that has been walked."""

    def __init__(self, as_data: frozenset[ir.Atom]):
        self.as_data = as_data
        self.dependences: dict[ir.Variable, Dependence] = {}
        self.constants: dict[ir.Constant, Dependence] = {}

    def of(self, atom: ir.Atom) -> Dependence:
        """What a value depends on that has been walked."""
        if isinstance(atom, ir.Variable):
            return self.dependences[atom]
        if atom not in self.constants:
            self.constants[atom] = DATA if atom in self.as_data else dependence.of_constant(atom)
        return self.constants[atom]

    def so_far(self, atom: ir.Atom) -> Dependence:
        """Like `of`; values that have not been walked yet depend on data."""
        return self.dependences.get(atom, DATA) if isinstance(atom, ir.Variable) else self.of(atom)


class _Analyser:
    def __init__(self, program: ir.Program, leaf_count: int, as_data: frozenset[ir.Atom]):
        shapes = [v.shape for v in program.inputs[:leaf_count]]
        self.producers: dict[ir.Atom, ir.Equation] = {}
        known = _Known(as_data)
        self.dependences, self.of, self.known_so_far = known.dependences, known.of, known.so_far
        self.slices = MixedSlices(self.producers, self.of)
        self.weights, self.notes = Weights(shapes), Notes(shapes, self.slices)
        self.as_data = as_data
        self.towers: set[ir.Atom] = set()
        self.entered: dict[ir.Equation, Entry] = {}
        self.ends: dict[ir.Equation, Region] = {}
        self.noise: set[ir.Atom] = set()
        self.uses = Uses(self.weights, self.notes, self.slices, self.producers, self.of, self.known_so_far, self.noise)
        self.picked: dict[ir.Equation, Picked] = {}
        self.program(program, [_of_input(v, i, leaf_count) for i, v in enumerate(program.inputs)], ())
        for atom in program.outputs:
            self.notes.read_leaves |= set(self.of(atom).degrees)

    def became(self, atoms: Sequence[ir.Variable], values: Sequence[Dependence]) -> None:
        """Records what values depend on; if a value is data to a tower, its leaves are read here."""
        self.dependences.update(zip(atoms, values, strict=True))
        for atom in atoms if self.as_data else ():
            if atom in self.as_data:
                self.notes.read(self.dependences[atom])
                self.dependences[atom] = DATA

    def program(self, program: ir.Program, inputs: Sequence[Dependence], loops: tuple[Loop, ...]) -> list[Dependence]:
        self.became(program.inputs, inputs)
        consumers = program.readers
        self.producers.update(program.producers)
        # Values that depend on no data come first, so that a bias is known when its layer needs it.
        late: list[ir.Equation] = []
        unknown: set[ir.Atom] = {v for v in program.inputs if self.dependences[v].data}
        for equation in program.equations:
            if unknown.isdisjoint(equation.inputs):
                arguments = list(map(self.of, equation.inputs))
                if not any(x.data for x in arguments):
                    if equation.primitive is ir.random_bits_p or not self.noise.isdisjoint(equation.inputs):
                        self.noise.update(equation.outputs)
                    results = self.equation(equation, arguments, loops, consumers)
                    self.became(equation.outputs, results)
                    # For the layers of a tower, values from here are data.
                    unknown.update(v for v in equation.outputs if v in self.as_data)
                    continue
            unknown.update(equation.outputs)
            late.append(equation)
        self.towers |= inputs_of_towers(program.equations, self.known_so_far, consumers)
        found = regions(late, self.known_so_far, consumers) + complex_pairs(late, self.known_so_far, consumers)
        for region in found:
            self.ends[region.end] = region
            self.entered.update((entry.equation, entry) for entry in region.entries)
        for equation in late:
            results = self.equation(equation, list(map(self.of, equation.inputs)), loops, consumers)
            self.became(equation.outputs, results)
        return [self.of(atom) for atom in program.outputs]

    def equation(
        self,
        equation: ir.Equation,
        arguments: list[Dependence],
        loops: tuple[Loop, ...],
        consumers: dict[ir.Atom, list[ir.Equation | None]],
    ) -> list[Dependence]:
        if type(equation) is not ir.Equation:
            return self.holder(equation, arguments, loops)
        if equation.primitive in OPERATIONS:
            picked = picked_weight(equation, arguments, consumers, self.known_so_far, self.weights.leaf_of)
            if picked is not None:
                self.picked[picked.product] = picked
                self.notes.activation_input(equation, arguments, picked.lookup.weight, {picked.leaf})
                return [DATA]
        if equation in self.ends:
            self.uses.of_region(self.ends[equation], loops, consumers)
            return [DATA]
        if equation in self.entered:
            entry = self.entered[equation]
            leaves = {leaf for part in arguments[entry.weight].parts for leaf in self.weights.leaves_of(part)}
            self.notes.activation_input(equation, arguments, entry.weight, leaves)
            return [DATA]
        if equation not in self.picked:
            for x in arguments:
                if x.degrees or x.mixed_in:
                    break
            else:
                return rules.apply(equation, arguments)
        use = self.uses.of_equation(equation, arguments, loops, consumers, self.picked.pop(equation, None))
        results = rules.apply(equation, arguments)
        if use:
            leaves = {leaf for component in use.components for leaf in component.weight.regions}
            self.notes.activation_input(equation, arguments, use.entries[0].weight, leaves)
            return [DATA] * len(equation.outputs)
        meets_data = any(x.data for x in arguments)
        if results and results[0].data:
            results = self.mixed_in(equation, arguments, results)
            if meets_data:
                self.notes.activation_input(equation, arguments)
        elif results and not meets_data:
            self.notes.hidden(equation, arguments)
        return results

    def mixed_in(
        self, equation: ir.Equation, arguments: list[Dependence], results: list[Dependence]
    ) -> list[Dependence]:
        """Data computed from leaves that data has chosen or multiplied, and which of these would else be weights."""
        if self.notes.recording and equation.primitive in ir.CONTRACTIONS:
            self.notes.opaque.extend((leaf, REASON) for leaf in weights_among(equation, arguments, self.weights.shapes))
        found = leaves_mixed_in(equation, arguments)
        return [dataclasses.replace(x, mixed_in=found) for x in results] if found else results

    # Structured control flow

    def holder(self, equation: ir.Equation, arguments: list[Dependence], loops: tuple[Loop, ...]) -> list[Dependence]:
        """A loop or a branch."""
        self.slices.enter(equation)
        # Noise that a program inside reads is noise there, too.
        self.noise.update(v for entered in ir.entrances(equation) for v, atom in entered if atom in self.noise)
        match equation:
            case ir.Scan():
                return self.scan(equation, arguments, loops)
            case ir.Switch():
                return self.switch(equation, arguments, loops)
            case ir.While():
                return self.loop(equation, arguments, loops)
        raise TypeError(f"{equation.primitive} holds programs of an unknown kind")

    def scan(self, equation: ir.Scan, arguments: list[Dependence], loops: tuple[Loop, ...]) -> list[Dependence]:
        consts = arguments[: equation.num_consts]
        carry = arguments[equation.num_consts : equation.num_consts + equation.num_carry]
        stacked = arguments[equation.num_consts + equation.num_carry :]
        slices = [dependence.unstacked(x) for x in stacked]
        leaves = frozenset(leaf for x in stacked for leaf in x.degrees)
        inner = (*loops, Loop(equation.length, leaves, equation.reverse))

        def step(carry: list[Dependence]) -> list[Dependence]:
            return self.program(equation.body, [*consts, *carry, *slices], inner)

        initial, carry = carry, self.fixpoint(step, carry)
        self.notes.mixed(initial, carry)
        results = step(carry)
        return [*carry, *(dependence.stacked(x) for x in results[equation.num_carry :])]

    def loop(self, equation: ir.While, arguments: list[Dependence], loops: tuple[Loop, ...]) -> list[Dependence]:
        first, second = equation.condition_consts, equation.condition_consts + equation.body_consts
        condition_consts, consts, carry = arguments[:first], arguments[first:second], arguments[second:]
        # How often it runs depends on data: twice represents more than once.
        inner = (*loops, Loop(2, frozenset()))

        def step(carry: list[Dependence]) -> list[Dependence]:
            return self.program(equation.body, [*consts, *carry], inner)

        initial, carry = carry, self.fixpoint(step, carry)
        self.notes.mixed(initial, carry)
        (goes_on,) = self.program(equation.condition, [*condition_consts, *carry], loops)
        step(carry)
        steps = zip(carry, equation.body.inputs[equation.body_consts :], equation.body.outputs, strict=True)
        results = [x if after is before else self.decided([x], goes_on) for x, before, after in steps]
        self.notes.mixed(carry, results)
        self.notes.decisions(goes_on, results)
        return results

    def switch(self, equation: ir.Switch, arguments: list[Dependence], loops: tuple[Loop, ...]) -> list[Dependence]:
        index, *operands = arguments
        by_branch = [self.program(branch, operands, loops) for branch in equation.branches]
        results = [self.decided(cases, index) for cases in zip(*by_branch, strict=True)]
        for outputs in by_branch:
            self.notes.mixed(outputs, results)
        self.notes.decisions(index, results)
        return results

    def decided(self, cases: Sequence[Dependence], by: Dependence) -> Dependence:
        """One of several values, chosen by another one."""
        result = dependence.decided(functools.reduce(dependence.joined, cases), by)
        return dataclasses.replace(result, mixed_in=union(cases)) if by.data else result

    def fixpoint(
        self, step: Callable[[list[Dependence]], list[Dependence]], carry: list[Dependence]
    ) -> list[Dependence]:
        """The dependence of a loop's carry that holds for every iteration."""
        recording, self.notes.recording = self.notes.recording, False
        while True:
            after = [dependence.joined(a, b) for a, b in zip(carry, step(carry), strict=False)]
            if after == carry:
                break
            carry = after
        self.notes.recording = recording
        return carry
