"""Which layers sit in the branch of a skip connection, x + f(x), and at which position.

An addition of two data values is a skip connection if one side, up to linear operations without weights, is a value
that the other side is computed from; or if one side is that value through a single layer (a projection shortcut) and
the other has two layers or more.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._flow import programs_of
from jaxinit._reading._origin import FOREIGN
from jaxinit._reading._units import Analysis, Site


@dataclasses.dataclass(frozen=True)
class Membership:
    """The innermost skip connection that a layer sits under, numbered in order, and its place in that branch."""

    skip: int
    position: int
    length: int


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skip connection.

    Attributes:
      layers: the layers of the branch, in execution order.
      multiplier: the leaf of one number, in each step of a scan, that multiplies the branch, or None.
      shortcut: the leaf that multiplies what the branch is added to, or None.
    """

    layers: tuple[Site, ...]
    multiplier: int | None
    shortcut: int | None


def skips(analysis: Analysis) -> tuple[Skip, ...]:
    """The skip connections whose branches hold layers of their own, in execution order."""
    found = []
    for program in programs_of(analysis.program):
        history = _History(analysis, program)
        for equation in program.equations:
            layers, branch, shortcut = history.branch(equation)
            if layers:
                found.append((layers, history.multiplier(branch, scalar=True), history.multiplier(shortcut)))
    innermost: dict[Site, int] = {}
    for i, (layers, *_) in enumerate(found):
        for site in layers:
            if site not in innermost or len(found[innermost[site]][0]) > len(layers):
                innermost[site] = i
    return tuple(Skip(tuple(x[0]), x[1], x[2]) for i, x in enumerate(found) if i in innermost.values())


def memberships(connections: Sequence[Skip]) -> dict[Site, Membership]:
    """The skip connection of each layer that has one."""
    found: dict[Site, Membership] = {}
    for number, skip in enumerate(connections):
        for position, site in enumerate(skip.layers):
            if site not in found or found[site].length > len(skip.layers):
                found[site] = Membership(number, position, len(skip.layers))
    return found


class _History:
    """For each value of a program, as sets of bits, the equations it is computed from."""

    def __init__(self, analysis: Analysis, program: ir.Program):
        self.analysis = analysis
        self.index = {equation: i for i, equation in enumerate(program.equations)}
        self.readers = collections.Counter(a for e in program.equations for a in e.inputs)
        self.readers.update(program.outputs)
        self.producer: dict[ir.Atom, ir.Equation] = {v: e for e in program.equations for v in e.outputs}
        self.inputs = {v: 1 << (len(program.equations) + i) for i, v in enumerate(program.inputs)}
        self.of: dict[ir.Atom, int] = {}
        for equation in program.equations:
            bits = 1 << self.index[equation]
            for atom in equation.inputs:
                if isinstance(atom, ir.Variable) and analysis.of(atom).data:
                    bits |= self.of.get(atom, self.inputs.get(atom, 0))
            self.of.update(dict.fromkeys(equation.outputs, bits))
        self.sites: dict[int, list[Site]] = {}
        for equation, i in self.index.items():
            if equation in analysis.sites:
                self.sites[i] = [analysis.sites[equation]]
            elif ir.subprograms(equation):
                inner = (e for p in ir.subprograms(equation) for e in ir.equations_of(p))
                held = [analysis.sites[e] for e in inner if e in analysis.sites]
                if held:
                    self.sites[i] = held

    def branch(self, equation: ir.Equation) -> tuple[list[Site], ir.Atom | None, ir.Atom | None]:
        """If an equation adds a branch to its skip connection: the branch's layers, and what is added to what."""
        nothing: tuple[list[Site], None, None] = [], None, None
        if equation.primitive not in (ir.add_p, ir.add_any_p) or equation in self.analysis.sites:
            return nothing
        left, right = equation.inputs
        if not (self._is_data(left) and self._is_data(right)):
            return nothing
        for skip, branch in ((left, right), (right, left)):
            root = self._root(skip)
            bits = self.of.get(branch, self.inputs.get(branch, 0))  # type: ignore[arg-type]
            if self._bit(root) & bits and root is not branch:
                return self._layers(bits & ~self._history(root)), branch, skip
        for skip, branch in ((left, right), (right, left)):
            shortcut = self._layers(self._history(skip) & ~self._history(branch))
            layers = self._layers(self._history(branch) & ~self._history(skip))
            one = len(shortcut) == 1 and shortcut[0].geometry.kind != "embed"
            if one and len(layers) > 1 and not self._is_gated(branch):
                source = self._root(shortcut[0].data)
                if self._bit(source) & self._history(branch):
                    return layers, branch, skip
        return nothing

    def multiplier(self, atom: ir.Atom | None, scalar: bool = False) -> int | None:
        """The leaf that multiplies a value, on the way to this use of it alone; `scalar`: a leaf of one number."""
        while atom is not None and self.readers.get(atom) == 1:
            equation = self.producer.get(atom)
            data = [] if equation is None else [x for x in equation.inputs if self._is_data(x)]
            if equation is None or equation in self.analysis.sites or len(data) != 1:
                return None
            if equation.primitive is ir.mul_p:
                for value in equation.inputs:
                    for leaf, origin in self.analysis.of(value).origins.items():
                        if not scalar or math.prod(f.size for d in origin.dims for f in d if f.axis != FOREIGN) == 1:
                            return leaf
            (atom,) = data
        return None

    def _is_data(self, atom: ir.Atom) -> bool:
        return isinstance(atom, ir.Variable) and self.analysis.of(atom).data

    def _history(self, atom: ir.Atom) -> int:
        return self.of.get(atom, self.inputs.get(atom, 0))  # type: ignore[arg-type]

    def _bit(self, atom: ir.Atom) -> int:
        if atom in self.producer:
            return 1 << self.index[self.producer[atom]]
        return self.inputs.get(atom, 0)  # type: ignore[arg-type]

    def _root(self, atom: ir.Atom) -> ir.Atom:
        """The value that a skip connection starts from: linear operations without data or layers are undone."""
        while (equation := self.producer.get(atom)) is not None and equation not in self.analysis.sites:
            moved = equation.primitive in {*ir.IDENTITIES, ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.neg_p}
            moved |= equation.primitive in (ir.broadcast_p, ir.slice_p, ir.pad_p)
            data = [x for x in equation.inputs if self._is_data(x)]
            scaled = equation.primitive in (ir.mul_p, ir.div_p) and len(data) == 1 and data[0] is equation.inputs[0]
            scaled |= equation.primitive is ir.mul_p and len(data) == 1
            if not (moved or scaled):
                break
            atom = data[0]
        return atom

    def _is_gated(self, atom: ir.Atom) -> bool:
        """Whether a value is a product of two data values, as in a recurrent cell; a normalisation is not."""
        equation = self.producer.get(self._root(atom))
        if equation is None or equation.primitive is not ir.mul_p:
            return False
        producers = [self.producer.get(x) for x in equation.inputs]
        return not any(producer is not None and producer.primitive is ir.broadcast_p for producer in producers)

    def _layers(self, bits: int) -> list[Site]:
        return [site for i, sites in self.sites.items() if bits >> i & 1 for site in sites]
