"""Stacks of independent weights that meet the same data: experts, and models under `vmap` with a shared input.

`einsum("td,edf->etf", x, w)` and `vmap(lambda w: x @ w)(stack)` are one product, whose output has the stack beside the
features. The stack is distinguished from features by its position: outside of the axis that is contracted, while
features are inside; along the leading axis of every leaf that some other layer uses as a batch axis; or before the
samples in the output, with the features after them.
"""

from collections.abc import Callable, Mapping, Sequence

from jaxinit import _program as ir
from jaxinit._reading._geometry import Geometry
from jaxinit._reading._layers import Component, Use, Weight
from jaxinit._reading._origin import FOREIGN, Factor, Origin


def mark_ensembles(program: ir.Program, weights: Sequence[Weight]) -> None:
    """Finds for each part of a weight the factors of its leaf along which there are independent weights."""
    readers = {a: e for e in ir.equations_of(program) for a in e.inputs}
    batched = {f for weight in weights for use in weight.uses for f in _leading(weight, use.geometry, batch=True)}
    sizes = {f.size for f in batched}
    for weight in weights:
        for use in weight.uses:
            for component in use.components:
                if component.weight is weight and component.origin is not None:
                    found = _outside(component.origin, use.geometry)
                    found |= {f for f in _leading(weight, use.geometry, batch=False) if f.size in sizes}
                    found |= _in_front(use, component.origin, readers)
                    component.ensemble = frozenset(found)


def feature_dims(parts: Sequence[Component], geometry: Geometry) -> list[int]:
    """The dimensions of a weight that are features of its output, not a stack of independent weights."""
    stacks = {f for component in parts if component.origin is not None for f in _outside(component.origin, geometry)}
    origins = [component.origin for component in parts if component.origin is not None]
    return [d for d in geometry.out_dims if not any(f in stacks for o in origins for f in o.dims[d])]


def _factors(origin: Origin, dims: Sequence[int]) -> list[Factor]:
    return [f for d in dims for f in origin.dims[d] if f.axis != FOREIGN]


def _outside(origin: Origin, geometry: Geometry) -> set[Factor]:
    """The factors of the output that are outside of all inputs, if others are inside of one."""
    inputs, outputs = (_factors(origin, dims) for dims in (geometry.in_dims, geometry.out_dims))
    if not inputs or geometry.kind == "embed":
        return set()
    outside = _before(inputs, outputs, _place)
    # A leaf with reversed axes has its stack where the operation has it.
    order = {f: (d, i) for d, factors in enumerate(origin.dims) for i, f in enumerate(factors)}
    here = _before(inputs, outputs, lambda factor: order[factor])
    outside = here if outside and here else outside
    if geometry.kind != "conv":  # which under `vmap` has its stack and its features in one dimension
        outside = {f for d in geometry.out_dims for f in origin.dims[d] if f in outside and len(origin.dims[d]) == 1}
    return outside


def _before(
    inputs: Sequence[Factor], outputs: Sequence[Factor], place: Callable[[Factor], tuple[int, int]]
) -> set[Factor]:
    """The outputs that are before all inputs, if others are after one."""
    first = min(map(place, inputs))
    return {f for f in outputs if place(f) < first} if any(place(f) > first for f in outputs) else set()


def _place(factor: Factor) -> tuple[int, int]:
    """Sorts factors from the outermost of a leaf to the innermost, since several may share one axis."""
    return factor.axis, -factor.stride


def _is_leading(factor: Factor, origin: Origin, geometry: Geometry) -> bool:
    """Whether a factor is the leading axis of a leaf, or would be if inputs and outputs had separate axes.

    The heads of a matrix of (heads·features, inputs) share an axis of outputs, so they are not a leading axis.
    """
    size = origin.region[0][1] - origin.region[0][0]
    mixed = any(f.axis == 0 for f in _factors(origin, geometry.in_dims))
    return factor.axis == 0 and factor.size * factor.stride == size and (factor.size == size or mixed)


def _in_front(use: Use, origin: Origin, readers: Mapping[ir.Atom, ir.Equation]) -> set[Factor]:
    """The leading axis of a leaf, if the output has it before the samples, and features after them.

    A convolution has the stack and its features in one dimension, the stack outside.
    """
    features = [(d, f) for d in use.geometry.out_dims if d in use.placed for f in origin.dims[d] if f.axis != FOREIGN]
    leading = [(d, f) for d, f in features if _is_leading(f, origin, use.geometry)]
    if len(leading) != 1 or len(features) < 2 or origin.stack:
        return set()
    ((stack, factor),) = leading
    if use.geometry.kind == "conv":
        outermost = origin.dims[stack][0] == factor and use.geometry.feature_group_count == 1
        return {factor} if outermost and len(origin.region) > len(origin.dims) else set()
    if len(origin.dims[stack]) > 1:
        return set()
    order = list(range(len(use.finish.outputs[0].shape)))
    reader = readers.get(use.finish.outputs[0])
    if reader is not None and reader.primitive is ir.transpose_p:
        order = list(reader.params["permutation"])
    dimensions = {d: order.index(use.placed[d]) for d, _ in features}
    taken = {order.index(dimension) for dimension in use.placed.values()}
    behind = [dimension for d, dimension in dimensions.items() if d != stack]
    between = any(i not in taken for i in range(1, min(behind, default=0)))
    return {factor} if dimensions[stack] == 0 and between else set()


def _leading(weight: Weight, geometry: Geometry, batch: bool) -> list[Factor]:
    """The leading one of at least three axes of a leaf, also a reshaped one, if it holds weights or features."""
    origin = weight.first_component.origin
    if origin is None or geometry.kind == "embed" or weight.stack:
        return []
    if max(len(weight.region), len(_factors(origin, range(len(origin.dims))))) < 3:
        return []
    dims = geometry.batch_dims if batch else geometry.out_dims
    found = [f for f in _factors(origin, dims) if _is_leading(f, origin, geometry)]
    others = [f for f in _factors(origin, geometry.out_dims) if f not in found]
    return found if others else []
