"""Where a layer ends: at its operation, or where a bias is added to the output."""

from collections.abc import Callable, Iterable

from jaxinit._layers import _dependence as dependence
from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._dependence import Dependence
from jaxinit._layers._geometry import Geometry
from jaxinit._layers._origin import FOREIGN, Origin


def finish_of(
    equation: ir.Equation,
    consumers: dict[ir.Atom, list[ir.Equation | None]],
    shape: Geometry,
    of: Callable[[ir.Atom], Dependence],
) -> tuple[ir.Equation, ir.Atom | None, dict[int, int]]:
    """The equation that ends a layer: the addition of its bias, if one follows, or the operation itself.

    Also where each dimension of the operation's output lies in that of the end.
    """
    plain = (equation, None, {d: d for d in range(len(equation.outputs[0].shape))})
    if shape.kind == "embed":
        return plain
    value, next_equation = equation.outputs[0], equation
    origin: Origin | None = Origin.of_leaf(0, value.shape)
    while origin is not None:
        following = consumers.get(value, [])
        if len(following) != 1 or following[0] is None:
            return plain
        next_equation = following[0]
        if next_equation.primitive is ir.add_p:
            break
        rearrangement = dependence.rearrangement(next_equation)
        if rearrangement is None or next_equation.inputs[0] is not value:
            return plain
        origin, value = rearrangement(origin), next_equation.outputs[0]
    if origin is None:
        return plain
    bias = next((atom for atom in next_equation.inputs if atom is not value), None)
    # A bias lies along the features of the output and is the same everywhere else.
    places = _places(origin)
    allowed = {places[p] for p in shape.placed.values() if p in places}
    if bias is None or not places or not _is_bias(of(bias), allowed):
        return plain
    return next_equation, bias, places


def _places(origin: Origin) -> dict[int, int]:
    """Dimension of the source → dimension of the rearranged value that holds all of it and nothing else."""
    return {dim[0].axis: d for d, dim in enumerate(origin.dims) if len(dim) == 1 and dim[0].stride == 1}


def _is_bias(value: Dependence, dims: Iterable[int]) -> bool:
    if value.data or not any(part.degrees for part in value.parts):
        return False
    allowed = set(dims)
    for part in value.parts:
        if not part.origins and part.degrees:
            return False
        for origin in part.origins.values():
            varying = {d for d, dim in enumerate(origin.dims) if any(f.axis != FOREIGN for f in dim)}
            if not varying <= allowed:
                return False
    return True
