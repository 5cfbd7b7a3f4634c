"""Where a layer ends: at its operation, or where the last of its biases is added to the output."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._geometry import Geometry
from jaxinit._reading._origin import FOREIGN, Origin
from jaxinit._reading._rules import rearrangement
from jaxinit._reading._units import Bias


class End(NamedTuple):
    """The end of a layer.

    Attributes:
      equation: the operation itself, or the last addition of a bias to its output.
      biases: what is added, in order.
      bias_dims: the dimensions of the end's output along which the sum of the biases varies.
      places: dimension of the operation's output → dimension of the end's, for those that are kept whole.
    """

    equation: ir.Equation
    biases: tuple[Bias, ...]
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
    end = End(equation, (), frozenset(), {d: d for d in range(len(equation.outputs[0].shape))})
    if shape.kind == "embed":
        return end
    value = equation.outputs[0]
    origin: Origin | None = Origin.of_leaf(0, value.shape)
    while origin is not None:
        readers = consumers.get(value, [])
        if len(readers) != 1 or readers[0] is None:
            return end
        following = readers[0]
        if following.primitive is ir.add_p or (following.primitive is ir.sub_p and following.inputs[0] is value):
            bias = next((atom for atom in following.inputs if atom is not value), None)
            varying = None if bias is None else _varying(of(bias), bias.shape)
            places = _places(origin, equation.outputs[0].shape)
            if bias is None or varying is None or (segmented is not None and shape.placed[segmented] not in places):
                return end
            if following.outputs[0].shape != value.shape:  # a table, to each row of which the output is added
                return end
            end = End(following, (*end.biases, Bias(bias, following)), end.bias_dims | varying, places)
        elif end.biases:  # of a sum that is moved, the dimensions are others
            return end
        else:
            move = rearrangement(following)
            if move is None or following.inputs[0] is not value:
                return end
            origin = move(origin)
        value = following.outputs[0]
    return end


def _places(origin: Origin, sizes: tuple[int, ...]) -> dict[int, int]:
    """Dimension of the operation's output → dimension of a value made of it, for those that are kept whole."""
    alone = ((d, dim[0]) for d, dim in enumerate(origin.dims) if len(dim) == 1)
    return {f.axis: d for d, f in alone if f.size == sizes[f.axis] and not f.flipped}


def _varying(value: Dependence, shape: tuple[int, ...]) -> frozenset[int] | None:
    """The dimensions along which a parameter, or a function of parameters, may vary; None if it is neither."""
    if value.data or not any(part.degrees for part in value.parts):
        return None
    dims: set[int] = set() if value.segments is None else {value.segments.dimension}
    for part in value.parts:
        if part.degrees.keys() == part.origins.keys() and all(o.exact for o in part.origins.values()):
            for origin in part.origins.values():
                dims |= {d for d, dim in enumerate(origin.dims) if any(f.axis != FOREIGN for f in dim)}
        else:
            dims |= {d for d, n in enumerate(shape) if n > 1 and d not in value.pattern.repeats}
    return frozenset(dims)
