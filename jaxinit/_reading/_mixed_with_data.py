"""Weights that data chooses or multiplies on their way to a layer: `x @ where(data, a, b)`, `x @ (w * mask_of_batch)`.

Such a value depends on data, so no scale of a leaf is the scale of the layer's output for all samples alike, and the
leaf is not the weight of a layer. Its elements are followed nevertheless, so that the leaf can be named.
"""

from collections.abc import Mapping, Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._geometry import geometry_of
from jaxinit._reading._origin import FOREIGN, Origin
from jaxinit._reading._rules import rearrangement

REASON = "data chooses it, or multiplies it, before it meets the layer's input"


def leaves_mixed_in(equation: ir.Equation, inputs: Sequence[Dependence]) -> Mapping[int, Origin | None]:
    """The leaves whose elements data has chosen or multiplied to compute an equation's output, and their origins."""
    primitive, first, others = equation.primitive, inputs[0], inputs[1:]
    if primitive is ir.select_p:
        return union(others)
    if primitive is ir.mul_p:
        return _spread(union(inputs), equation)
    if primitive is ir.div_p:
        return _spread(union([first]), equation)
    if primitive in (ir.add_p, ir.sub_p, ir.add_any_p) and all(x.mixed_in for x in inputs if x.data):
        return _spread(union(inputs), equation)
    if not first.mixed_in:
        return {}
    if primitive is ir.neg_p:
        return first.mixed_in
    if primitive is ir.reduce_sum_p:
        axes = tuple(equation.params["axes"])
        return {leaf: o and o.squeezed(axes) for leaf, o in first.mixed_in.items()}
    move = rearrangement(equation)
    return {} if move is None else {leaf: o and move(o) for leaf, o in first.mixed_in.items()}


def union(values: Sequence[Dependence]) -> dict[int, Origin | None]:
    """The leaves that any of several values is computed from."""
    found: dict[int, Origin | None] = {}
    for x in values:
        for part in x.parts:
            found |= {leaf: None if x.segments else part.origins.get(leaf) for leaf in part.degrees}
        found |= x.mixed_in
    return found


def weights_among(equation: ir.Equation, inputs: Sequence[Dependence], shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The leaves that would be a weight without the data in them: some of their axes meet other data, some are left.

    Args:
      equation: a product, or a convolution.
      inputs: what its inputs depend on.
      shapes: of each leaf.
    """
    found = []
    for i, value in enumerate(inputs):
        others = [x for j, x in enumerate(inputs) if j != i]
        if not value.mixed_in or not any(x.data for x in others):
            continue
        shape = geometry_of(equation, i, others[0])
        for leaf, origin in value.mixed_in.items():
            if shape is None or shape.kind == "embed":
                continue
            if origin is None:
                is_weight = len(shapes[leaf]) > 1
            else:
                is_weight = all(
                    any(f.axis != FOREIGN for d in dims for f in origin.dims[d])
                    for dims in (shape.in_dims, shape.out_dims)
                )
            if is_weight:
                found.append(leaf)
    return found


def _spread(found: dict[int, Origin | None], equation: ir.Equation) -> dict[int, Origin | None]:
    """The same, for numbers and values alike, in the shape of the output."""
    shape = equation.outputs[0].shape
    return {
        leaf: o.broadcast(shape, range(len(o.dims))) if o and len(o.dims) in (0, len(shape)) else None
        for leaf, o in found.items()
    }
