"""Weights that data picks: a mixture of experts uses for each sample the matrix that a router names.

The lookup w[i] alone would be an embedding. If its result goes into a product with other data, which contracts some of
it and leaves some of it free, it is half of a layer: y_t = x_t w[i_t], linear in w, with independent weights
along the dimensions that are picked from. A product with one-hot numbers is a lookup as well.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading import _rules as rules
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._geometry import Geometry, weight_operand
from jaxinit._reading._layers import Entry
from jaxinit._reading._origin import FOREIGN, Origin


class Picked(NamedTuple):
    """A lookup whose result is the weight of a product.

    Attributes:
      lookup: where data picks from the leaf.
      product: the equation that uses the result.
      weight: which input of the product is the weight.
      leaf: the leaf that carries its scale.
      value: how that input would depend on the leaves without the data that picks.
      geometry: of the product.
    """

    lookup: Entry
    product: ir.Equation
    weight: int
    leaf: int
    value: Dependence
    geometry: Geometry


def picked_weight(
    lookup: ir.Equation,
    arguments: Sequence[Dependence],
    consumers: Mapping[ir.Atom, Sequence[ir.Equation | None]],
    of: Callable[[ir.Atom], Dependence],
    weight_leaf: Callable[[Dependence], int | None],
) -> Picked | None:
    """The result of a lookup, followed to the product that uses it; None if it is only a lookup."""
    operand = weight_operand(lookup, arguments)
    if operand is None or operand[1].kind != "embed":
        return None
    index, rows = operand
    leaf = weight_leaf(arguments[index])
    if leaf is None or leaf not in arguments[index].origins or len(rows.out_dims) < 2:
        return None
    (atom,) = lookup.outputs
    value = arguments[index].map(lambda origin: origin.picked_along(rows.in_dims, rows.placed, atom.shape))
    while True:
        readers = consumers.get(atom, [])
        if len(readers) != 1 or readers[0] is None or len(readers[0].outputs) != 1:
            return None
        following = readers[0]
        inputs = [value if a is atom else of(a) for a in following.inputs]
        if following.primitive is ir.dot_general_p:
            break
        if any(x.data or (x.degrees and x is not value) for x in inputs):
            return None
        (value,) = rules.apply(following, inputs)
        (atom,) = following.outputs
        if value.degrees.get(leaf) != 1 or leaf not in value.origins:
            return None
    found = weight_operand(following, inputs)
    geometry = None if found is None else _without_samples(found[1], value.origins[leaf], atom.shape)
    if found is None or geometry is None:
        return None
    return Picked(Entry(lookup, index), following, found[0], leaf, value, geometry)


def _without_samples(whole: Geometry, origin: Origin, shape: Sequence[int]) -> Geometry | None:
    """The roles of the dimensions that the weight itself has; None if no input or no output is among them."""

    def own(dims: Sequence[int]) -> tuple[int, ...]:
        return tuple(d for d in dims if not origin.dims[d] or any(f.axis != FOREIGN for f in origin.dims[d]))

    out_dims, batch_dims = own(whole.out_dims), own(whole.batch_dims)
    if not own(whole.in_dims) or not out_dims:
        return None
    return dataclasses.replace(
        whole,
        kind="einsum",
        out_dims=out_dims,
        batch_dims=batch_dims,
        placed={d: whole.placed[d] for d in out_dims + batch_dims},
        fan_out=math.prod(shape[d] for d in out_dims),
    )
