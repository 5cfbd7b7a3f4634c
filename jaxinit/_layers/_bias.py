"""Where a layer ends: at its operation, or where a bias is added to the output."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._dependence import Dependence
from jaxinit._layers._geometry import Geometry
from jaxinit._layers._origin import FOREIGN, Origin
from jaxinit._layers._rules import rearrangement


class End(NamedTuple):
    """The end of a layer.

    Attributes:
      equation: the operation itself, or the addition of a bias to its output.
      bias: the bias, if one is added.
      bias_dims: the dimensions of the end's output along which the bias varies.
      places: dimension of the operation's output → dimension of the end's, for those that are kept whole.
    """

    equation: ir.Equation
    bias: ir.Atom | None
    bias_dims: frozenset[int]
    places: Mapping[int, int]


def finish_of(
    equation: ir.Equation,
    consumers: dict[ir.Atom, list[ir.Equation | None]],
    shape: Geometry,
    of: Callable[[ir.Atom], Dependence],
    segmented: int | None,
) -> End:
    """The end of a layer, whose weight is concatenated along the dimension `segmented`, if at all."""
    plain = End(equation, None, frozenset(), {d: d for d in range(len(equation.outputs[0].shape))})
    if shape.kind == "embed":
        return plain
    value, following = equation.outputs[0], equation
    origin: Origin | None = Origin.of_leaf(0, value.shape)
    while origin is not None:
        readers = consumers.get(value, [])
        if len(readers) != 1 or readers[0] is None:
            return plain
        following = readers[0]
        if following.primitive is ir.add_p or (following.primitive is ir.sub_p and following.inputs[0] is value):
            break
        move = rearrangement(following)
        if move is None or following.inputs[0] is not value:
            return plain
        origin, value = move(origin), following.outputs[0]
    if origin is None:
        return plain
    bias = next((atom for atom in following.inputs if atom is not value), None)
    varying = None if bias is None else _varying(of(bias))
    sizes = equation.outputs[0].shape
    places = {
        dim[0].axis: d for d, dim in enumerate(origin.dims) if len(dim) == 1 and dim[0].size == sizes[dim[0].axis]
    }
    if varying is None or (segmented is not None and shape.placed[segmented] not in places):
        return plain
    return End(following, bias, varying, places)


def _varying(value: Dependence) -> frozenset[int] | None:
    """The dimensions along which a parameter varies; None if that is unknown, or it is no parameter."""
    if value.data or not any(part.degrees for part in value.parts):
        return None
    dims: set[int] = set() if value.segments is None else {value.segments.dimension}
    for part in value.parts:
        if part.degrees and not part.origins:
            return None
        for origin in part.origins.values():
            dims |= {d for d, dim in enumerate(origin.dims) if any(f.axis != FOREIGN for f in dim)}
    return frozenset(dims)
