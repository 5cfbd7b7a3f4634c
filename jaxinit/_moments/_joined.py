"""Parts that a program cuts out of values that it has joined: q of stacked q, k and v, one of two concatenated halves.

Samples of a joined value do not record which part an element belongs to, so the part itself is used.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._moments._moves import cut, with_size_one
from jaxinit._moments._samples import Samples
from jaxinit._moments._streams import Streams


class _Part(NamedTuple):
    """A value that occupies a range of another one along a dimension; in a stack it lacks that dimension."""

    atom: ir.Atom
    dimension: int
    start: int
    size: int
    stacked: bool


class Piece(NamedTuple):
    """Some elements of a part along its dimension; `dropped` if that dimension is removed."""

    part: _Part
    start: int
    size: int
    dropped: bool = False

    @property
    def atom(self) -> ir.Atom:
        """The value that this is a piece of."""
        return self.part.atom

    def of(self, streams: Streams, whole: Samples) -> Samples:
        """The piece, given the samples of the value."""
        part = self.part
        if part.stacked:
            return whole if self.dropped else with_size_one(whole, part.dimension)
        return cut(streams, whole, part.dimension, self.start - part.start, self.size)


class Joined:
    """The values of a program that have been joined so far."""

    def __init__(self) -> None:
        self._parts: dict[ir.Atom, list[_Part]] = {}

    def pieces(self, equation: ir.Equation) -> list[Piece]:
        """What an equation cuts out of joined values, if each output is inside one part; else nothing."""
        primitive = equation.primitive
        if primitive in (ir.concatenate_p, ir.stack_p):
            stacked = primitive is ir.stack_p
            dimension = equation.params["axis" if stacked else "dimension"]
            starts, parts = 0, []
            for atom in equation.inputs:
                size = 1 if stacked else atom.shape[dimension]
                parts.append(_Part(atom, dimension, starts, size, stacked))
                starts += size
            self._parts[equation.outputs[0]] = parts
            return []
        parts = self._parts.get(equation.inputs[0], []) if equation.inputs else []
        if not parts:
            return []
        if primitive in ir.IDENTITIES:
            self._parts[equation.outputs[0]] = parts
            return []
        dimension = parts[0].dimension
        if primitive is ir.slice_p:
            starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
            shape = equation.inputs[0].shape
            is_whole = all(
                (a, b) == (0, n)
                for d, (a, b, n) in enumerate(zip(starts, limits, shape, strict=True))
                if d != dimension
            )
            size = limits[dimension] - starts[dimension]
            if not is_whole or equation.outputs[0].shape[dimension] != size:
                return []
            return _inside(parts, [(starts[dimension], size)])
        if primitive in (ir.split_p, ir.unstack_p) and equation.params["axis"] == dimension:
            dropped = primitive is ir.unstack_p
            sizes = [1] * len(equation.outputs) if dropped else equation.params["sizes"]
            begins = [sum(sizes[:i]) for i in range(len(sizes))]
            return _inside(parts, list(zip(begins, sizes, strict=True)), dropped)
        return []


def _inside(parts: Sequence[_Part], ranges: Sequence[tuple[int, int]], dropped: bool = False) -> list[Piece]:
    """Ranges along a dimension as pieces of parts; nothing if one of them covers several parts."""
    found = []
    for start, size in ranges:
        part = next((p for p in parts if p.start <= start and start + size <= p.start + p.size), None)
        if part is None or (dropped and not part.stacked):
            return []
        found.append(Piece(part, start, size, dropped))
    return found
