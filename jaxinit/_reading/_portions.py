"""What parts of a weight are for: query, key, value and output of attention, the gates of recurrent cells.

A fused weight is cut by the program after its product; each part is a set of columns of the weight, in the layout
(fan-in, fan-out), or of elements of a bias.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxinit._reading._attention import Attention, Block, attentions, encoder_sites
from jaxinit._reading._cells import BiasLink, Cell, cells
from jaxinit._reading._consumers import consumers_of
from jaxinit._reading._flow import Flow, follow_cuts, programs_of, site_start, steps
from jaxinit._reading._following import Onward, onward
from jaxinit._reading._layers import Analysis, Part, Site, Weight
from jaxinit._reading._origin import FOREIGN, Factor
from jaxinit._reading._residual import Skip
from jaxinit._reading._views import view

_SEVERAL = Onward(None, 1.0)
_Named: TypeAlias = tuple[str | None, Block, float]


@dataclasses.dataclass(frozen=True)
class Portion:
    """A part of a weight or of a bias.

    Attributes:
      role: "query", "key", "value", "forget", "input", ..., or None.
      places: the columns of the weight, or the elements of the bias; None for all.
      state_rows: the rows (start, stop) of the weight that meet the state of a recurrent cell, or None.
      cell: number of the recurrent cell that it is a weight of, or None.
      open: for a forget gate, by how much the program itself opens it: the logit of the gate at zero.
      onward: what a block of a fused weight goes on as, where its blocks go on as different functions.
    """

    role: str | None
    places: tuple[int, ...] | None = None
    state_rows: tuple[int, int] | None = None
    cell: int | None = None
    open: float = 0.0
    onward: Onward | None = None


@dataclasses.dataclass(frozen=True)
class Structure:
    """The parts of a model that more than one layer makes.

    Attributes:
      attentions, cells: see there.
      encoder: the layers that cross attention takes its memory from.
      weights: weight → its portions; weights without a role, of which nothing is cut, are left out.
      biases: leaf → the portions of a bias that belong to gates.
    """

    attentions: tuple[Attention, ...]
    cells: tuple[Cell, ...]
    encoder: frozenset[Site]
    weights: dict[Weight, tuple[Portion, ...]]
    biases: dict[int, tuple[Portion, ...]]


def structure(flow: Flow, connections: Sequence[Skip], leaves: Sequence[Any] = ()) -> Structure:
    """Finds attention, recurrent cells and gated units, and what they make of every weight."""
    analysis = flow.analysis
    heads, recurrent = attentions(flow, connections), cells(flow)
    weights: dict[Weight, tuple[Portion, ...]] = {}
    named = _named_blocks(heads, recurrent)
    others = [s for s in analysis.sites.values() if s not in named]
    gated = _gated_blocks(flow, others, leaves)
    for weight in analysis.weights:
        found = _portions(analysis, weight, named.get(weight.sites[0], []), recurrent)
        blocks = _blocks_of(analysis, weight, gated.get(weight.sites[0], []))
        if found or blocks:
            weights[weight] = found or blocks
    biases: dict[int, list[Portion]] = {}
    for i, cell in enumerate(recurrent):
        for link in cell.biases:
            biases.setdefault(link.leaf, []).extend(_bias_portions(link, cell, i))
    merged = {leaf: tuple(dict.fromkeys(found)) for leaf, found in biases.items()}
    return Structure(tuple(heads), tuple(recurrent), encoder_sites(flow, heads), weights, merged)


def _named_blocks(heads: Sequence[Attention], recurrent: Sequence[Cell]) -> dict[Site, list[_Named]]:
    """For each layer the parts of its output, what they are for, and by how much the program opens them."""
    named: dict[Site, list[_Named]] = {}
    for attention in heads:
        parts: list[_Named] = [
            (role, block, 0.0) for role in ("query", "key", "value") for block in getattr(attention, role)
        ]
        for part in parts + [("output", Block.whole(site), 0.0) for site in attention.output]:
            named.setdefault(part[1].site, []).append(part)
    for cell in recurrent:
        for part in _gates(cell) + [(None, block, 0.0) for block in cell.parts]:
            named.setdefault(part[1].site, []).append(part)
    return named


def _portions(
    analysis: Analysis, weight: Weight, named: Sequence[_Named], recurrent: Sequence[Cell]
) -> tuple[Portion, ...]:
    site = weight.sites[0]
    rows = next((c.state_rows[site] for c in recurrent if site in c.state_rows), None)
    cell = next((i for i, c in enumerate(recurrent) if site in c.state_rows or site in c.inputs), None)
    found: dict[tuple[int, ...], Portion] = {}
    for role, block, shift in named:
        columns = _columns(analysis, site, weight.first_part, block)
        if columns and (columns not in found or found[columns].role is None):
            found[columns] = Portion(role, columns, rows, cell, shift)
    count = max((len(columns) for columns in found), default=0)
    parts = _partition(list(found.values()))
    if len(parts) == 1 and len(parts[0].places or ()) == count == _column_count(weight):
        parts = (dataclasses.replace(parts[0], places=None),)
    return tuple(p for p in parts if p.role or p.cell is not None or p.places)


def _gated_blocks(flow: Flow, sites: Sequence[Site], leaves: Sequence[Any]) -> dict[Site, list[tuple[Block, Onward]]]:
    """The parts into which outputs of layers are cut, and what each goes on as, where not all go on as one function."""
    analysis = flow.analysis
    found: dict[Site, list[tuple[Block, Onward]]] = {}
    streams = consumers_of(analysis).streams
    for program in programs_of(analysis.program):
        equations = set(program.equations)
        site_of = {site_start(s): s for s in sites if s.equation in equations}
        tracks = follow_cuts(flow, program, site_of, streams) if site_of else {}
        for value, starts in tracks.items():
            for start, track in starts.items():
                block = Block.followed(site_of[start], track)
                sizes = zip(block.places, start.shape, strict=True)
                if all(places is None or len(places) == n for places, n in sizes):
                    continue
                own = onward(analysis, program, value, leaves, through=True)
                found.setdefault(site_of[start], []).append((block, own))
    return found


def _blocks_of(analysis: Analysis, weight: Weight, blocks: Sequence[tuple[Block, Onward]]) -> tuple[Portion, ...]:
    """The blocks of a fused weight, if they go on as different functions and no column is in two or in none."""
    chosen: dict[tuple[int, ...], Onward] = {}
    for block, own in blocks:
        columns = _columns(analysis, weight.sites[0], weight.first_part, block)
        if columns and (columns not in chosen or own == chosen[columns]):
            chosen[columns] = own
        elif columns:
            chosen[columns] = _SEVERAL
    portions = _partition([Portion(None, columns, onward=own) for columns, own in chosen.items()])
    places = [i for p in portions for i in p.places or ()]
    complete = len(portions) > 1 and sorted(places) == list(range(_column_count(weight)))
    return portions if complete and len({p.onward for p in portions}) > 1 else ()


def _partition(portions: Sequence[Portion]) -> tuple[Portion, ...]:
    """The portions without those that contain others, if what is left does not overlap."""
    sets = {p: frozenset(p.places or ()) for p in portions}
    smallest = [p for p in portions if not any(sets[q] < sets[p] for q in portions)]
    everything = frozenset().union(*sets.values())
    if (
        sum(len(sets[p]) for p in smallest) != len(everything)
        or frozenset().union(*(sets[p] for p in smallest)) != everything
    ):
        return tuple(sorted(portions, key=lambda p: -len(sets[p])))[:1]
    return tuple(sorted(smallest, key=lambda p: p.places or ()))


def _column_count(weight: Weight) -> int:
    found = view(weight)
    return 0 if found is None else math.prod(found.shape[a] for a in found.out_axes)


def _columns(analysis: Analysis, site: Site, part: Part, block: Block) -> tuple[int, ...] | None:
    """The columns of a weight that make a part of the output, in the order in which weights are drawn."""
    axes, origin = view(part.weight), part.origin
    if axes is None or origin is None or any(f.axis == FOREIGN for d in site.geometry.out_dims for f in origin.dims[d]):
        return None
    region = [stop - start for start, stop in part.weight.region]
    strides = _strides(region)
    segments = analysis.of(site.weight).segments
    offsets, chosen = np.zeros(1, np.int64), np.ones(1, bool)
    for d in site.geometry.out_dims:
        along = steps(origin.dims[d], lambda f: f.stride * strides[f.axis])
        start = part.start if segments is not None and segments.dimension == d else 0
        places = block.places[site.geometry.placed[d]]
        assert places is not None
        kept = np.array([start + i in places for i in range(len(along))], bool)
        offsets, chosen = np.add.outer(offsets, along).reshape(-1), np.logical_and.outer(chosen, kept).reshape(-1)
    view_strides = _strides(axes.shape)
    columns = steps(
        [Factor(a, axes.shape[a], view_strides[a]) for a in axes.out_axes],
        lambda f: f.stride,
    )
    return tuple(np.flatnonzero(np.isin(columns, offsets[chosen])).tolist())


def _bias_portions(link: BiasLink, cell: Cell, number: int) -> list[Portion]:
    """The elements of a bias that belong to gates."""
    dims = [d for d, factors in enumerate(link.origin.dims) if any(f.axis != FOREIGN for f in factors)]
    base = [start for start, _ in link.origin.region]
    # Relative to its own axes: a bias is a vector, or a stack of them.
    axes = sorted({f.axis for d in dims for f in link.origin.dims[d]})
    strides = dict(zip(axes, _strides([link.origin.region[a][1] - base[a] for a in axes]), strict=True))
    elements = sum(base[a] * strides[a] for a in axes) + steps(
        [f for d in dims for f in link.origin.dims[d]], lambda f: f.stride * strides[f.axis]
    )
    portions = []
    for role, block, shift in _gates(cell):
        for site, track in link.tracks:
            if block.site is not site:
                continue
            chosen = np.ones(len(elements), bool)
            for axis, places in enumerate(block.places):
                if places is None or len(places) == site_start(site).shape[axis]:
                    continue
                coordinates = _along(link, track.coordinates(dims, axis), dims, len(elements))
                chosen &= np.isin(coordinates, list(places))
            if chosen.any():
                portions.append(Portion(role, tuple(elements[chosen].tolist()), cell=number, open=shift))
    return portions


def _along(link: BiasLink, coordinates: np.ndarray, dims: Sequence[int], count: int) -> np.ndarray:
    """The coordinates that belong to the elements of a segment."""
    if link.segment is None or dims != [link.segment[0]]:
        return coordinates
    return coordinates[link.segment[1] : link.segment[1] + count]


def _gates(cell: Cell) -> list[_Named]:
    named: list[_Named] = [("forget", block, shift) for block, shift in cell.forget]
    return named + [("input", block, 0.0) for block in cell.input]


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]
