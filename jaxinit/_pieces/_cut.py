"""How a program is cut: into what NumPy computes at once, and pieces that are compiled.

Equations are put off until something needs them, so that a piece begins where its first value is used and equal layers
become equal pieces wherever they stand. A call that is marked for NumPy needs its arguments, and so does the end of the
program. What is put off until then is cut after each product, and pieces that always follow one another are joined
again: each piece that is compiled costs some ten milliseconds, however small it is.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeGuard

from jaxinit import _program as ir
from jaxinit._pieces._hosted import is_hosted
from jaxinit._pieces._keys import Keys
from jaxinit._pieces._numpy import Compute, computation, is_small, program_computation

_SMALL = 4096
"""So many numbers are cheaper computed by NumPy than compiled for."""
_LARGE = 1 << 23
"""From so many numbers on what is marked for NumPy is compiled nevertheless."""

_ENDS = frozenset({*ir.CONTRACTIONS, ir.scan_p, ir.while_p, ir.cond_p, ir.remat_p})
"""What a piece ends with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Hosted:
    """Equations that NumPy computes."""

    compute: Compute
    several: bool
    inputs: tuple[ir.Atom, ...]
    outputs: tuple[ir.Variable, ...]


@dataclasses.dataclass(eq=False)
class Piece:
    """Equations that are compiled together; `inputs` in the order in which they are first used."""

    equations: tuple[ir.Equation, ...]
    inputs: tuple[ir.Atom, ...] = ()
    outputs: tuple[ir.Variable, ...] = ()
    key: Hashable | None = None


def cut(program: ir.Program) -> list[Hosted | Piece]:
    """The steps of a program, in the order in which they run."""
    keys = Keys()
    steps = _joined(program, _Cutter(program).steps, keys)
    full: dict[Hashable, Hashable] = {}
    for step in steps:
        if isinstance(step, Piece) and step.key is not None:
            if step.key not in full:
                full[step.key] = keys.full(step.key)
            step.key = full[step.key]
    return steps


class _Cutter:
    def __init__(self, program: ir.Program):
        self.steps: list[Hosted | Piece] = []
        self._computations: dict[int, Compute | None] = {}
        self.makers: dict[ir.Atom, ir.Equation] = {v: e for e in program.equations for v in e.outputs}
        self.numbers = program.numbers
        self.waiting: set[ir.Equation] = set()
        self.there: set[ir.Atom] = set(program.inputs)
        for equation in _alive(program):
            hosted = self._hosted(equation)
            if hosted is None:
                self.waiting.add(equation)
                continue
            self._need(equation.inputs)
            self.steps.append(hosted)
            self.there.update(equation.outputs)
        self._need(program.outputs)

    def _hosted(self, equation: ir.Equation) -> Hosted | None:
        several = equation.primitive.multiple_results
        if equation.primitive in (ir.jit_p, ir.hosted_p):
            compute = self._marked(equation)
            return None if compute is None else Hosted(compute, True, equation.inputs, equation.outputs)
        if not all(isinstance(a, ir.Constant) or a in self.there for a in equation.inputs):
            return None
        compute = computation(equation) if is_small(equation, _SMALL) else None
        return None if compute is None else Hosted(compute, several, equation.inputs, equation.outputs)

    def _marked(self, equation: ir.Equation) -> Compute | None:
        """How NumPy computes a call that is marked, if it does."""
        if sum(math.prod(a.shape) for a in equation.inputs) > _LARGE:
            return None
        if equation.primitive is ir.hosted_p:
            by_numpy: Compute = equation.params["computation"].by_numpy
            return by_numpy
        if not is_hosted(equation.params["name"]):
            return None
        jaxpr = equation.params["jaxpr"]  # calls with arguments of equal shapes hold the same
        if id(jaxpr) not in self._computations:
            self._computations[id(jaxpr)] = program_computation(ir.flat_program(jaxpr))
        return self._computations[id(jaxpr)]

    def _need(self, atoms: Iterable[ir.Atom]) -> None:
        """Pieces for what these values are computed from, as far as it waits."""
        needed = self._waiting_for(atoms)
        for equation in [e for e in needed if e.primitive in _ENDS]:
            if equation in self.waiting:
                self._emit([*self._waiting_for(equation.inputs), equation])
        for group in _components([e for e in needed if e in self.waiting]):
            self._emit(group)

    def _waiting_for(self, atoms: Iterable[ir.Atom]) -> list[ir.Equation]:
        found: set[ir.Equation] = set()
        stack = list(atoms)
        while stack:
            equation = self.makers.get(stack.pop())
            if equation is not None and equation in self.waiting and equation not in found:
                found.add(equation)
                stack.extend(equation.inputs)
        return sorted(found, key=self.numbers.__getitem__)

    def _emit(self, equations: Sequence[ir.Equation]) -> None:
        self.steps.append(Piece(tuple(equations)))
        self.waiting.difference_update(equations)
        for equation in equations:
            self.there.update(equation.outputs)


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
    """Equations that share no value that one of them makes, apart."""
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


def _with_ends(program: ir.Program, steps: Sequence[Hosted | Piece], keys: Keys) -> None:
    """Gives pieces inputs, the outputs that later steps take, and keys among those of the program."""
    used: set[ir.Atom] = set(program.outputs)
    for step in reversed(steps):
        if isinstance(step, Piece):
            made = [v for e in step.equations for v in e.outputs]
            inside = set(made)
            taken = (a for e in step.equations for a in e.inputs if a not in inside and not is_literal(a))
            step.inputs = tuple(dict.fromkeys(taken))
            step.outputs = tuple(v for v in made if v in used)
            step.key = keys.short(step.equations, step.inputs, step.outputs)
        used.update(step.inputs)


def is_literal(atom: ir.Atom) -> TypeGuard[ir.Constant]:
    """Constants of one number are written into a piece; arrays that a function closes over are its inputs."""
    return isinstance(atom, ir.Constant) and not atom.shape and not ir.is_key(atom)


def _joined(program: ir.Program, steps: list[Hosted | Piece], keys: Keys) -> list[Hosted | Piece]:
    """Pieces that always follow one another made one, as long as there are any."""
    while True:
        _with_ends(program, steps, keys)
        names: list[Any] = [(s.key or id(s)) if isinstance(s, Piece) else None for s in steps]
        counts = Counter(names)
        pairs = Counter(itertools.pairwise(names))
        joined: list[Hosted | Piece] = []
        i = 0
        while i < len(steps):
            step = steps[i]
            if i + 1 < len(steps) and isinstance(step, Piece) and _always(names[i], names[i + 1], counts, pairs):
                following = steps[i + 1]
                assert isinstance(following, Piece)
                joined.append(Piece((*step.equations, *following.equations)))
                i += 2
            else:
                joined.append(step)
                i += 1
        if len(joined) == len(steps):
            return joined
        steps = joined


def _always(a: Any, b: Any, counts: Counter[Any], pairs: Counter[Any]) -> bool:
    return a is not None and b is not None and a != b and counts[a] == counts[b] == pairs[a, b]
