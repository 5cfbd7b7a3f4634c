"""What the values of a program are used for: facts that every layer needs, gathered once.

Some values are computed without any data: from known numbers, parameters and random bits, element by element. Some are
computed only for statistics, such as the squares of a normalization: their sums are combined, element by element, with
the very values that they were computed from. Some sums add a branch to the value that it is computed from.
"""

import weakref

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._reading._expressions import Bits, Expression, Expressions
from jaxinit._reading._layers import Analysis
from jaxinit._reading._residual import Skip, skips

_REDUCTIONS = ir.family("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_window_sum", "psum") | {
    ir.dot_general_p
}
ELEMENTWISE = ir.ELEMENTWISE | ir.IDENTITIES
"""Primitives that compute each number of a value from those at the same position, or pass it on."""
_REARRANGEMENTS = frozenset({ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.broadcast_p, ir.rev_p})
_ELEMENT_BY_ELEMENT = ir.ELEMENTWISE | _REARRANGEMENTS


class Consumers:
    """The facts of an analysed program and of all programs inside it.

    Attributes:
      free: value computed without data → the expression of its elements.
      expressions: all expressions that were built for this program.
      idle: equations whose results are used only in statistics that are combined with their own sources again.
      skips: the skip connections.
      streams: the sums of a branch and the value that it is computed from.
      ends: cached results of following values to where they are used.
    """

    def __init__(self, analysis: Analysis):
        self.free: dict[ir.Atom, Expression] = {}
        self.expressions = Expressions()
        self.idle: set[ir.Equation] = set()
        self.skips: tuple[Skip, ...] = skips(analysis)
        self.streams = frozenset(skip.sum for skip in self.skips if not skip.projected)
        self.ends: dict[ir.Atom, ir.Variable] = {}
        self._level: dict[ir.Atom, int] = {}
        self._number: dict[ir.Atom, int] = {}
        self._producers: dict[ir.Atom, ir.Equation] = {}
        self._outside: dict[ir.Atom, ir.Atom] = {}
        self._uses = {use.equation for use in analysis.uses.values()}
        self._analysis_of = analysis.of
        self._program(analysis.program)
        del self._uses, self._analysis_of  # so that what is kept for a program does not keep the program

    def of(self, atom: ir.Atom) -> Expression | None:
        """The expression of a value computed without data; None for other values."""
        if isinstance(atom, ir.Variable):
            return self.free.get(atom)
        single = np.size(atom.value) == 1 if ir.is_known(atom) and _is_numeric(atom) else False
        return self.expressions.number(np.asarray(atom.value, atom.dtype)) if single else None

    def is_computed_from(self, value: ir.Atom, source: ir.Atom) -> bool:
        """Whether a value is computed from another one of its program or around it, in one iteration of the loops."""
        # It comes later, and is on a longer path from the inputs.
        number, level = self._number.get(source, 0), self._level.get(source, 0)
        seen, queue = set(), [value]
        while queue:
            atom = queue.pop()
            if atom is source:
                return True
            if atom not in seen and self._number.get(atom, 0) > number and self._level.get(atom, 0) >= level:
                seen.add(atom)
                queue.extend([self._outside[atom]] if atom in self._outside else self._inputs(atom))
        return False

    def _inputs(self, atom: ir.Atom) -> tuple[ir.Atom, ...]:
        equation = self._producers.get(atom)
        return () if equation is None else equation.inputs

    def _program(self, program: ir.Program) -> None:
        holders = frozenset(program.holders)
        for v in program.inputs:
            found = self._leaf(v)
            if found is not None:
                self.free.setdefault(v, found)
        self._producers.update(program.producers)
        levels, numbers = self._level, self._number
        for equation in program.equations:
            level = 0
            for atom in equation.inputs:
                level = max(level, levels.get(atom, 0))
            number = len(numbers) + 1
            for v in equation.outputs:
                levels[v], numbers[v] = level + 1, number
            found = self._expression(equation)
            if found is not None:
                self.free[equation.outputs[0]] = found
            for entered in ir.entrances(equation) if equation in holders else ():
                for v, atom in entered:
                    self._outside[v] = atom
                    self._level[v] = self._level.get(atom, 0)
                    self._number[v] = len(self._number) + 1
                    outside = self.of(atom)
                    if outside is not None:
                        self.free[v] = outside
            for inner in ir.subprograms(equation) if equation in holders else ():
                self._program(inner)
        self._find_idle(program)

    def _leaf(self, atom: ir.Variable) -> Expression | None:
        """An element of a leaf of the parameters, for a value that is a leaf, or a slice of one in a scan."""
        value = self._analysis_of(atom)
        if value.data or len(value.origins) != 1 or not ir.is_floating(atom):
            return None
        ((leaf, origin),) = value.origins.items()
        return self.expressions.parameter(leaf) if origin.exact and set(value.degrees) == {leaf} else None

    def _expression(self, equation: ir.Equation) -> Expression | None:
        if equation.primitive is ir.random_bits_p:
            return Bits(equation.outputs[0].dtype)
        if equation.primitive in _REARRANGEMENTS:
            return self.of(equation.inputs[0])
        if equation.primitive not in ELEMENTWISE:
            return None
        for atom in equation.inputs:
            if atom not in self.free and isinstance(atom, ir.Variable):
                return None
        inputs = [self.of(a) for a in equation.inputs]
        known = [x for x in inputs if x is not None]
        return self.expressions.step(equation, known) if known and len(known) == len(inputs) else None

    def _find_idle(self, program: ir.Program) -> None:
        """Traces every value back to the one it is an elementwise function of, and statistics to their sources."""
        root: dict[ir.Atom, ir.Atom] = {}
        statistics: dict[ir.Atom, frozenset[ir.Equation]] = {}
        of: dict[ir.Equation, ir.Atom] = {}
        met: set[ir.Equation] = set()
        for equation in program.equations:
            elementwise = equation.primitive in _ELEMENT_BY_ELEMENT
            if not (elementwise or equation.primitive in _REDUCTIONS) or equation in self._uses:
                continue
            data = [a for a in equation.inputs if a not in self.free and self._is_data(a)]
            if not data:
                continue
            if elementwise and len(data) == 1 and data[0] not in statistics:
                root[equation.outputs[0]] = root.get(data[0], data[0])
                continue
            whole = [a for a in data if a not in statistics]
            roots = {root.get(a, a) for a in whole}
            if elementwise and not whole:
                found = frozenset().union(*(statistics[a] for a in data))
                statistics.update(dict.fromkeys(equation.outputs, found))
            elif elementwise and len(roots) == 1:
                (own,) = roots
                met |= {r for a in data if a in statistics for r in statistics[a] if of[r] is own}
                root[equation.outputs[0]] = own
            elif not elementwise and len(roots) == 1 and len(whole) == len(data):
                (of[equation],) = roots
                statistics.update(dict.fromkeys(equation.outputs, frozenset((equation,))))
        self.idle |= met
        for equation in reversed(program.equations) if met else ():
            if equation.primitive not in _ELEMENT_BY_ELEMENT:
                continue
            readers = [e for v in equation.outputs for e in program.readers.get(v, [])]
            if readers and all(e in self.idle for e in readers):
                self.idle.add(equation)

    def _is_data(self, atom: ir.Atom) -> bool:
        return isinstance(atom, ir.Variable) and self._analysis_of(atom).data


def _is_numeric(atom: ir.Constant) -> bool:
    return not jnp.issubdtype(atom.dtype, jax.dtypes.extended)


_known: "weakref.WeakKeyDictionary[ir.Program, Consumers]" = weakref.WeakKeyDictionary()


def consumers_of(analysis: Analysis) -> Consumers:
    """The consumers of a program's values, gathered once."""
    if analysis.program not in _known:
        _known[analysis.program] = Consumers(analysis)
    return _known[analysis.program]
