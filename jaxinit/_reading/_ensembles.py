"""Stacks of independent weights that meet the same data: experts, and models under `vmap` with a shared input.

`einsum("td,edf->etf", x, w)` and `vmap(lambda w: x @ w)(stack)` are one product, whose output has the stack beside the
features. The stack is told from features by where it lies: outside of the axis that is contracted while features lie
inside, or along the leading axis of every leaf, which some other layer takes as a batch.
"""

from collections.abc import Sequence

from jaxinit._reading._geometry import Geometry
from jaxinit._reading._origin import FOREIGN, Factor, Origin
from jaxinit._reading._units import Part, Unit


def mark_ensembles(units: Sequence[Unit]) -> None:
    """Tells each part of a weight along which factors of its leaf independent weights lie."""
    batched = {f for unit in units for site in unit.sites for f in _leading(unit, site.geometry, batch=True)}
    sizes = {f.size for f in batched}
    for unit in units:
        for site in unit.sites:
            for part in site.parts:
                if part.unit is unit and part.origin is not None:
                    found = _outside(part.origin, site.geometry)
                    found |= {f for f in _leading(unit, site.geometry, batch=False) if f.size in sizes}
                    part.ensemble = frozenset(found)


def feature_dims(parts: Sequence[Part], geometry: Geometry) -> list[int]:
    """The dimensions of a weight that are features of its output, and not a stack of independent weights."""
    stacks = {f for part in parts if part.origin is not None for f in _outside(part.origin, geometry)}
    origins = [part.origin for part in parts if part.origin is not None]
    return [d for d in geometry.out_dims if not any(f in stacks for o in origins for f in o.dims[d])]


def _factors(origin: Origin, dims: Sequence[int]) -> list[Factor]:
    return [f for d in dims for f in origin.dims[d] if f.axis != FOREIGN]


def _outside(origin: Origin, geometry: Geometry) -> set[Factor]:
    """The factors of the output that lie outside of all inputs, if others lie inside of one."""
    inputs, outputs = (_factors(origin, dims) for dims in (geometry.in_dims, geometry.out_dims))
    if not inputs or geometry.kind == "embed":
        return set()
    first = min(f.axis for f in inputs)
    outside = {f for f in outputs if f.axis < first}
    if geometry.kind != "conv":  # which under `vmap` has its stack and its features in one dimension
        outside = {f for d in geometry.out_dims for f in origin.dims[d] if f in outside and len(origin.dims[d]) == 1}
    return outside if any(f.axis > first for f in outputs) else set()


def _leading(unit: Unit, geometry: Geometry, batch: bool) -> list[Factor]:
    """The leading axis of a leaf of three or more axes, if it is a batch of weights, or features of the output."""
    origin = unit.first_part.origin
    if origin is None or len(unit.region) < 3 or geometry.kind == "embed" or unit.stack:
        return []
    dims = geometry.batch_dims if batch else geometry.out_dims
    size = unit.region[0][1] - unit.region[0][0]
    found = [f for f in _factors(origin, dims) if f.axis == 0 and f.size == size]
    others = [f for f in _factors(origin, geometry.out_dims) if f.axis != 0]
    return found if others else []
