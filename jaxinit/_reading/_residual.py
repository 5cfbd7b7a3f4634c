"""Which layers sit in the branch of a skip connection, x + f(x), and at which position.

A sum of data values is a skip connection if one of its terms, up to linear operations without weights, is a value that
another one, the branch, is computed from; or if it has two terms, of which one is that value through a single layer (a
projection shortcut) and the other has two layers or more. The branch is what lies between: layers through which the
value goes, and those of other data that only the branch reads. Skip connections within it have branches of their own.

Three sums are no skip connections: gated ones, g x + (1 − g) f(x), as of highway networks and recurrent cells, which do
not grow; those of a value and its own later steps, added over time; and D u beside a recurrence in u, as in state-space
models, where D is one more path from the input to the output of a block, and no block adds to the input itself.

The cost is linear: a search for the value goes no further back than the value can lie, and does not enter branches that
are known already.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from jaxinit import _program as ir
from jaxinit._reading._normalizations import normalizations_of
from jaxinit._reading._origin import FOREIGN
from jaxinit._reading._paths import After, Branch, Paths
from jaxinit._reading._units import Analysis, Site

_SUMS = (ir.add_p, ir.add_any_p)
_MOVES = frozenset({*ir.IDENTITIES, ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.neg_p, ir.broadcast_p, ir.pad_p})
_MIXING = ir.family("fft", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "associative_scan")
"""What carries values along a sequence, in place of a loop."""


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
      layers: the layers of the branch that are in none within it, by their position; those at one position in execution
        order.
      positions: for each of them how many layers lie before it in the branch. Layers beside one another have the same
        position. The last position is that of layers whose output reaches the sum through no other layer.
      length: how many layers deep the branch is.
      multiplier: the leaf of one number, in each step of a scan, that multiplies the branch, or None.
      shortcut: the leaf that multiplies what the branch is added to, or None.
      sum: the equation that adds the branch.
    """

    layers: tuple[Site, ...]
    positions: tuple[int, ...]
    length: int
    multiplier: int | None
    shortcut: int | None
    sum: ir.Equation


def skips(analysis: Analysis) -> tuple[Skip, ...]:
    """The skip connections whose branches hold layers of their own, in execution order."""
    order = {site: i for i, site in enumerate(analysis.sites.values())}
    found: list[Skip] = []
    taken: set[Site] = set()
    for program, carried in _programs(analysis.program):
        for skip in _Finder(analysis, program, carried).found():
            own = {site: skip.positions[i] for i, site in enumerate(skip.layers) if site not in taken}
            if own:
                layers = sorted(own, key=lambda site: (own[site], order[site]))
                positions = tuple(own[site] for site in layers)
                found.append(dataclasses.replace(skip, layers=tuple(layers), positions=positions))
                taken.update(own)
    return tuple(sorted(found, key=lambda skip: min(order[site] for site in skip.layers)))


def memberships(connections: Sequence[Skip]) -> dict[Site, Membership]:
    """The skip connection of each layer that has one."""
    return {
        site: Membership(number, position, skip.length)
        for number, skip in enumerate(connections)
        for position, site in zip(skip.positions, skip.layers, strict=True)
    }


def _programs(
    program: ir.Program, carried: frozenset[ir.Atom] = frozenset()
) -> Iterator[tuple[ir.Program, frozenset[ir.Atom]]]:
    """A program and all that it holds, those within first; and which of its inputs a loop carries."""
    for equation in program.equations:
        for inner in ir.subprograms(equation):
            inputs: Sequence[ir.Atom] = ()
            if isinstance(equation, ir.Scan):
                inputs = inner.inputs[equation.num_consts : equation.num_consts + equation.num_carry]
            elif isinstance(equation, ir.While) and inner is equation.body:
                inputs = inner.inputs[equation.body_consts :]
            yield from _programs(inner, frozenset(inputs))
    yield program, carried


class _Finder(Paths):
    """The skip connections of one program, those of the programs that it holds aside."""

    def __init__(self, analysis: Analysis, program: ir.Program, carried: frozenset[ir.Atom]):
        super().__init__(analysis, program)
        self.carried = carried
        self.normalizing = frozenset(normalizations_of(analysis, program))
        self.beside: set[int] = set()
        self.inside = self._inside_layers()

    def found(self) -> Iterator[Skip]:
        """In execution order of the sums."""
        inner: set[int] = set()
        sums = []
        for i in reversed(range(len(self.program.equations))):
            if i not in inner and self._is_sum(i):
                sums.append((i, self._terms(i, inner)))
        while True:
            self.known.clear()
            found = [x for i, terms in reversed(sums) for x in self._residual(i, terms) or self._projected(i, terms)]
            # Of an unrolled recurrence the first step has no state yet: its parameters tell.
            beside = {skip.shortcut for skip, recurrent in found if recurrent and skip.shortcut is not None}
            accepted = [skip for skip, recurrent in found if not recurrent]
            if beside.isdisjoint(skip.shortcut for skip in accepted):
                return iter(accepted)
            self.beside |= beside

    # Sums

    def _inside_layers(self) -> frozenset[int]:
        """The equations that a layer is made of, if it is a sum of products, as a convolution by shifts is."""
        inside: set[int] = set()
        for equation in self.program.equations:
            site = self.analysis.sites.get(equation)
            if site is None or len(site.entries) == 1:
                continue
            entries = {self.number(entry.equation.outputs[0]) for entry in site.entries}
            pending = [self.number(site.equation.outputs[0])]
            while pending:
                i = pending.pop()
                if i >= 0 and i not in inside:
                    inside.add(i)
                    pending.extend(self.number(a) for a in (() if i in entries else self.sources[i]))
        return frozenset(inside)

    def _is_sum(self, i: int) -> bool:
        return self._adds(i) and len(self.sources[i]) == 2

    def _adds_no_data(self, i: int) -> bool:
        return self._adds(i) and len(self.sources[i]) == 1

    def _adds(self, i: int) -> bool:
        """Whether an equation is an addition, and no part of a layer."""
        equation = self.program.equations[i]
        return equation.primitive in _SUMS and equation not in self.analysis.sites and i not in self.inside

    def _terms(self, i: int, inner: set[int]) -> list[ir.Atom]:
        """The terms of a sum, sums among them that nothing else reads taken apart; their numbers go into `inner`."""
        terms: list[ir.Atom] = []
        pending = list(reversed(self.sources[i]))
        while pending:
            atom = pending.pop()
            j = self.index.get(atom)
            alone = j is not None and len(self.readers[atom]) == 1
            if j is not None and alone and (self._is_sum(j) or self._adds_no_data(j)):
                inner.add(j)
                pending.extend(reversed(self.sources[j]))
            else:
                terms.append(atom)
        return terms

    def _residual(self, i: int, terms: Sequence[ir.Atom]) -> list[tuple[Skip, bool]]:
        """The branches of a sum that one of its terms is the start of, and whether it stands beside a recurrence."""
        roots = [self._root(term) for term in terms]
        levels = [self.level[term] for term in terms]
        for k in sorted(range(len(terms)), key=lambda k: self.level[roots[k]]):
            root = roots[k]
            others = [t for j, t in enumerate(terms) if j != k and self.may_reach(root, t)]
            if self.level[root] >= max(levels) or not others:
                continue
            window = self.window(root, others)
            branches = [(t, self.branch(root, t, window)) for t in others]
            branches = [(t, branch) for t, branch in branches if not all(x.aside for x in branch.after.values())]
            if not branches:
                continue
            if len(branches) > 1 and self._is_series([t for t, _ in branches], branches):
                return []
            return self._skips(i, terms[k], root, branches)
        return []

    def _skips(
        self, i: int, shortcut: ir.Atom, root: ir.Atom, branches: Sequence[tuple[ir.Atom, Branch]]
    ) -> list[tuple[Skip, bool]]:
        """A skip connection for each branch; those that data weigh, as a mixture of experts does, count together."""
        leaf = self._multiplier(shortcut)
        recurrent = leaf in self.beside
        recurrent |= leaf is not None and any(self._is_recurrent(root, t, branch) for t, branch in branches)
        weighed = [branch for t, branch in branches if self._weighs(t)]
        merged = Branch(frozenset(), {})
        for branch in weighed:
            after = {s: min(n, merged.after.get(s, n)) for s, n in branch.after.items()}
            merged = Branch(merged.members | branch.members, merged.after | after)
        several = [(self._multiplier(t, scalar=True), branch) for t, branch in branches if branch not in weighed]
        if weighed:
            one = [t for t, branch in branches if branch in weighed]
            several.append((self._multiplier(one[0], scalar=True) if len(one) == 1 else None, merged))
        if not recurrent:
            self.known[self.program.equations[i].outputs[0]] = root
        equation = self.program.equations[i]
        return [(_skip(branch.after, multiplier, leaf, equation), recurrent) for multiplier, branch in several]

    def _projected(self, i: int, terms: Sequence[ir.Atom]) -> list[tuple[Skip, bool]]:
        """The branch beside a projection shortcut."""
        if len(terms) != 2:
            return []
        for shortcut, term in (terms, terms[::-1]):
            site = self._only_layer(shortcut, i, term)
            if site is None or site.geometry.kind == "embed" or self._weighs(term):
                continue
            root = self._root(site.data)
            if root not in self.level or not self.may_reach(root, term):
                continue
            branch = self.branch(root, term, self.window(root, [term]))
            if len(branch.after) > 1 and self.index[site.finish.outputs[0]] not in branch.members:
                return self._skips(i, shortcut, root, [(term, branch)])
        return []

    def _only_layer(self, atom: ir.Atom, end: int, other: ir.Atom) -> Site | None:
        """The one layer that a term of a sum is computed from, if the other term is not computed from it."""
        found: set[Site] = set()
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
            site = self.analysis.sites.get(self.program.equations[i])
            if site is None:
                pending.extend(self.sources[i])
            else:
                found.add(site)
                if len(found) > 1:
                    return None
        readers = {j for i in between - {end} for v in self.program.equations[i].outputs for j in self.readers[v]}
        beyond = [self.program.equations[j] for j in readers - between if j < len(self.program.equations)]
        leads = any(self.may_reach(v, other) for e in beyond for v in e.outputs if v in self.level)
        return found.pop() if found and not leads else None

    # What a sum is

    def _root(self, atom: ir.Atom) -> ir.Atom:
        """The value that a skip connection starts from: linear operations without layers or other data are undone."""
        while (i := self.index.get(atom)) is not None and len(self.sources[i]) == 1:
            equation = self.program.equations[i]
            (source,) = self.sources[i]
            moved = equation.primitive in _MOVES or equation.primitive in _SUMS or _crops(equation)
            scaled = equation.primitive is ir.mul_p
            scaled |= equation.primitive is ir.div_p and source is equation.inputs[0]
            if equation in self.analysis.sites or not (moved or scaled):
                break
            atom = source
        return atom

    def _weighs(self, atom: ir.Atom) -> bool:
        """Whether a value is a product of two data values, as in a recurrent cell; a normalisation is not."""
        i = self.index.get(self._root(atom))
        if i is None or self.program.equations[i].primitive is not ir.mul_p or len(self.sources[i]) != 2:
            return False
        return self.program.equations[i] not in self.normalizing

    def _multiplier(self, atom: ir.Atom, scalar: bool = False) -> int | None:
        """The leaf that multiplies a value, on the way to this use of it alone; `scalar`: a leaf of one number."""
        while len(self.readers[atom]) == 1 and (i := self.index.get(atom)) is not None:
            equation = self.program.equations[i]
            if equation in self.analysis.sites or len(self.sources[i]) != 1:
                return None
            if equation.primitive is ir.mul_p:
                for value in equation.inputs:
                    for leaf, origin in self.analysis.of(value).origins.items():
                        if not scalar or math.prod(f.size for d in origin.dims for f in d if f.axis != FOREIGN) == 1:
                            return leaf
            (atom,) = self.sources[i]
        return None

    def _is_series(self, terms: Sequence[ir.Atom], branches: Sequence[tuple[ir.Atom, Branch]]) -> bool:
        """Whether terms are computed from one another by the same weights: a state at several times."""
        ends = {self.index[t] for t in terms}
        for term, branch in branches:
            if len(ends & branch.members) > 1:
                units = [part.unit for site in branch.after for part in site.parts]
                if len(set(units)) < len(units) and self.index[term] in ends:
                    return True
        return False

    def _is_recurrent(self, root: ir.Atom, term: ir.Atom, branch: Branch) -> bool:
        """Whether a branch is a recurrence: values go from step to step in it by other means than layers."""
        equations = [self.program.equations[i] for i in branch.members]
        if any(isinstance(e, ir.While) or (isinstance(e, ir.Scan) and e.num_carry) for e in equations):
            return True
        if any(e.primitive in _MIXING or self._shifts(i) for i, e in zip(branch.members, equations, strict=True)):
            return True
        units = {part.unit for site in branch.after for part in site.parts}
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
            site = self.analysis.sites.get(self.program.equations[i])
            if i not in branch.members and site is not None:
                # A layer of another step: the same weights made what the branch takes from elsewhere.
                if any(part.unit in units for part in site.parts):
                    return True
                continue
            if atom in self.known and i not in branch.members:
                continue
            pending.extend(self.sources[i])
        return False

    def _shifts(self, i: int) -> bool:
        """Whether an equation adds parts of one value that lie at different places, as a scan by halves does."""
        if not self._is_sum(i):
            return False
        a, b = (self._parts(atom) for atom in self.sources[i])
        return any(x is y and p is not q for x, p in a for y, q in b)

    def _parts(self, atom: ir.Atom) -> list[tuple[ir.Atom, ir.Equation]]:
        """What a value is cut from, and by which equation: through sums and products, and moves that cut nothing."""
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


def _skip(after: dict[Site, After], multiplier: int | None, shortcut: int | None, equation: ir.Equation) -> Skip:
    """Gates are no deeper than what they weigh, and never last: to close one is not to close the branch."""
    length = 1 + max((x.layers for x in after.values() if not x.gates and not x.aside), default=0)
    if any(x.gates and not x.aside for x in after.values()):
        length = max(length, 2)
    places = {s: max(min(length - 1 - x.layers, length - 2 if x.gates else length), 0) for s, x in after.items()}
    layers = sorted(after, key=places.__getitem__)
    return Skip(tuple(layers), tuple(places[s] for s in layers), length, multiplier, shortcut, equation)
