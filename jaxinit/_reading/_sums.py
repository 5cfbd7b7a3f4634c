"""The nature of a sum of data values: its terms, what they start from, and whether it sums over a recurrence.

Sums that nothing else reads are split into terms. A term is followed back through linear operations without layers.
"""

import math
from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis
from jaxinit._reading._normalizations import normalizations_of
from jaxinit._reading._origin import FOREIGN
from jaxinit._reading._paths import Branch, Paths

_SUMS = (ir.add_p, ir.add_any_p)
_MOVES = frozenset({*ir.IDENTITIES, ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.neg_p, ir.broadcast_p, ir.pad_p})
_POOLS = ir.family("reduce_window_sum")
_BEFORE_EXPONENTIALS = (*_SUMS, ir.sub_p, ir.mul_p, ir.div_p, ir.select_p, ir.max_p)
_MIXING = ir.family("fft", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "associative_scan")
"""Primitives that carry values along a sequence, in place of a loop."""


class Sums(Paths):
    """The sums of one program."""

    def __init__(self, analysis: Analysis, program: ir.Program, carried: frozenset[ir.Atom]):
        super().__init__(analysis, program)
        self.carried = carried
        self.normalizing = frozenset(normalizations_of(analysis, program))
        self.inside = self._inside_layers()

    def _inside_layers(self) -> frozenset[int]:
        """The equations of a layer that is a sum of products, such as a convolution by shifts."""
        inside: set[int] = set()
        for use in self.analysis.uses.values():
            if len(use.entries) == 1 or use.finish not in self.program.numbers:
                continue
            entries = {self.number(entry.equation.outputs[0]) for entry in use.entries}
            pending = [self.number(use.equation.outputs[0])]
            while pending:
                i = pending.pop()
                if i >= 0 and i not in inside:
                    inside.add(i)
                    pending.extend(self.number(a) for a in (() if i in entries else self.sources[i]))
        return frozenset(inside)

    def is_sum(self, i: int) -> bool:
        return self._adds(i) and len(self.sources[i]) == 2

    def adds_no_data(self, i: int) -> bool:
        return self._adds(i) and len(self.sources[i]) == 1

    def _adds(self, i: int) -> bool:
        """Whether an equation is an addition that is not part of a layer."""
        equation = self.program.equations[i]
        return equation.primitive in _SUMS and equation not in self.analysis.uses and i not in self.inside

    def terms(self, i: int, inner: set[int]) -> list[ir.Atom]:
        """The terms of a sum, with inner sums that nothing else reads split; their numbers go into `inner`."""
        terms: list[ir.Atom] = []
        pending = list(reversed(self.sources[i]))
        while pending:
            atom = pending.pop()
            j = self.index.get(atom)
            alone = j is not None and len(self.readers[atom]) == 1
            if j is not None and alone and (self.is_sum(j) or self.adds_no_data(j)):
                inner.add(j)
                pending.extend(reversed(self.sources[j]))
            else:
                terms.append(atom)
        return terms

    def is_broadcast(self, atom: ir.Atom, end: int) -> bool:
        """Whether a term of a sum is one value for many positions of it, such as one that conditions all of them."""
        while math.prod(atom.shape) == math.prod(self.program.equations[end].outputs[0].shape):
            i = self.index.get(atom)
            if i is None or len(self.sources[i]) != 1 or self.program.equations[i].primitive not in _MOVES:
                return False
            (atom,) = self.sources[i]
        return True

    def root(self, atom: ir.Atom) -> ir.Atom:
        """The value that a skip connection starts from: undoes linear operations without layers or other data."""
        while (i := self.index.get(atom)) is not None and len(self.sources[i]) == 1:
            equation = self.program.equations[i]
            (source,) = self.sources[i]
            moved = equation.primitive in _MOVES | _POOLS or equation.primitive in _SUMS or _crops(equation)
            scaled = equation.primitive is ir.mul_p
            scaled |= equation.primitive is ir.div_p and source is equation.inputs[0]
            if equation in self.analysis.uses or not (moved or scaled):
                break
            atom = source
        return atom

    def is_spread(self, term: ir.Atom, i: int) -> bool:
        """Whether a term of a sum adds each of its elements to several others, as shifts of a whole sequence do."""
        sizes = [math.prod(self.program.equations[i].outputs[0].shape), math.prod(term.shape)]
        root = self.root(term)
        while sizes[-1] == sizes[-2] and term is not root:
            j = self.index[term]
            (source,) = self.sources[j]
            if self.program.equations[j].primitive is ir.broadcast_p:
                sizes += [math.prod(term.shape), math.prod(source.shape)]
            term = source
        return sizes[-1] < sizes[-2]

    def is_modulated(self, root: ir.Atom, shortcut: ir.Atom, term: ir.Atom) -> bool:
        """Whether a sum is a y + b, like a modulated value, where a and b are cut from `root`; `term` is a y."""
        i = self.index.get(self.root(term))
        if i is None or not self.weighs(term) or not self._is_cut(shortcut):
            return False
        return any(self.root(factor) is root and self._is_cut(factor) for factor in self.sources[i])

    def _is_cut(self, atom: ir.Atom) -> bool:
        """Whether a value is a part of the value that it starts from."""
        root = self.root(atom)
        while atom is not root:
            i = self.index[atom]
            if _crops(self.program.equations[i]):
                return True
            (atom,) = self.sources[i]
        return False

    def are_scores(self, i: int, terms: Sequence[ir.Atom]) -> bool:
        """Whether a sum is one of the scores of attention, such as of queries and keys and a mask or a bias of pairs.

        One term is a product of two data values that sums over their features, and the exponential of the sum follows.
        """
        makers = [self.index.get(self.root(term)) for term in terms]
        equations = [(j, self.program.equations[j]) for j in makers if j is not None]
        if not any(
            e.primitive is ir.dot_general_p and len(self.sources[j]) == 2 and e not in self.analysis.uses
            for j, e in equations
        ):
            return False
        queue, seen = [i], set()
        while queue:
            j = queue.pop()
            if j in seen or j >= len(self.program.equations):
                continue
            seen.add(j)
            equation = self.program.equations[j]
            if equation.primitive is ir.exp_p:
                return True
            if j == i or equation.primitive in _BEFORE_EXPONENTIALS or equation.primitive in _MOVES:
                queue.extend(k for v in equation.outputs for k in self.readers[v])
        return False

    def weighs(self, atom: ir.Atom) -> bool:
        """Whether a value is a product of two data values, as in a recurrent cell; a normalisation does not count."""
        i = self.index.get(self.root(atom))
        if i is None or self.program.equations[i].primitive is not ir.mul_p or len(self.sources[i]) != 2:
            return False
        return self.program.equations[i] not in self.normalizing

    def multiplier(self, atom: ir.Atom, scalar: bool = False) -> int | None:
        """The leaf that multiplies a value on the path to this use alone; `scalar`: a leaf of one number."""
        while len(self.readers[atom]) == 1 and (i := self.index.get(atom)) is not None:
            equation = self.program.equations[i]
            if equation in self.analysis.uses or len(self.sources[i]) != 1:
                return None
            if equation.primitive is ir.mul_p:
                for value in equation.inputs:
                    for leaf, origin in self.analysis.of(value).origins.items():
                        if not scalar or math.prod(f.size for d in origin.dims for f in d if f.axis != FOREIGN) == 1:
                            return leaf
            (atom,) = self.sources[i]
        return None

    def is_series(self, terms: Sequence[ir.Atom], branches: Sequence[tuple[ir.Atom, Branch]]) -> bool:
        """Whether terms are computed from one another by the same weights: a state at several times."""
        ends = {self.index[t] for t in terms}
        for term, branch in branches:
            if len(ends & branch.members) > 1:
                weights = [component.weight for use in branch.after for component in use.components]
                if len(set(weights)) < len(weights) and self.index[term] in ends:
                    return True
        return False

    def is_recurrent(self, root: ir.Atom, term: ir.Atom, branch: Branch) -> bool:
        """Whether a branch is a recurrence: values go from step to step in it by other means than layers."""
        equations = [self.program.equations[i] for i in branch.members]
        if any(isinstance(e, ir.While) or (isinstance(e, ir.Scan) and e.num_carry) for e in equations):
            return True
        if any(e.primitive in _MIXING or self._shifts(i) for i, e in zip(branch.members, equations, strict=True)):
            return True
        weights = {component.weight for use in branch.after for component in use.components}
        carried = self.carried - {root}
        seen: set[ir.Atom] = {root}
        pending = [term]
        while pending:
            atom = pending.pop()
            if atom in seen:
                continue
            seen.add(atom)
            if atom in carried:
                return True
            i = self.index.get(atom)
            if i is None:
                continue
            use = self.analysis.uses.get(self.program.equations[i])
            if i not in branch.members and use is not None:
                # A layer of another step: the same weights computed what the branch uses from elsewhere.
                if any(component.weight in weights for component in use.components):
                    return True
                continue
            if atom in self.known and i not in branch.members:
                continue
            pending.extend(self.sources[i])
        return False

    def _shifts(self, i: int) -> bool:
        """Whether an equation adds parts of one value from different positions, as a divide-and-conquer scan does."""
        if not self.is_sum(i):
            return False
        a, b = (self._parts(atom) for atom in self.sources[i])
        return any(x is y and p is not q for x, p in a for y, q in b)

    def _parts(self, atom: ir.Atom) -> list[tuple[ir.Atom, ir.Equation]]:
        """The value that a value is cut from, and the equation that cuts it: through sums, products and moves."""
        found: list[tuple[ir.Atom, ir.Equation]] = []
        pending = [atom]
        while pending:
            i = self.index.get(pending.pop())
            if i is None:
                continue
            equation = self.program.equations[i]
            if equation.primitive is ir.slice_p:
                found.append((self.sources[i][0], equation))
            elif len(found) < 4 and (equation.primitive in (ir.mul_p, *_SUMS) or equation.primitive in _MOVES):
                pending.extend(self.sources[i])
        return found


def _crops(equation: ir.Equation) -> bool:
    """Whether an equation leaves out some of a value along dimensions, but does not pick one entry of many."""
    if equation.primitive not in (ir.slice_p, ir.split_p):
        return False
    return all(
        after > 1 or before == 1
        for output in equation.outputs
        for before, after in zip(equation.inputs[0].shape, output.shape, strict=True)
    )
