"""From uses to weights: parts of a leaf that share elements are scaled together, and some cannot be scaled."""

import collections
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from jaxinit._reading._layers import Read, Use, Weight
from jaxinit._reading._origin import Factor, overlap

_Region: TypeAlias = tuple[tuple[int, int], ...]


def grouped(found: Iterable[Weight], uses: Iterable[Use], reads: Sequence[Read]) -> list[Weight]:
    """The weights in order of first use; those that share elements are merged, and some must keep their scale."""
    of_leaf: dict[int, dict[Weight, _Region]] = collections.defaultdict(dict)
    for weight in found:
        alike = [
            u for leaf, own in weight.regions.items() for u, region in of_leaf[leaf].items() if overlap(region, own)
        ]
        for other in dict.fromkeys(alike):
            weight.refused = weight.refused or other.refused
            if other.stack != weight.stack or any(other.region[f.axis] != weight.region[f.axis] for f in weight.stack):
                weight.refused = weight.refused or _clash(weight.stack, other.stack)
                # One state for the whole weight, since the states of one use's slices would not fit the other use.
                weight.stack, weight.order = (), np.zeros((), int)
            regions = {**other.regions, **weight.regions}
            for leaf in other.regions.keys() & weight.regions.keys():
                regions[leaf] = _hull(other.regions[leaf], weight.regions[leaf])
            weight.region, weight.members = regions.pop(weight.leaf), regions
            for use in other.uses:
                for component in use.components:
                    if component.weight is other:
                        component.weight = weight
            weight.uses = list(dict.fromkeys([*other.uses, *weight.uses]))
            for leaf in other.regions:
                del of_leaf[leaf][other]
        for leaf, own in weight.regions.items():
            of_leaf[leaf][weight] = own
    weights = list(dict.fromkeys(weight for alike in of_leaf.values() for weight in alike))
    order = {use: i for i, use in enumerate(uses)}
    for weight in weights:
        weight.uses.sort(key=order.__getitem__)
    for leaf, origin, degree, position, stack, _ in reads:
        for weight, region in of_leaf[leaf].items():
            if origin and not overlap(origin.region, region):
                continue
            if origin is None and len(of_leaf[leaf]) > 1:
                weight.refused = weight.refused or "elsewhere it may be mixed with other parts of its leaf"
            elif degree is None:
                weight.refused = weight.refused or "elsewhere the program uses it in a way that is not homogeneous"
            elif position <= order[weight.uses[0]]:
                weight.refused = weight.refused or "the program reads it before the first layer that uses it"
            elif weight.stack and stack != weight.stack:
                weight.refused = weight.refused or _clash(weight.stack, stack)
    weights.sort(key=lambda weight: (order[weight.uses[0]], weight.uses[0].components.index(weight.first_component)))
    for index, weight in enumerate(weights):
        weight.index = index
    return weights


def _hull(a: _Region, b: _Region) -> _Region:
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _clash(a: Sequence[Factor], b: Sequence[Factor]) -> str:
    """Why two uses with such stacks cannot share scales."""
    if a != b and _unflipped(a) == _unflipped(b):
        return "it is flipped along its stack, and used unflipped too"
    if a and b:
        return "loops run over different slices of it"
    return "it is used both as a whole and slice by slice"


def _unflipped(factors: Sequence[Factor]) -> list[Factor]:
    return [f._replace(flipped=False) for f in factors]
