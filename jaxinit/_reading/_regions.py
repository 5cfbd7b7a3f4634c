"""Layers that are written out: products of data with a weight, element by element, and a sum over the products.

`(x[..., None] * w).sum(-2)` and `sum_i shift_i(x) * w[i]` are as linear in w as x @ w is. From each product of data
with a weight the program is followed as long as it stays linear in the weight. If a sum runs along a dimension of the
weight, or adds products with other parts of it, the products have become a layer, which ends with the last such sum.
A product without a sum scales data, and is not a layer; nor is a product that is also used elsewhere than in the sum.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, Segments
from jaxinit._reading._geometry import Geometry
from jaxinit._reading._layers import Entry
from jaxinit._reading._origin import Factor, Origin, overlap
from jaxinit._reading._partials import (
    Of,
    Partial,
    carried_on,
    carrier,
    differs,
    entry_of,
    kept_dimensions,
    multiplies,
    origin_of,
)
from jaxinit._reading._rows import division_into_mean
from jaxinit._reading._rules import Move, cuts, rule_of

_Consumers: TypeAlias = Mapping[ir.Atom, Sequence[ir.Equation | None]]


@dataclasses.dataclass(frozen=True)
class Region:
    """Part of a program that is linear in a weight, from products with data to the last sum over them.

    Attributes:
      entries: the products.
      end: the equation whose output is their sum.
      dimensions: dimension of a product → dimension of the sum, for those that are kept.
      summed: the dimensions of a product along which the sum runs.
      joint: whether the entries use different weights that form one: its real and its imaginary part.
      apart: whether the products use different elements of data, which the taps of a convolution do not.
    """

    entries: tuple[Entry, ...]
    end: ir.Equation
    dimensions: Mapping[int, int]
    summed: frozenset[int]
    joint: bool = False
    apart: bool = False


_Found: TypeAlias = dict[ir.Atom, dict[int, Partial]]


def regions(equations: Sequence[ir.Equation], of: Of, consumers: _Consumers) -> list[Region]:
    """The regions among equations that meet data, in order of their ends.

    Args:
      equations: in execution order.
      of: what a value depends on; everything that depends on no data is known.
      consumers: the equations that read each value; None stands for the outputs of the program.
    """
    partials: _Found = {}
    followed: set[tuple[ir.Atom, int, ir.Equation]] = set()
    for equation in equations:
        if partials.keys().isdisjoint(equation.inputs) and not multiplies(equation):
            continue
        carried = [partials.get(atom, {}) for atom in equation.inputs]
        entry = entry_of(equation, of)
        found = {} if entry is None else {entry[0]: entry[1]}
        for leaf in dict.fromkeys(leaf for x in carried for leaf in x):
            own = [x.get(leaf) for x in carried]
            if entry is not None and all(x is None or x.end is not None for x in own):
                continue  # the output of a layer is the data of the next one
            after = carried_on(equation, own, of)
            if after is not None and leaf not in found:
                found[leaf] = after
                followed.update(
                    (atom, leaf, equation) for atom, x in zip(equation.inputs, carried, strict=True) if leaf in x
                )
        if found:
            partials[equation.outputs[0]] = found
    producers: dict[ir.Atom, ir.Equation] = {v: e for e in equations for v in e.outputs}
    found_all = _spelled_out(partials, followed, consumers)
    found_all = [
        dataclasses.replace(x, apart=len(x.entries) > 1 and _take_turns(x.entries, producers))
        for x in found_all
        if not _is_mean_of_scaled(x, of, consumers) and (len(x.entries) == 1 or of(x.entries[0].atom).segments is None)
    ]
    return found_all


def _is_mean_of_scaled(region: Region, of: Of, consumers: _Consumers) -> bool:
    """Whether data are scaled, feature by feature, and the sum is divided by its number of terms.

    If a weight has no features of its own and its products are averaged, it is the scale of what is pooled.
    """
    first, output = region.entries[0], region.end.outputs[0]
    if len(region.entries) > 1 or geometry_of_region(region, of)[0].out_dims:
        return False
    count = math.prod(first.equation.outputs[0].shape) // max(math.prod(output.shape), 1)
    return division_into_mean(output, count, consumers) is not None


def _take_turns(entries: Sequence[Entry], producers: Mapping[ir.Atom, ir.Equation]) -> bool:
    """Whether products use parts of one value that share no element, or values none of which is another one."""
    roots: dict[ir.Atom, list[Origin]] = {}
    for entry in entries:
        moves: list[Move] = []
        atom = entry.data
        while (maker := producers.get(atom)) is not None:
            parts = cuts(maker)
            move = rule_of(maker).move(maker) if parts is None else parts[maker.outputs.index(atom)]  # type: ignore[arg-type]
            if move is None:
                break
            moves.append(move)
            atom = maker.inputs[0]
        origin: Origin | None = Origin.of_leaf(0, atom.shape)
        for move in reversed(moves):
            origin = origin and move(origin)
        if origin is None or (atom in roots and any(overlap(o.region, origin.region) for o in roots[atom])):
            return False
        roots.setdefault(atom, []).append(origin)
    if len(roots) == 1:
        return True
    rearranged = [_rearranged_from(atom, producers) for atom in roots]
    return len(roots) == len(entries) and len(set().union(*rearranged)) == sum(map(len, rearranged))


def _rearranged_from(atom: ir.Atom, producers: Mapping[ir.Atom, ir.Equation]) -> set[ir.Atom]:
    """The values that provide the elements of a value, after moves, copies and joins."""
    found: set[ir.Atom] = set()
    queue = [atom]
    while queue:
        atom = queue.pop()
        if atom not in found and isinstance(atom, ir.Variable):
            found.add(atom)
            maker = producers.get(atom)
            queue.extend(maker.inputs if maker is not None and rule_of(maker).rearranges else ())
    return found


def _spelled_out(
    partials: _Found, followed: set[tuple[ir.Atom, int, ir.Equation]], consumers: _Consumers
) -> list[Region]:
    """The regions of sums that are complete, none of whose products is used otherwise."""
    used: dict[Entry, int] = {}
    ends: dict[ir.Equation, Partial] = {}
    spoiled: set[Entry] = set()
    for atom, by_leaf in partials.items():
        for leaf, partial in by_leaf.items():
            readers = consumers.get(atom, [])
            leaves = any(r is None or (atom, leaf, r) not in followed for r in readers)
            if leaves and partial.end is None:
                spoiled.update(partial.entries)
            elif leaves:
                ends.setdefault(partial.end, partial)  # type: ignore[arg-type]
    for partial in ends.values():
        for entry in partial.entries:
            used[entry] = used.get(entry, 0) + 1
    result = []
    for end, partial in ends.items():
        if any(e in spoiled or used[e] > 1 for e in partial.entries):
            continue
        at_end = partials[end.outputs[0]]
        own = next(x for x in at_end.values() if x.entries == partial.entries)
        result.append(Region(own.entries, end, own.dimensions, own.summed))
    return result


def geometry_of_region(region: Region, of: Of) -> tuple[Geometry, Origin | None]:
    """The roles of the dimensions of a region's weight, and where its elements are in its leaf.

    The weight is seen in the shape of a product, with one more leading dimension if there are several products.
    """
    first = region.entries[0]
    shape = first.equation.outputs[0].shape
    value = of(first.atom)
    leaf = carrier(value)
    origins = [None if leaf is None else origin_of(e, of(e.atom), leaf) for e in region.entries]
    own = [d for d in range(len(shape)) if differs(*first, d, of, origins[0])]
    summed = [d for d in own if d in region.summed]
    with_data = [d for d in own if d not in summed and differs(first.equation, 1 - first.weight, d, of, None)]
    free = [d for d in own if d not in summed and d not in with_data]
    off = int(len(region.entries) > 1)
    n_in, n_out = (math.prod(shape[d] for d in dims) for dims in (summed, free))
    if region.apart:
        # Each product uses different elements of the data: they are inputs.
        kind = "dense" if not summed and not with_data and len(free) <= 1 else "einsum"
        placed = {d + off: region.dimensions[d] for d in (*free, *with_data) if d in region.dimensions}
        in_dims, out_dims, batch_dims = (tuple(d + off for d in dims) for dims in (summed, free, with_data))
        geometry = Geometry(
            kind, (0, *in_dims), out_dims, batch_dims, placed, fan_in=len(region.entries) * n_in, fan_out=n_out
        )
        return geometry, _stacked_origin(origins)
    taps = len(region.entries)
    kind = (
        "depthwise" if off and not summed and not free else "dense" if len(summed) <= 1 and len(free) <= 1 else "einsum"
    )
    if kind == "dense" and (with_data or off):
        kind = "einsum"
    geometry = Geometry(
        kind,
        tuple(d + off for d in summed),
        tuple(d + off for d in free),
        tuple(d + off for d in with_data),
        {d + off: region.dimensions[d] for d in (*free, *with_data) if d in region.dimensions},
        fan_in=taps * n_in,
        fan_out=taps * n_out,
        receptive_field=taps,
    )
    return geometry, origins[0] if taps == 1 else _stacked_origin(origins)


def segments_of_region(region: Region, of: Of) -> Dependence:
    """The parts that a region's weight is concatenated from, along the dimensions of the product."""
    (entry,) = region.entries
    value = of(entry.atom)
    assert value.segments is not None
    dimensions, shape = kept_dimensions(entry.equation, entry.weight), entry.equation.outputs[0].shape
    along = dimensions[value.segments.dimension]
    parts = []
    for part, size in zip(value.parts, value.segments.sizes, strict=True):
        own = tuple(size if d == along else n for d, n in enumerate(shape))
        parts.append(part.map(lambda origin, own=own: origin.broadcast(own, list(dimensions.values()))))  # type: ignore[misc]
    return dataclasses.replace(value, segments=Segments(along, value.segments.sizes, tuple(parts)))


def _stacked_origin(origins: Sequence[Origin | None]) -> Origin | None:
    """The origin of several parts of a leaf one after another, if they are evenly spaced along one axis and alike."""
    known = [o for o in origins if o is not None]
    first = known[0] if known else None
    if first is None or len(known) != len(origins):
        return None
    axes = [a for a in range(len(first.region)) if len({o.region[a] for o in known}) > 1]
    if len(axes) != 1 or any((o.dims, o.stack) != (first.dims, first.stack) for o in known):
        return None
    (axis,) = axes
    starts = sorted(o.region[axis][0] for o in known)
    if starts != list(range(starts[0], starts[0] + len(starts))) or any(
        b - a != 1 for a, b in (o.region[axis] for o in known)
    ):
        return None
    region = tuple((starts[0], starts[-1] + 1) if a == axis else r for a, r in enumerate(first.region))
    return dataclasses.replace(first, region=region, dims=((Factor(axis, len(starts), 1),), *first.dims))
