"""The roles of blocks of a weight: query, key, value and output of attention, the gates of recurrent cells.

The program cuts the output of a fused weight after its product. Each block is a set of columns of the weight, in the
layout (fan-in, fan-out), or of elements of a bias.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxinit._reading._attention import Attention, Features, attentions, encoder_uses
from jaxinit._reading._cells import BiasLink, Cell, cells
from jaxinit._reading._consumers import consumers_of
from jaxinit._reading._flow import Flow, follow_cuts, programs_of, steps, use_start
from jaxinit._reading._following import Onward, onward
from jaxinit._reading._layers import Analysis, Component, Use, Weight
from jaxinit._reading._origin import FOREIGN, Factor
from jaxinit._reading._residual import Skip
from jaxinit._reading._views import View, view

_SEVERAL = Onward(None, 1.0)
_Named: TypeAlias = tuple[str | None, Features, float]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of a weight or of a bias: a set of columns, or of elements.

    Attributes:
      role: "query", "key", "value", "forget", "input", ..., or None.
      indices: the columns of the weight, or the elements of the bias; None for all.
      state_rows: the rows (start, stop) of the weight that meet the state of a recurrent cell, or None.
      cell: number of the recurrent cell that it is a weight of, or None.
      open: for a forget gate, by how much the program itself opens it: the logit of the gate at zero.
      onward: what follows a block of a fused weight, if different functions follow its blocks.
    """

    role: str | None
    indices: tuple[int, ...] | None = None
    state_rows: tuple[int, int] | None = None
    cell: int | None = None
    open: float = 0.0
    onward: Onward | None = None


@dataclasses.dataclass(frozen=True)
class Structure:
    """The structures of a model that consist of more than one layer.

    Attributes:
      attentions, cells: see there.
      encoder: the layers that cross attention takes its memory from.
      weights: weight → its blocks; weights without a role that are not cut are left out.
      biases: leaf → the blocks of a bias that belong to gates.
    """

    attentions: tuple[Attention, ...]
    cells: tuple[Cell, ...]
    encoder: frozenset[Use]
    weights: dict[Weight, tuple[Block, ...]]
    biases: dict[int, tuple[Block, ...]]


def structure(flow: Flow, connections: Sequence[Skip], leaves: Sequence[Any] = ()) -> Structure:
    """Finds attention, recurrent cells and gated units, and the roles that they give to every weight."""
    analysis = flow.analysis
    heads, recurrent = attentions(flow, connections), cells(flow)
    weights: dict[Weight, tuple[Block, ...]] = {}
    named = _named_blocks(heads, recurrent)
    others = [s for s in analysis.uses.values() if s not in named]
    gated = _gated_blocks(flow, others, leaves)
    for weight in analysis.weights:
        found = _blocks_of_weight(analysis, weight, named.get(weight.uses[0], []), recurrent)
        blocks = _blocks_of(analysis, weight, gated.get(weight.uses[0], []))
        if found or blocks:
            weights[weight] = found or blocks
    biases: dict[int, list[Block]] = {}
    for i, cell in enumerate(recurrent):
        for link in cell.biases:
            biases.setdefault(link.leaf, []).extend(_bias_blocks(link, cell, i))
    merged = {leaf: tuple(dict.fromkeys(found)) for leaf, found in biases.items()}
    return Structure(tuple(heads), tuple(recurrent), encoder_uses(flow, heads), weights, merged)


def _named_blocks(heads: Sequence[Attention], recurrent: Sequence[Cell]) -> dict[Use, list[_Named]]:
    """For each use the named features of its output, their roles, and by how much the program opens them."""
    named: dict[Use, list[_Named]] = {}
    for attention in heads:
        parts: list[_Named] = [
            (role, features, 0.0) for role in ("query", "key", "value") for features in getattr(attention, role)
        ]
        for part in parts + [("output", Features.whole(use), 0.0) for use in attention.output]:
            named.setdefault(part[1].use, []).append(part)
    for cell in recurrent:
        for part in _gates(cell) + [(None, features, 0.0) for features in cell.parts]:
            named.setdefault(part[1].use, []).append(part)
    return named


def _blocks_of_weight(
    analysis: Analysis, weight: Weight, named: Sequence[_Named], recurrent: Sequence[Cell]
) -> tuple[Block, ...]:
    use = weight.uses[0]
    rows = next((c.state_rows[use] for c in recurrent if use in c.state_rows), None)
    cell = next((i for i, c in enumerate(recurrent) if use in c.state_rows or use in c.inputs), None)
    found: dict[tuple[int, ...], Block] = {}
    for role, features, shift in named:
        columns = _columns(analysis, use, weight.first_component, features)
        if columns and (columns not in found or found[columns].role is None):
            found[columns] = Block(role, columns, rows, cell, shift)
    count = max((len(columns) for columns in found), default=0)
    parts = _partition(list(found.values()))
    if len(parts) == 1 and len(parts[0].indices or ()) == count == _column_count(weight):
        parts = (dataclasses.replace(parts[0], indices=None),)
    return tuple(p for p in parts if p.role or p.cell is not None or p.indices)


def _gated_blocks(flow: Flow, uses: Sequence[Use], leaves: Sequence[Any]) -> dict[Use, list[tuple[Features, Onward]]]:
    """The features into which outputs are cut, and what follows each, unless the same function follows all."""
    analysis = flow.analysis
    found: dict[Use, list[tuple[Features, Onward]]] = {}
    streams = consumers_of(analysis).streams
    for program in programs_of(analysis.program):
        equations = set(program.equations)
        use_of = {use_start(s): s for s in uses if s.equation in equations}
        tracks = follow_cuts(flow, program, use_of, streams) if use_of else {}
        for value, starts in tracks.items():
            for start, track in starts.items():
                features = Features.followed(use_of[start], track)
                sizes = zip(features.indices, start.shape, strict=True)
                if all(indices is None or len(indices) == n for indices, n in sizes):
                    continue
                own = onward(analysis, program, value, leaves, through=True)
                found.setdefault(use_of[start], []).append((features, own))
    return found


def _blocks_of(analysis: Analysis, weight: Weight, cuts: Sequence[tuple[Features, Onward]]) -> tuple[Block, ...]:
    """The blocks of a fused weight, if different functions follow them and each column is in exactly one."""
    chosen: dict[tuple[int, ...], Onward] = {}
    for features, own in cuts:
        columns = _columns(analysis, weight.uses[0], weight.first_component, features)
        if columns and (columns not in chosen or own == chosen[columns]):
            chosen[columns] = own
        elif columns:
            chosen[columns] = _SEVERAL
    found = _partition([Block(None, columns, onward=own) for columns, own in chosen.items()])
    indices = [i for p in found for i in p.indices or ()]
    complete = len(found) > 1 and sorted(indices) == list(range(_column_count(weight)))
    return found if complete and len({p.onward for p in found}) > 1 else ()


def _partition(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks without those that contain others, if the remaining ones do not overlap."""
    sets = {p: frozenset(p.indices or ()) for p in blocks}
    smallest = [p for p in blocks if not any(sets[q] < sets[p] for q in blocks)]
    everything = frozenset().union(*sets.values())
    if (
        sum(len(sets[p]) for p in smallest) != len(everything)
        or frozenset().union(*(sets[p] for p in smallest)) != everything
    ):
        return tuple(sorted(blocks, key=lambda p: -len(sets[p])))[:1]
    return tuple(sorted(smallest, key=lambda p: p.indices or ()))


def _column_count(weight: Weight) -> int:
    found = view(weight)
    return 0 if found is None else math.prod(found.shape[a] for a in found.out_axes)


def _columns(analysis: Analysis, use: Use, component: Component, features: Features) -> tuple[int, ...] | None:
    """The columns of a weight that compute some features of the output, in the order in which weights are drawn."""
    axes, origin = view(component.weight), component.origin
    if axes is None or origin is None or any(f.axis == FOREIGN for d in use.geometry.out_dims for f in origin.dims[d]):
        return None
    segments = analysis.of(use.weight).segments
    wanted = []
    for d in use.geometry.out_dims:
        start = component.start if segments is not None and segments.dimension == d else 0
        indices = features.indices[use.geometry.placed[d]]
        assert indices is not None
        wanted.append((origin.dims[d], start, indices))
    return _columns_in(axes, tuple(stop - start for start, stop in component.weight.region), tuple(wanted))


@functools.lru_cache(maxsize=128)
def _columns_in(
    axes: View, region: tuple[int, ...], wanted: tuple[tuple[tuple[Factor, ...], int, frozenset[int]], ...]
) -> tuple[int, ...]:
    """The columns of a weight, seen with these axes, that compute some features of the output.

    Args:
      axes: of the view.
      region: the shape of the weight's part of its leaf.
      wanted: for each dimension of features its factors, at which feature they start, and which features are wanted.
    """
    strides = _strides(region)
    offsets, chosen = np.zeros(1, np.int64), np.ones(1, bool)
    for factors, start, indices in wanted:
        along = steps(factors, lambda f: f.stride * strides[f.axis])
        kept = np.array([start + i in indices for i in range(len(along))], bool)
        offsets, chosen = np.add.outer(offsets, along).reshape(-1), np.logical_and.outer(chosen, kept).reshape(-1)
    view_strides = _strides(axes.shape)
    columns = steps(
        [Factor(a, axes.shape[a], view_strides[a]) for a in axes.out_axes],
        lambda f: f.stride,
    )
    return tuple(np.flatnonzero(np.isin(columns, offsets[chosen])).tolist())


def _bias_blocks(link: BiasLink, cell: Cell, number: int) -> list[Block]:
    """The elements of a bias that belong to gates."""
    dims = [d for d, factors in enumerate(link.origin.dims) if any(f.axis != FOREIGN for f in factors)]
    base = [start for start, _ in link.origin.region]
    # Relative to its own axes: a bias is a vector, or a stack of them.
    axes = sorted({f.axis for d in dims for f in link.origin.dims[d]})
    strides = dict(zip(axes, _strides([link.origin.region[a][1] - base[a] for a in axes]), strict=True))
    elements = sum(base[a] * strides[a] for a in axes) + steps(
        [f for d in dims for f in link.origin.dims[d]], lambda f: f.stride * strides[f.axis]
    )
    blocks = []
    for role, features, shift in _gates(cell):
        for use, track in link.tracks:
            if features.use is not use:
                continue
            chosen = np.ones(len(elements), bool)
            for axis, indices in enumerate(features.indices):
                if indices is None or len(indices) == use_start(use).shape[axis]:
                    continue
                coordinates = _along(link, track.coordinates(dims, axis), dims, len(elements))
                chosen &= np.isin(coordinates, list(indices))
            if chosen.any():
                blocks.append(Block(role, tuple(elements[chosen].tolist()), cell=number, open=shift))
    return blocks


def _along(link: BiasLink, coordinates: np.ndarray, dims: Sequence[int], count: int) -> np.ndarray:
    """The coordinates that belong to the elements of a segment."""
    if link.segment is None or dims != [link.segment[0]]:
        return coordinates
    return coordinates[link.segment[1] : link.segment[1] + count]


def _gates(cell: Cell) -> list[_Named]:
    named: list[_Named] = [("forget", features, shift) for features, shift in cell.forget]
    return named + [("input", features, 0.0) for features in cell.input]


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]
