"""How a program is cut: into parts that NumPy computes, and stages that are compiled.

Calls that are marked for NumPy divide a program into levels: their inputs belong to one level, and everything computed
from their outputs to the next. Within a level, equations are delayed until a product, a loop or such a call uses them,
so a stage begins where its first value is used, and equal layers become equal stages wherever they are. Stages that
always follow one another are joined again, because each compiled stage costs some ten milliseconds, however small.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._stages._hosted import is_hosted
from jaxinit._stages._keys import Keys
from jaxinit._stages._numpy import as_numpy, computation, is_small, program_computation
from jaxinit._stages._numpy_elementwise import Compute

_SMALL = 4096
"""Up to this many numbers are computed faster by NumPy than compiled for."""
_LARGE = 1 << 23
"""From this many numbers on, calls that are marked for NumPy are compiled nevertheless."""

_ENDS = frozenset({*ir.CONTRACTIONS, ir.scan_p, ir.while_p, ir.cond_p, ir.remat_p})
"""Primitives that end a stage."""
_LOOKS = frozenset({ir.reshape_p, ir.squeeze_p, ir.transpose_p, ir.slice_p, ir.broadcast_p})
"""Primitives that copy nothing in NumPy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Hosted:
    """An equation that NumPy computes."""

    compute: Compute
    equation: ir.Equation

    @property
    def several(self) -> bool:
        """Whether it returns a list of results."""
        return self.equation.primitive is ir.jit_p or self.equation.primitive.multiple_results

    @property
    def inputs(self) -> tuple[ir.Atom, ...]:
        """The inputs."""
        return self.equation.inputs

    @property
    def outputs(self) -> tuple[ir.Variable, ...]:
        """The outputs."""
        return self.equation.outputs


@dataclasses.dataclass(eq=False)
class Stage:
    """Equations that are compiled together; `inputs` in the order in which they are first used."""

    equations: tuple[ir.Equation, ...]
    inputs: tuple[ir.Atom, ...] = ()
    outputs: tuple[ir.Variable, ...] = ()
    key: Hashable | None = None


def cut(program: ir.Program) -> list[Hosted | Stage]:
    """The steps of a program, in the order in which they run."""
    return list(_Cutter(program).steps())


def whole_stage(program: ir.Program) -> Stage:
    """A program as one stage, whose first inputs are those of the program."""
    equations = tuple(_alive(program))
    made = {v for e in equations for v in e.outputs}
    own = {*made, *program.inputs}
    taken = (a for e in equations for a in e.inputs if a not in own and not _is_written_in(e, a))
    inputs = (*program.inputs, *dict.fromkeys(taken))
    outputs = tuple(dict.fromkeys(a for a in program.outputs if isinstance(a, ir.Variable) and a in made))
    return Stage(equations, inputs, outputs, _full(equations, inputs, outputs))


def _full(equations: Sequence[ir.Equation], inputs: Sequence[ir.Atom], outputs: Sequence[ir.Variable]) -> Any:
    keys = Keys()
    short = keys.short(equations, inputs, outputs)
    return None if short is None else keys.full(short)


class _Cutter:
    def __init__(self, program: ir.Program):
        self.program = program
        self.equations = _alive(program)
        self.numbers = {equation: i for i, equation in enumerate(self.equations)}
        self.makers: dict[ir.Atom, ir.Equation] = {v: e for e in self.equations for v in e.outputs}
        self.readers: dict[ir.Atom, list[ir.Equation | None]] = {}
        for equation in self.equations:
            for atom in dict.fromkeys(equation.inputs):
                self.readers.setdefault(atom, []).append(equation)
        for atom in program.outputs:
            self.readers.setdefault(atom, []).append(None)
        self._computations: dict[int, Compute | None] = {}
        self.hosted = self._hosted()
        self.waiting = {e for e in self.equations if e not in self.hosted}
        self.keys = Keys()

    # What NumPy computes.

    def _hosted(self) -> dict[ir.Equation, Compute]:
        """The equations that NumPy computes: those marked, some that need no copy, and those of few numbers."""
        found: dict[ir.Equation, Compute] = {}
        for equation in reversed(self.equations):
            compute = None
            if equation.primitive in (ir.jit_p, ir.hosted_p):
                compute = self._marked(equation)
            elif self._is_read_in(found, equation) and (equation.primitive in _LOOKS or is_small(equation, _SMALL)):
                compute = computation(equation)
            if compute is not None:
                found[equation] = compute
        for equation in self.equations:
            makers = [self.makers.get(a) for a in equation.inputs]
            if equation not in found and is_small(equation, _SMALL) and all(e is None or e in found for e in makers):
                compute = computation(equation)
                if compute is not None:
                    found[equation] = compute
        return found

    def _is_read_in(self, found: dict[ir.Equation, Compute], equation: ir.Equation) -> bool:
        return all(reader in found for v in equation.outputs for reader in self.readers.get(v, ()))

    def _marked(self, equation: ir.Equation) -> Compute | None:
        if sum(math.prod(a.shape) for a in equation.inputs) > _LARGE:
            return None
        if equation.primitive is ir.hosted_p:
            by_numpy: Compute = equation.params["computation"].by_numpy
            return by_numpy
        if not is_hosted(equation.params["name"]):
            return None
        jaxpr = equation.params["jaxpr"]  # calls with arguments of equal shapes share it
        if id(jaxpr) not in self._computations:
            self._computations[id(jaxpr)] = program_computation(ir.flat_program(jaxpr))
        return self._computations[id(jaxpr)]

    # Steps.

    def steps(self) -> Iterator[Hosted | Stage]:
        """All steps in order; NumPy's as early as possible, so that values need not be kept."""
        missing = {e: sum(a in self.makers for a in dict.fromkeys(e.inputs)) for e in self.hosted}
        full: dict[Hashable, Hashable] = {}

        def ready(made: Iterable[ir.Atom]) -> Iterator[Hosted]:
            stack = list(made)[::-1]
            while stack:
                for reader in self.readers.get(stack.pop(), ()):
                    if reader is not None and reader in missing:
                        missing[reader] -= 1
                        if not missing[reader]:
                            yield Hosted(self.hosted[reader], reader)
                            stack.extend(reversed(reader.outputs))

        first = [e for e in self.equations if missing.get(e) == 0]
        for equation in first:
            yield Hosted(self.hosted[equation], equation)
            yield from ready(equation.outputs)
        for targets in self._levels():
            stages = [stage for group in self._apart(targets) for stage in self._stages(group)]
            for stage in self._joined(stages):
                if stage.key is not None:
                    if stage.key not in full:
                        full[stage.key] = self.keys.full(stage.key)
                    stage.key = full[stage.key]
                yield stage
                yield from ready(stage.outputs)

    def _levels(self) -> list[list[ir.Equation | ir.Atom]]:
        """For each level what it must compute, in order: equations that end a stage, and values that are needed."""
        after: dict[ir.Atom, int] = {}
        targets: dict[int, list[ir.Equation | ir.Atom]] = {}
        for equation in self.equations:
            made = [a for a in equation.inputs if a in self.makers]
            level = max((after[a] for a in made), default=0)
            if equation in self.hosted:
                for a in made:
                    if self.makers[a] not in self.hosted:
                        targets.setdefault(after[a], []).append(a)
                        level = max(level, after[a] + 1)
            elif equation.primitive in _ENDS:
                targets.setdefault(level, []).append(equation)
            after.update(dict.fromkeys(equation.outputs, level))
        last = max([*targets, *after.values()], default=0)
        targets.setdefault(last, []).extend(a for a in self.program.outputs if a in self.makers)
        return [targets[level] for level in sorted(targets)]

    def _apart(self, targets: Sequence[ir.Equation | ir.Atom]) -> list[list[ir.Equation | ir.Atom]]:
        """Targets that share no delayed equations, separated, so that the stages of each follow one another."""
        ends = [self.makers[t] if not isinstance(t, ir.Equation) else t for t in targets]
        waiting = self._waiting_for(v for e in ends if e in self.waiting for v in e.outputs)
        home = {e: i for i, group in enumerate(_components(waiting)) for e in group}
        groups: dict[int, list[ir.Equation | ir.Atom]] = {}
        for target, end in zip(targets, ends, strict=True):
            groups.setdefault(home.get(end, -1), []).append(target)
        return list(groups.values())

    def _stages(self, targets: Sequence[ir.Equation | ir.Atom]) -> Iterator[Stage]:
        left: list[ir.Atom] = []
        for target in targets:
            if not isinstance(target, ir.Equation):
                maker = self.makers[target]
                if maker not in self.waiting:
                    continue
                if not self._is_of_program(target):
                    yield self._stage(self._waiting_for([target]))
                else:
                    left.append(target)
            elif target in self.waiting:
                yield self._stage([*self._waiting_for(target.inputs), target])
        for group in _components(self._waiting_for(left)):
            yield self._stage(group)

    def _is_of_program(self, atom: ir.Atom) -> bool:
        """Whether a value is used only as an output of the program."""
        return all(reader is None for reader in self.readers[atom])

    def _waiting_for(self, atoms: Iterable[ir.Atom]) -> list[ir.Equation]:
        found: set[ir.Equation] = set()
        stack = list(atoms)
        while stack:
            equation = self.makers.get(stack.pop())
            if equation is not None and equation in self.waiting and equation not in found:
                found.add(equation)
                stack.extend(equation.inputs)
        return sorted(found, key=self.numbers.__getitem__)

    def _stage(self, equations: Sequence[ir.Equation]) -> Stage:
        """A stage with its ends, and a key among those of this program."""
        self.waiting.difference_update(equations)
        inside = set(equations)
        made = [v for e in equations for v in e.outputs]
        own = set(made)
        taken = (a for e in equations for a in e.inputs if a not in own and not _is_written_in(e, a))
        inputs = tuple(dict.fromkeys(taken))
        outputs = tuple(v for v in made if any(r is None or r not in inside for r in self.readers.get(v, ())))
        return Stage(tuple(equations), inputs, outputs, self.keys.short(equations, inputs, outputs))

    def _joined(self, stages: list[Stage]) -> list[Stage]:
        """Joins stages that always follow one another, as long as there are any."""
        while True:
            names: list[Any] = [p.key or id(p) for p in stages]
            counts, pairs = Counter(names), Counter(itertools.pairwise(names))
            joined: list[Stage] = []
            i = 0
            while i < len(stages):
                together = i + 1 < len(stages) and names[i] != names[i + 1]
                if together and counts[names[i]] == counts[names[i + 1]] == pairs[names[i], names[i + 1]]:
                    joined.append(self._stage((*stages[i].equations, *stages[i + 1].equations)))
                    i += 2
                else:
                    joined.append(stages[i])
                    i += 1
            if len(joined) == len(stages):
                return joined
            stages = joined


def _alive(program: ir.Program) -> list[ir.Equation]:
    """The equations on which some output depends."""
    needed = set(program.outputs)
    found = []
    for equation in reversed(program.equations):
        if not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            found.append(equation)
    return found[::-1]


def _components(equations: Sequence[ir.Equation]) -> list[list[ir.Equation]]:
    """Separates equations that share no value computed by one of them."""
    home: dict[ir.Atom, int] = {}
    groups: dict[int, list[ir.Equation]] = {}
    for i, equation in enumerate(equations):
        mine = {home[a] for a in equation.inputs if a in home}
        first = min(mine, default=i)
        merged = [e for g in sorted(mine) for e in groups.pop(g)]
        groups[first] = [*merged, equation]
        for e in groups[first] if len(mine) > 1 else (equation,):
            home.update(dict.fromkeys(e.outputs, first))
    order = {e: i for i, e in enumerate(equations)}
    return [sorted(group, key=order.__getitem__) for _, group in sorted(groups.items())]


def _is_written_in(equation: ir.Equation, atom: ir.Atom) -> bool:
    """Whether a constant is written into a stage; arrays that a function closes over are inputs.

    So are constants by which a program multiplies, since layers that are otherwise equal may have different ones.
    """
    if not isinstance(atom, ir.Constant) or atom.shape or ir.is_key(atom):
        return False
    scales = equation.primitive is ir.mul_p and isinstance(atom.value, np.ndarray | np.floating | float)
    return not scales or float(abs(as_numpy(atom))) in (0.0, 0.5, 1.0, 2.0)
