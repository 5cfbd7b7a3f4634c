"""From uses to units: parts of a leaf that share elements are scaled together, and some not at all."""

import collections
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from jaxinit._reading._origin import Factor, overlap
from jaxinit._reading._units import Read, Site, Unit

_Region: TypeAlias = tuple[tuple[int, int], ...]


def grouped(found: Iterable[Unit], sites: Iterable[Site], reads: Sequence[Read]) -> list[Unit]:
    """The units in order of first use, those merged that share elements, with the reasons why some keep their scale."""
    of_leaf: dict[int, dict[Unit, _Region]] = collections.defaultdict(dict)
    for unit in found:
        alike = [u for leaf, own in unit.regions.items() for u, region in of_leaf[leaf].items() if overlap(region, own)]
        for other in dict.fromkeys(alike):
            unit.refused = unit.refused or other.refused
            if other.stack != unit.stack or any(other.region[f.axis] != unit.region[f.axis] for f in unit.stack):
                unit.refused = unit.refused or _clash(unit.stack, other.stack)
                # One state for all of it, since the states of one use's slices would be of no use to the other.
                unit.stack, unit.order = (), np.zeros((), int)
            regions = {**other.regions, **unit.regions}
            for leaf in other.regions.keys() & unit.regions.keys():
                regions[leaf] = _hull(other.regions[leaf], unit.regions[leaf])
            unit.region, unit.members = regions.pop(unit.leaf), regions
            for site in other.sites:
                for part in site.parts:
                    if part.unit is other:
                        part.unit = unit
            unit.sites = list(dict.fromkeys([*other.sites, *unit.sites]))
            for leaf in other.regions:
                del of_leaf[leaf][other]
        for leaf, own in unit.regions.items():
            of_leaf[leaf][unit] = own
    units = list(dict.fromkeys(unit for alike in of_leaf.values() for unit in alike))
    order = {site: i for i, site in enumerate(sites)}
    for unit in units:
        unit.sites.sort(key=order.__getitem__)
    for leaf, origin, degree, position, _ in reads:
        for unit, region in of_leaf[leaf].items():
            if origin and not overlap(origin.region, region):
                continue
            if degree is None:
                unit.refused = unit.refused or "elsewhere the program uses it in a way that is not homogeneous"
            elif position <= order[unit.sites[0]]:
                unit.refused = unit.refused or "the program reads it before the first layer that uses it"
            elif origin and origin.stack != unit.stack and _unflipped(origin.stack) == _unflipped(unit.stack):
                unit.refused = unit.refused or _clash(unit.stack, origin.stack)
    units.sort(key=lambda unit: (order[unit.sites[0]], unit.sites[0].parts.index(unit.first_part)))
    for index, unit in enumerate(units):
        unit.index = index
    return units


def _hull(a: _Region, b: _Region) -> _Region:
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _clash(a: Sequence[Factor], b: Sequence[Factor]) -> str:
    """Why two uses that walk along such stacks can have no scales in common."""
    if a != b and _unflipped(a) == _unflipped(b):
        return "it is flipped along its stack, and used unflipped too"
    if a and b:
        return "loops walk along slices of it that are not the same"
    return "it is used both as a whole and slice by slice"


def _unflipped(factors: Sequence[Factor]) -> list[Factor]:
    return [f._replace(flipped=False) for f in factors]
