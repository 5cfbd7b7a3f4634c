"""What is between a value and another that is computed from it: equations, and layers with what comes after each.

The cost is linear: a search goes no further back than the value can be, and does not enter branches that are already
known.
"""

import collections
import dataclasses
import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis, Use

_Window: TypeAlias = dict[int, bool | None]
"""Equations by number, and whether layers lie between a value and them; None for those not computed from it."""


@dataclasses.dataclass
class Branch:
    """What is between a value and a term of a sum: equations by number, and what comes after each layer."""

    members: frozenset[int]
    after: "dict[Use, After]"


class After(NamedTuple):
    """How many gates and layers come after a layer on the shortest path, and whether it is aside.

    Layers aside are those of other data. They belong to what comes after them, and do not make a branch deeper.
    """

    gates: int
    layers: int
    aside: bool = False

    def then(self, gates: int = 0, layers: int = 0, aside: bool = False) -> "After":
        """What comes after a layer that these gates and layers lie behind first."""
        return After(self.gates + gates, self.layers + layers, self.aside or aside)


class Paths:
    """The paths of data through one program, around the programs that it holds.

    Attributes:
      level: for each value that depends on data the longest path from the inputs, counted in equations.
      height: the longest path to where it is used last. Both bound a search: what a value is computed from has a
        smaller level and a larger height.
      known: sums that are skip connections → what their branches start from. A search skips these branches.
    """

    def __init__(self, analysis: Analysis, program: ir.Program):
        self.analysis, self.program = analysis, program
        self.index: dict[ir.Atom, int] = {}
        self.sources: list[tuple[ir.Atom, ...]] = []
        self.readers: dict[ir.Atom, list[int]] = collections.defaultdict(list)
        self.level: dict[ir.Atom, int] = {v: 0 for v in program.inputs if analysis.of(v).data}
        for i, equation in enumerate(program.equations):
            data = tuple(a for a in equation.inputs if a in self.level)
            self.sources.append(data)
            level = 1
            for atom in data:
                self.readers[atom].append(i)
                level = max(level, self.level[atom] + 1)
            for v in equation.outputs:
                self.index[v] = i
                if analysis.of(v).data:
                    self.level[v] = level
        for atom in program.outputs:
            self.readers[atom].append(len(program.equations))
        self.height: dict[ir.Atom, int] = dict.fromkeys(self.level, 0)
        for i in reversed(range(len(program.equations))):
            height = 1
            for v in program.equations[i].outputs:
                height = max(height, self.height.get(v, 0) + 1)
            for atom in self.sources[i]:
                self.height[atom] = max(self.height[atom], height)
        self.known: dict[ir.Atom, ir.Atom] = {}
        self._held: dict[int, dict[Use, After]] = {}

    def number(self, atom: ir.Atom) -> int:
        """The number of the equation that computes a value, −1 for an input."""
        return self.index.get(atom, -1)

    def may_reach(self, root: ir.Atom, atom: ir.Atom) -> bool:
        return self.level[atom] > self.level[root] and self.height[atom] < self.height[root]

    def _before(self, i: int, root: ir.Atom) -> tuple[ir.Atom, ...]:
        """What an equation computes from; or what the branch that it adds starts from, if that comes after the root."""
        output = self.program.equations[i].outputs[0]
        start = self.known.get(output)
        if start is not None and self.level[start] >= self.level[root]:
            return (start,)
        return self.sources[i]

    def window(self, root: ir.Atom, ends: Iterable[ir.Atom]) -> _Window:
        """The equations between a value and others, in execution order."""
        seen: set[int] = set()
        pending = [self.index[a] for a in ends if a in self.index]
        level, height = self.level[root], self.height[root]
        while pending:
            i = pending.pop()
            if i in seen:
                continue
            seen.add(i)
            for a in self._before(i, root):
                if a in self.index and self.level[a] > level and self.height[a] < height:
                    pending.append(self.index[a])
        window: _Window = {}
        for i in sorted(seen):
            window[i] = None
            for atom in self._before(i, root):
                if self._descends(atom, root, window):
                    window[i] = bool(window[i] or window.get(self.index.get(atom, -1)) or self._layers(i))
        return window

    def _descends(self, atom: ir.Atom, root: ir.Atom, window: _Window) -> bool:
        return atom is root or window.get(self.index.get(atom, -1)) is not None

    def branch(self, root: ir.Atom, term: ir.Atom, window: _Window) -> Branch:
        """The layers between a value and a term, each with the smallest number of layers that come after it."""
        end = self.number(term)
        after: dict[int, After] = {}
        layers: dict[Use, After] = {}
        if window.get(end) is None or term is root:
            return Branch(frozenset(), layers)
        aside: dict[int, After] = {}
        after[end] = After(0, 0)
        pending = [-end]
        while pending:
            i = -heapq.heappop(pending)
            inside = self._layers(i)
            for use, more in inside.items():
                layers[use] = after[i].then(more.gates, more.layers)
            through = after[i].then(layers=_depth(inside))
            before = self._before(i, root)
            gate = self._gate(i, root, window) if len(before) > 1 else None
            for atom in before:
                if atom is root or atom not in self.index:
                    continue
                j = self.index[atom]
                way = through
                if atom is gate:
                    value = next(a for a in before if a is not gate)
                    # The last layer of what a gate weighs counts as coming after the gate.
                    way = way.then(1, int(window.get(self.number(value)) or False))
                descends = self._descends(atom, root, window)
                if descends and j not in after:
                    heapq.heappush(pending, -j)
                found = after if descends else aside
                found[j] = min(found.get(j, way), way)
        self._add_layers_aside(frozenset(after), aside, layers)
        return Branch(frozenset(after), layers)

    def _add_layers_aside(self, members: frozenset[int], aside: dict[int, After], layers: dict[Use, After]) -> None:
        """Adds the layers of other data that only the branch reads, such as keys and values of a memory."""
        own = set(members)
        pending = [-i for i in aside]
        heapq.heapify(pending)
        while pending:
            i = -heapq.heappop(pending)
            outputs = self.program.equations[i].outputs
            if i in own or outputs[0] in self.known or not own.issuperset(j for v in outputs for j in self.readers[v]):
                continue
            own.add(i)
            inside = self._layers(i)
            for use, more in inside.items():
                layers[use] = aside[i].then(more.gates, more.layers, aside=True)
            for atom in () if inside else self.sources[i]:
                j = self.index.get(atom)
                if j is not None:
                    aside[j] = min(aside.get(j, aside[i]), aside[i])
                    heapq.heappush(pending, -j)

    def _layers(self, i: int) -> dict[Use, After]:
        """The layers that an equation is, or holds, and the smallest number of those in it that come after each."""
        if i not in self._held:
            equation = self.program.equations[i]
            if equation in self.analysis.uses:
                self._held[i] = {self.analysis.uses[equation]: After(0, 0)}
            else:
                self._held[i] = _held(self.analysis, equation, [bool(self.readers.get(v)) for v in equation.outputs])
        return self._held[i]

    def _gate(self, i: int, root: ir.Atom, window: _Window) -> ir.Atom | None:
        """Which factor of a product of data weighs the other: see `_is_gate`."""
        if self.program.equations[i].primitive is not ir.mul_p or len(self.sources[i]) != 2:
            return None
        a, b = self.sources[i]
        return next((x for x, y in ((a, b), (b, a)) if self._is_gate(x, y, root, window)), None)

    def _is_gate(self, gate: ir.Atom, value: ir.Atom, root: ir.Atom, window: _Window) -> bool:
        """Whether it comes from elsewhere while the value does not, is spread over it, or is computed from it."""
        descends = [self._descends(a, root, window) for a in (gate, value)]
        if descends[0] != descends[1]:
            return descends[1]
        spread = [self._is_spread(gate, value), self._is_spread(value, gate)]
        if spread[0] != spread[1]:
            return spread[0]
        if not self.may_reach(value, gate):
            return False
        return next(reversed(self.window(value, [gate]).values()), None) is not None

    def _is_spread(self, atom: ir.Atom, other: ir.Atom) -> bool:
        """Whether a value is one number for many of those it multiplies."""
        if math.prod(atom.shape) < math.prod(other.shape):
            return True
        i = self.index.get(self._cast(atom))
        return i is not None and self.program.equations[i].primitive is ir.broadcast_p

    def _cast(self, atom: ir.Atom) -> ir.Atom:
        while (i := self.index.get(atom)) is not None and self.program.equations[i].primitive in ir.IDENTITIES:
            atom = self.program.equations[i].inputs[0]
        return atom


def _depth(inside: dict[Use, After]) -> int:
    """The number of layers that data pass through in an equation that is a layer, or holds some."""
    return max((after.layers for after in inside.values()), default=-1) + 1


def _held(analysis: Analysis, equation: ir.Equation, used: Sequence[bool]) -> dict[Use, After]:
    """For each layer inside an equation, what comes between it and those outputs that are used."""
    found: dict[Use, After] = {}
    for program in ir.subprograms(equation):
        is_condition = isinstance(equation, ir.While) and program is equation.condition
        ends = [v for v, is_used in zip(program.outputs, used, strict=True) if is_used] if not is_condition else []
        after = dict.fromkeys(ends or program.outputs, After(0, 0))
        layers = _after_each(analysis, program, after)
        # A carry that is not a used output comes before what the next step computes from it.
        first = equation.num_consts if isinstance(equation, ir.Scan) else 0
        carries = program.inputs[first : first + equation.num_carry] if isinstance(equation, ir.Scan) else ()
        later = {v: after[c] for v, c in zip(program.outputs, carries, strict=False) if v not in ends and c in after}
        found |= (
            _after_each(analysis, program, {**later, **dict.fromkeys(ends, After(0, 0))}) if later else {}
        ) | layers
    return found


def _after_each(analysis: Analysis, program: ir.Program, after: dict[ir.Atom, After]) -> dict[Use, After]:
    """For each layer of a program, and of those inside it, what comes after it; `after` is that of the outputs."""
    found: dict[Use, After] = {}
    for equation in reversed(program.equations):
        known = [after[v] for v in equation.outputs if v in after]
        if not known:
            continue
        least = min(known)
        inside: dict[Use, After] = {}
        if equation in analysis.uses:
            inside = {analysis.uses[equation]: After(0, 0)}
        else:
            inside = _held(analysis, equation, [v in after for v in equation.outputs])
        found |= {use: least.then(more.gates, more.layers) for use, more in inside.items()}
        way = least.then(layers=_depth(inside))
        for atom in equation.inputs:
            after[atom] = min(after.get(atom, way), way)
    return found
