"""Which layers sit in the branch of a skip connection, x + f(x), and at which position.

An addition of two data values is a skip connection if one side, up to linear operations without weights, is a value
that the other side is computed from; or if one side is that value through a single layer (a projection shortcut) and
the other has two layers or more.
"""

import dataclasses

from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._units import Analysis, Site


@dataclasses.dataclass(frozen=True)
class Membership:
    """The innermost skip connection that a layer sits under, numbered in order, and its place in that branch."""

    skip: int
    position: int
    length: int


def memberships(analysis: Analysis) -> dict[Site, Membership]:
    """The skip connection of each layer that has one."""
    found: dict[Site, tuple[int, list[Site]]] = {}
    count = 0
    for program in _programs(analysis.program):
        history = _History(analysis, program)
        for equation in program.equations:
            branch = history.branch(equation)
            if branch:
                for site in branch:
                    if site not in found or len(found[site][1]) > len(branch):
                        found[site] = (count, branch)
                count += 1
    used = sorted({skip for skip, _ in found.values()})
    return {
        site: Membership(used.index(skip), branch.index(site), len(branch)) for site, (skip, branch) in found.items()
    }


def _programs(program: ir.Program) -> list[ir.Program]:
    inner = [p for equation in program.equations for child in ir.subprograms(equation) for p in _programs(child)]
    return [program, *inner]


class _History:
    """For each value of a program, as sets of bits, the equations it is computed from."""

    def __init__(self, analysis: Analysis, program: ir.Program):
        self.analysis = analysis
        self.index = {equation: i for i, equation in enumerate(program.equations)}
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

    def branch(self, equation: ir.Equation) -> list[Site]:
        """The layers of the branch that an equation adds to its skip connection; empty if it is none."""
        if equation.primitive not in (ir.add_p, ir.add_any_p) or equation in self.analysis.sites:
            return []
        left, right = equation.inputs
        if not (self._is_data(left) and self._is_data(right)):
            return []
        for skip, branch in ((left, right), (right, left)):
            root = self._root(skip)
            bits = self.of.get(branch, self.inputs.get(branch, 0))  # type: ignore[arg-type]
            if self._bit(root) & bits and root is not branch:
                return self._layers(bits & ~self._history(root))
        for skip, branch in ((left, right), (right, left)):
            shortcut = self._layers(self._history(skip) & ~self._history(branch))
            layers = self._layers(self._history(branch) & ~self._history(skip))
            one = len(shortcut) == 1 and shortcut[0].geometry.kind != "embed"
            if one and len(layers) > 1 and not self._is_gated(branch):
                source = self._root(shortcut[0].data)
                if self._bit(source) & self._history(branch):
                    return layers
        return []

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
