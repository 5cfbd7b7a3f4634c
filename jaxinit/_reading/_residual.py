"""Which layers are in the branch of a skip connection, x + f(x), and at which position.

A sum of data values is a skip connection if one of its terms, up to linear operations without weights, is a value that
another term, the branch, is computed from; or if it has two terms, one of which is that value through a single layer (a
projection shortcut) while the other has at least two layers. The branch is what is in between: layers that the
value passes through, and those of other data that only the branch reads. Skip connections inside it have their own
branches.

Some sums are not skip connections: gated ones, g x + (1 − g) f(x), as in highway networks and recurrent cells, which do
not grow; those of a value and its own later steps, added over time; D u beside a recurrence in u, as in state-space
models, where D is one more path from the input to the output of a block, and no block adds to the input itself; the
scores of attention with a mask or a bias that earlier blocks have read too; and shifts, a y + b, where b adds each of
its elements to several, or is cut from one value together with a.

The cost is linear: a search for the value goes no further back than the value can be, and does not enter branches that
are already known.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis, Use
from jaxinit._reading._paths import After, Branch
from jaxinit._reading._sums import Sums


@dataclasses.dataclass(frozen=True)
class Membership:
    """The innermost skip connection whose branch holds a layer, numbered in order, and the position in that branch."""

    skip: int
    position: int
    length: int


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skip connection.

    Attributes:
      layers: the layers of the branch that are not in a branch inside it, by position; those at one position in
        execution order.
      positions: for each of them how many layers are before it in the branch. Parallel layers have the same
        position. The last position is that of layers whose output reaches the sum through no other layer.
      length: how many layers deep the branch is.
      multiplier: the leaf of one number, in each step of a scan, that multiplies the branch, or None.
      shortcut: the leaf that multiplies what the branch is added to, or None.
      sum: the equation that adds the branch.
      stream: the value that the branch is added to.
      added: what the branch adds to it; several values if data weigh them, as in a mixture of experts.
      projected: whether there is a layer in the shortcut, so that the sum is one of several layers' outputs.
    """

    layers: tuple[Use, ...]
    positions: tuple[int, ...]
    length: int
    multiplier: int | None
    shortcut: int | None
    sum: ir.Equation
    stream: ir.Atom
    added: tuple[ir.Atom, ...]
    projected: bool = False


def skips(analysis: Analysis) -> tuple[Skip, ...]:
    """The skip connections whose branches hold layers of their own, in execution order."""
    order = {use: i for i, use in enumerate(analysis.uses.values())}
    found: list[Skip] = []
    taken: set[Use] = set()
    for program, carried in _programs(analysis.program):
        for skip in _SkipConnections(analysis, program, carried).found():
            own = {use: skip.positions[i] for i, use in enumerate(skip.layers) if use not in taken}
            if own:
                layers = sorted(own, key=lambda use: (own[use], order[use]))
                positions = tuple(own[use] for use in layers)
                found.append(dataclasses.replace(skip, layers=tuple(layers), positions=positions))
                taken.update(own)
    return tuple(sorted(found, key=lambda skip: min(order[use] for use in skip.layers)))


def memberships(connections: Sequence[Skip]) -> dict[Use, Membership]:
    """The skip connection of each layer that has one."""
    return {
        use: Membership(number, position, skip.length)
        for number, skip in enumerate(connections)
        for position, use in zip(skip.positions, skip.layers, strict=True)
    }


def _programs(
    program: ir.Program, carried: frozenset[ir.Atom] = frozenset()
) -> Iterator[tuple[ir.Program, frozenset[ir.Atom]]]:
    """A program and those inside it, innermost first; and which of its inputs a loop carries."""
    for equation in program.holders:
        for inner in ir.subprograms(equation):
            inputs: Sequence[ir.Atom] = ()
            if isinstance(equation, ir.Scan):
                inputs = inner.inputs[equation.num_consts : equation.num_consts + equation.num_carry]
            elif isinstance(equation, ir.While) and inner is equation.body:
                inputs = inner.inputs[equation.body_consts :]
            yield from _programs(inner, frozenset(inputs))
    yield program, carried


class _SkipConnections(Sums):
    """The skip connections of one program, without those of the programs inside it."""

    def __init__(self, analysis: Analysis, program: ir.Program, carried: frozenset[ir.Atom]):
        super().__init__(analysis, program, carried)
        self.beside: set[int] = set()

    def found(self) -> Iterator[Skip]:
        """In execution order of the sums."""
        inner: set[int] = set()
        sums = []
        for i in reversed(range(len(self.program.equations))):
            if i not in inner and self.is_sum(i):
                terms = self.terms(i, inner)
                if not self.are_scores(i, terms):
                    sums.append((i, terms))
        while True:
            self.known.clear()
            found = [x for i, terms in reversed(sums) for x in self._residual(i, terms) or self._projected(i, terms)]
            # In an unrolled recurrence the first step has no state yet, but its parameters show that it is one.
            beside = {skip.shortcut for skip, recurrent in found if recurrent and skip.shortcut is not None}
            accepted = [skip for skip, recurrent in found if not recurrent]
            if beside.isdisjoint(skip.shortcut for skip in accepted):
                return iter(accepted)
            self.beside |= beside

    def _residual(self, i: int, terms: Sequence[ir.Atom]) -> list[tuple[Skip, bool]]:
        """The branches of a sum that start from one of its terms, and whether it is beside a recurrence."""
        roots = [self.root(term) for term in terms]
        levels = [self.level[term] for term in terms]
        for k in sorted(range(len(terms)), key=lambda k: self.level[roots[k]]):
            root = roots[k]
            if self.is_spread(terms[k], i):
                continue
            others = [t for j, t in enumerate(terms) if j != k and self.may_reach(root, t)]
            others = [t for t in others if not self.is_modulated(root, terms[k], t)]
            if self.level[root] >= max(levels) or not others:
                continue
            window = self.window(root, others)
            branches = [(t, self.branch(root, t, window)) for t in others]
            branches = [(t, branch) for t, branch in branches if not all(x.aside for x in branch.after.values())]
            if not branches:
                continue
            if len(branches) > 1 and self.is_series([t for t, _ in branches], branches):
                return []
            return self._skips(i, terms[k], root, branches)
        return []

    def _skips(
        self, i: int, shortcut: ir.Atom, root: ir.Atom, branches: Sequence[tuple[ir.Atom, Branch]]
    ) -> list[tuple[Skip, bool]]:
        """A skip connection for each branch; branches that data weigh, as in a mixture of experts, count as one."""
        leaf = self.multiplier(shortcut)
        recurrent = leaf in self.beside
        recurrent |= leaf is not None and any(self.is_recurrent(root, t, branch) for t, branch in branches)
        weighed = [branch for t, branch in branches if self.weighs(t)]
        merged = Branch(frozenset(), {})
        for branch in weighed:
            after = {s: min(n, merged.after.get(s, n)) for s, n in branch.after.items()}
            merged = Branch(merged.members | branch.members, merged.after | after)
        several = [(self.multiplier(t, scalar=True), branch, [t]) for t, branch in branches if branch not in weighed]
        if weighed:
            one = [t for t, branch in branches if branch in weighed]
            several.append((self.multiplier(one[0], scalar=True) if len(one) == 1 else None, merged, one))
        if not recurrent:
            self.known[self.program.equations[i].outputs[0]] = root
        equation = self.program.equations[i]
        found = [(_skip(branch.after, multiplier, leaf, equation), added) for multiplier, branch, added in several]
        return [(dataclasses.replace(skip, stream=shortcut, added=tuple(added)), recurrent) for skip, added in found]

    def _projected(self, i: int, terms: Sequence[ir.Atom]) -> list[tuple[Skip, bool]]:
        """The branch beside a projection shortcut."""
        if len(terms) != 2:
            return []
        for shortcut, term in (terms, terms[::-1]):
            use = self._only_layer(shortcut, i, term)
            if use is None or use.geometry.kind == "embed" or self.weighs(term):
                continue
            if self.is_broadcast(term, i) or self.is_broadcast(shortcut, i):
                continue
            root = self.root(use.data)
            if root not in self.level or not self.may_reach(root, term):
                continue
            branch = self.branch(root, term, self.window(root, [term]))
            if len(branch.after) > 1 and self.index[use.finish.outputs[0]] not in branch.members:
                found = self._skips(i, shortcut, root, [(term, branch)])
                return [(dataclasses.replace(skip, projected=True), recurrent) for skip, recurrent in found]
        return []

    def _only_layer(self, atom: ir.Atom, end: int, other: ir.Atom) -> Use | None:
        """The one layer that a term of a sum is computed from, if the other term is not computed from it."""
        found: set[Use] = set()
        between: set[int] = {end}
        pending = [atom]
        while pending:
            atom = pending.pop()
            i = self.number(atom)
            if i < 0 or atom in self.known or ir.subprograms(self.program.equations[i]):
                return None
            if i in between:
                continue
            between.add(i)
            use = self.analysis.uses.get(self.program.equations[i])
            if use is None:
                pending.extend(self.sources[i])
            else:
                found.add(use)
                if len(found) > 1:
                    return None
        readers = {j for i in between - {end} for v in self.program.equations[i].outputs for j in self.readers[v]}
        beyond = [self.program.equations[j] for j in readers - between if j < len(self.program.equations)]
        leads = any(self.may_reach(v, other) for e in beyond for v in e.outputs if v in self.level)
        return found.pop() if found and not leads else None


def _skip(after: dict[Use, After], multiplier: int | None, shortcut: int | None, equation: ir.Equation) -> Skip:
    """Gates are no deeper than what they weigh, and never last: to close one is not to close the branch."""
    length = 1 + max((x.layers for x in after.values() if not x.gates and not x.aside), default=0)
    if any(x.gates and not x.aside for x in after.values()):
        length = max(length, 2)
    position_of = {s: max(min(length - 1 - x.layers, length - 2 if x.gates else length), 0) for s, x in after.items()}
    layers = sorted(after, key=position_of.__getitem__)
    positions = tuple(position_of[s] for s in layers)
    return Skip(tuple(layers), positions, length, multiplier, shortcut, equation, equation.outputs[0], ())
