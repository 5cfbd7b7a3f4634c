"""How values flow through a program: what a value is computed from, and where parts of a layer's output go.

Upstream the flow is followed through the programs inside loops and branches. Downstream a layer's output is followed
as long as its elements are only moved, cut or mapped one by one, so that a fused projection is seen as the parts that
the program cuts it into.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import numpy as np

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis, Use
from jaxinit._reading._origin import FOREIGN, Factor, Origin
from jaxinit._reading._rules import cuts, rearrangement

_MOST_TERMS = 8
"""How many layers' outputs are followed in one sum at most: a cell has few; those of a long sum are treated as one."""


class Flow:
    """The values that each value of a program is computed from directly, loops and branches included."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.producer: dict[ir.Atom, ir.Equation] = {}
        self._outside: dict[ir.Atom, tuple[ir.Atom, ...]] = {}
        for program in programs_of(analysis.program):
            self.producer.update(program.producers)
            for equation in program.holders:
                self._enter(equation)

    def _enter(self, equation: ir.Equation) -> None:
        match equation:
            case ir.Scan():
                self._outside.update((v, (a,)) for v, a in zip(equation.body.inputs, equation.inputs, strict=True))
                first = equation.num_consts
                self._carry(equation.body, first, equation.num_carry, equation.inputs[first:])
            case ir.Switch():
                for branch in equation.branches:
                    self._outside.update((v, (a,)) for v, a in zip(branch.inputs, equation.inputs[1:], strict=True))
            case ir.While():
                consts, first = equation.condition_consts, equation.body_consts
                outer = equation.inputs[consts:]
                self._outside.update((v, (a,)) for v, a in zip(equation.body.inputs, outer, strict=True))
                self._carry(equation.body, first, len(equation.body.outputs), outer[first:])

    def _carry(self, body: ir.Program, first: int, count: int, start: Sequence[ir.Atom]) -> None:
        for v, before, after in zip(body.inputs[first:], start, body.outputs[:count], strict=False):
            self._outside[v] = (before, after)

    def sources(self, atom: ir.Atom) -> tuple[ir.Atom, ...]:
        """The values that a value is computed from directly; none for an input of the whole program."""
        equation = self.producer.get(atom)
        if equation is None:
            return self._outside.get(atom, ())
        inner = [p.outputs[equation.outputs.index(atom)] for p in _bodies(equation)]  # type: ignore[arg-type]
        return tuple(inner) or equation.inputs

    def data_sources(self, atom: ir.Atom) -> list[ir.Atom]:
        """Those of the values that a value is computed from that depend on data."""
        return [a for a in self.sources(atom) if self.is_data(a)]

    def is_data(self, atom: ir.Atom) -> bool:
        """Whether a value depends on the batch."""
        return isinstance(atom, ir.Variable) and self.analysis.of(atom).data

    def upstream(self, start: Iterable[ir.Atom], stop: Callable[[ir.Atom], bool]) -> Iterator[ir.Atom]:
        """All data that some values are computed from, themselves included, up to where `stop` says."""
        seen: set[ir.Atom] = set()
        queue = list(start)
        while queue:
            atom = queue.pop()
            if atom in seen or not self.is_data(atom):
                continue
            seen.add(atom)
            yield atom
            if not stop(atom):
                queue.extend(self.sources(atom))


def _bodies(equation: ir.Equation) -> tuple[ir.Program, ...]:
    """The programs whose outputs are those of the equation."""
    return (equation.body,) if isinstance(equation, ir.While) else ir.subprograms(equation)


def programs_of(program: ir.Program) -> Iterator[ir.Program]:
    """A program and all that it holds."""
    yield program
    for equation in program.holders:
        for inner in ir.subprograms(equation):
            yield from programs_of(inner)


@dataclasses.dataclass(frozen=True)
class Followed(Origin):
    """A value whose elements come from those of another value, one each; strided and interleaved cuts count too.

    The axes of its factors are the dimensions of that other value, and `base` is where the factors start along each.
    """

    base: tuple[int, ...] = ()

    @classmethod
    def from_start(cls, shape: Sequence[int]) -> "Followed":
        """The value itself."""
        whole = Origin.of_leaf(0, shape)
        return cls(0, whole.region, whole.dims, base=(0,) * len(shape))

    def sliced(self, starts: Sequence[int], limits: Sequence[int], shape: Sequence[int]) -> "Followed | None":
        """After `lax.slice` with stride 1; None if it cuts through several factors."""
        base, dims = list(self.base), list(self.dims)
        for d, (start, limit, size) in enumerate(zip(starts, limits, shape, strict=True)):
            if limit - start == size:
                continue
            if limit == start:
                return None
            outer, *inner = dims[d]
            step = math.prod(f.size for f in inner)
            if start % step or limit % step or outer.axis == FOREIGN:
                return None
            base[outer.axis] += (size - limit if outer.flipped else start) // step * outer.stride
            size = (limit - start) // step
            dims[d] = (*([outer._replace(size=size)] if size > 1 else []), *inner)
        return self.changed(base=tuple(base), dims=tuple(dims))

    def strided(
        self, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int], shape: Sequence[int]
    ) -> "Followed | None":
        """After `lax.slice` with any strides; None if it cuts through several factors."""
        whole = [(0, n) if k > 1 else (s, e) for s, e, k, n in zip(starts, limits, strides, shape, strict=True)]
        cut = self.sliced([s for s, _ in whole], [e for _, e in whole], shape)
        if cut is None:
            return None
        base, dims = list(cut.base), list(cut.dims)
        for d, (start, limit, stride, size) in enumerate(zip(starts, limits, strides, shape, strict=True)):
            if stride == 1:
                continue
            if len(dims[d]) != 1:
                return None
            (factor,), count = dims[d], -(-(limit - start) // stride)
            first = size - 1 - start - (count - 1) * stride if factor.flipped else start
            if factor.axis != FOREIGN:
                base[factor.axis] += first * factor.stride
            dims[d] = (factor._replace(size=count, stride=factor.stride * stride),) if count > 1 else ()
        return cut.changed(base=tuple(base), dims=tuple(dims))

    def coordinates(self, dims: Sequence[int], axis: int) -> np.ndarray:
        """The position of each element along an axis of the start, over the flattened product of some dimensions."""
        factors = [f for d in dims for f in self.dims[d]]
        return self.base[axis] + steps(factors, lambda f: f.stride if f.axis == axis else 0)

    def indices(self, axis: int) -> frozenset[int]:
        """Which indices along an axis of the start are left."""
        return _indices(self.base[axis], tuple(f for dim in self.dims for f in dim if f.axis == axis))


@functools.lru_cache(maxsize=128)
def _indices(start: int, factors: tuple[Factor, ...]) -> frozenset[int]:
    return frozenset((start + steps(factors, lambda f: f.stride)).tolist())


def steps(factors: Iterable[Factor], stride: Callable[[Factor], int]) -> np.ndarray:
    """The sums of steps along factors, over their flattened product; factors without a stride count once."""
    total = np.zeros((), np.int64)
    for factor in factors:
        steps = np.arange(factor.size)[:: -1 if factor.flipped else 1] * stride(factor)
        total = np.add.outer(total, steps)
    return total.reshape(-1)


def follow(flow: Flow, program: ir.Program, starts: Iterable[ir.Variable], others: bool) -> "Tracks":
    """Where the elements of some values go within their program.

    Args:
      flow: of the whole program.
      program: the program.
      starts: the values.
      others: whether elementwise functions of several data values of one shape are followed too; if not, only sums
        of values that are all followed.

    Returns:
      value → start → how its elements come from those of the start.
    """
    tracks: Tracks = {v: {v: Followed.from_start(v.shape)} for v in starts}
    for equation in program.equations:
        if ir.subprograms(equation):
            continue
        known = [tracks[a] for a in equation.inputs if isinstance(a, ir.Variable) and a in tracks]
        if not known:
            continue
        moved = follow_move(equation, tracks)
        if moved is not None:
            tracks.update(moved)
        elif equation.primitive in ir.ELEMENTWISE:
            data = [a for a in equation.inputs if flow.is_data(a)]
            sums = equation.primitive in (ir.add_p, ir.add_any_p) and all(a in tracks for a in data)
            if len(data) > 1 and not (others or sums):
                continue
            shape = equation.outputs[0].shape
            same = [tracks[a] for a in data if isinstance(a, ir.Variable) and a in tracks and a.shape == shape]
            if same:
                tracks[equation.outputs[0]] = {v: track for found in same for v, track in found.items()}
    return tracks


Tracks = dict[ir.Variable, dict[ir.Variable, Followed]]


def follow_move(equation: ir.Equation, tracks: Tracks) -> Tracks | None:
    """Where an equation that only moves, copies or drops elements puts them; None for others, or if no rule says."""
    operand = equation.inputs[0] if equation.inputs else None
    if not isinstance(operand, ir.Variable) or operand not in tracks:
        return None
    known = tracks[operand]
    moves = cuts(equation)
    if moves is not None:
        parts = zip(equation.outputs, moves, strict=True)
        return _known({output: {v: move(track) for v, track in known.items()} for output, move in parts})
    params = equation.params
    if equation.primitive is ir.slice_p and params["strides"] is not None:
        cut = params["start_indices"], params["limit_indices"], params["strides"], operand.shape
        return _known({equation.outputs[0]: {v: track.strided(*cut) for v, track in known.items()}})
    move = rearrangement(equation)
    if move is None:
        return None
    return _known({equation.outputs[0]: {v: move(track) for v, track in known.items()}})


def _known(moved: "dict[ir.Variable, dict[ir.Variable, Origin | None]]") -> Tracks:
    """Those of the values whose elements can still be distinguished."""
    found = {
        output: {v: track for v, track in tracks.items() if isinstance(track, Followed)}
        for output, tracks in moved.items()
    }
    return {output: tracks for output, tracks in found.items() if tracks}


def follow_cuts(
    flow: Flow, program: ir.Program, starts: Iterable[ir.Variable], streams: Container[ir.Equation]
) -> Tracks:
    """Where the elements of some values go while they are only moved, cut, and added to.

    Sums that are `streams`, of a branch and the value that it is computed from, end the search.
    """
    tracks: Tracks = {v: {v: Followed.from_start(v.shape)} for v in starts}
    for equation in program.equations:
        moved = follow_move(equation, tracks)
        if moved is not None:
            tracks.update(moved)
        elif equation.primitive in (ir.add_p, ir.add_any_p, ir.sub_p) and equation not in streams:
            (output,) = equation.outputs
            same = [a for a in equation.inputs if isinstance(a, ir.Variable) and a.shape == output.shape]
            found = {v: track for a in same if a in tracks for v, track in tracks[a].items()}
            if 0 < len(found) <= _MOST_TERMS:
                tracks[output] = found
    return tracks


def use_start(use: Use) -> ir.Variable:
    """The output of a layer's operation, before its bias."""
    return use.equation.outputs[0]
