"""Where a layer ends: at its operation, or where the last of its biases is added to the output."""

import math
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._geometry import Geometry
from jaxinit._reading._layers import Bias
from jaxinit._reading._origin import FOREIGN, Origin
from jaxinit._reading._partials import multiplies
from jaxinit._reading._rules import Move, rearrangement


class End(NamedTuple):
    """The end of a layer.

    Attributes:
      equation: the operation itself, or the last addition of a bias to its output.
      biases: the biases in order.
      bias_dims: the dimensions of the end's output along which the sum of the biases varies.
      dimensions: dimension of the operation's output → dimension of the end's, for those that are kept whole.
      sign: with which the operation's output enters the end's.
    """

    equation: ir.Equation
    biases: tuple[Bias, ...]
    bias_dims: frozenset[int]
    dimensions: Mapping[int, int]
    sign: int = 1


def finish_of(
    equation: ir.Equation,
    consumers: dict[ir.Atom, list[ir.Equation | None]],
    shape: Geometry,
    of: Callable[[ir.Atom], Dependence],
    segmented: int | None,
    noise: Container[ir.Atom] = frozenset(),
) -> End:
    """The end of a layer, whose weight may be concatenated along the dimension `segmented`.

    Its output is followed as long as each step is a sum or difference with a value that depends on no data, a change of
    sign, or a rearrangement; the last sum is the end.
    """
    end = End(equation, (), frozenset(), {d: d for d in range(len(equation.outputs[0].shape))})
    if shape.kind == "embed":
        return end
    value = equation.outputs[0]
    origin = Origin.of_leaf(0, value.shape)
    biases: tuple[Bias, ...] = ()
    varying: frozenset[int] = frozenset()
    sign = 1
    while True:
        readers = consumers.get(value, [])
        if len(readers) != 1 or readers[0] is None:
            return end
        following = readers[0]
        if following.primitive in ir.ADDITIONS:
            added = _added(following, value, of)
            # Adding the output to each row of a table makes it larger than it was.
            if added is None or following.outputs[0].shape != value.shape:
                return end
            if _is_centred(following, value, consumers, of):
                return end
            bias, dims = added
            if following.primitive is ir.sub_p and following.inputs[0] is not value:
                sign, biases = -sign, _negated(biases)
            is_noise = bias.value in noise
            biases = (*biases, bias._replace(is_noise=is_noise))
            varying = varying if is_noise else varying | dims
            dimensions = _dimensions(origin, equation.outputs[0].shape)
            if segmented is not None and shape.placed[segmented] not in dimensions:
                return end
            # A constant at the end may belong to the activation, as in hard sigmoids, and does not change the variance;
            # noise at the end does belong to it, with its moments.
            if bias.is_parameter or (dims and not is_noise):
                end = End(following, biases, varying, dimensions, sign)
        elif following.primitive is ir.neg_p:
            sign, biases = -sign, _negated(biases)
        else:
            move = rearrangement(following)
            if move is None or following.inputs[0] is not value or not ir.is_floating(following.outputs[0]):
                return end
            moved, dims_moved = move(origin), _moved(varying, value.shape, move)
            if moved is None or dims_moved is None:
                return end
            origin, varying = moved, dims_moved
            biases = tuple(b._replace(moves=(*b.moves, following)) for b in biases)
        value = following.outputs[0]


def _is_centred(
    equation: ir.Equation,
    value: ir.Atom,
    consumers: dict[ir.Atom, list[ir.Equation | None]],
    of: Callable[[ir.Atom], Dependence],
) -> bool:
    """Whether a difference subtracts a known mean from a value, because its result is divided by known deviations.

    A batch normalization with running statistics does so. Its mean belongs to the normalization, not to the layer.
    """
    if equation.primitive is not ir.sub_p or equation.inputs[0] is not value:
        return False
    (atom,) = equation.outputs
    while True:
        readers = consumers.get(atom, [])
        reader = readers[0] if len(readers) == 1 else None
        if reader is None:
            return False
        if rearrangement(reader) is None or reader.inputs[0] is not atom:
            others = [x for x in reader.inputs if x is not atom]
            scales = multiplies(reader) or (reader.primitive is ir.div_p and reader.inputs[0] is atom)
            if not scales or math.prod(reader.outputs[0].shape) != math.prod(atom.shape):
                return False
            known = [x for x in others if math.prod(x.shape) > 1 and not of(x).data]
            return bool(known) and not any(_is_contracted(reader, x, consumers) for x in known)
        (atom,) = reader.outputs


def _is_contracted(product: ir.Equation, factor: ir.Atom, consumers: dict[ir.Atom, list[ir.Equation | None]]) -> bool:
    """Whether a sum runs along dimensions in which a factor of an elementwise product has several elements."""
    return any(
        reader is not None
        and reader.primitive is ir.reduce_sum_p
        and len(factor.shape) == len(product.outputs[0].shape)
        and any(factor.shape[axis] > 1 for axis in reader.params["axes"])
        for reader in consumers.get(product.outputs[0], [])
    )


def _negated(biases: tuple[Bias, ...]) -> tuple[Bias, ...]:
    return tuple(bias._replace(sign=-bias.sign) for bias in biases)


def _added(
    equation: ir.Equation, value: ir.Atom, of: Callable[[ir.Atom], Dependence]
) -> tuple[Bias, frozenset[int]] | None:
    """What a sum or difference adds to a value, if it depends on no data, and the dimensions along which it varies."""
    added = next((atom for atom in equation.inputs if atom is not value), None)
    if added is None or of(added).data:
        return None
    sign = -1 if equation.primitive is ir.sub_p and equation.inputs[1] is added else 1
    is_parameter = any(part.degrees for part in of(added).parts)
    return Bias(added, equation, is_parameter, sign), varying_dims(of(added), added.shape)


def _moved(varying: frozenset[int], shape: tuple[int, ...], move: Move) -> frozenset[int] | None:
    """The dimensions along which a value varies after it is rearranged."""
    after = move(Origin.of_leaf(0, shape))
    if after is None:
        return None
    return frozenset(d for d, dim in enumerate(after.dims) if any(f.axis in varying for f in dim))


def _dimensions(origin: Origin, sizes: tuple[int, ...]) -> dict[int, int]:
    """Dimension of the operation's output → dimension of a value computed from it, for those that are kept whole."""
    alone = ((d, dim[0]) for d, dim in enumerate(origin.dims) if len(dim) == 1)
    return {f.axis: d for d, f in alone if f.size == sizes[f.axis] and not f.flipped}


def varying_dims(value: Dependence, shape: tuple[int, ...]) -> frozenset[int]:
    """The dimensions along which a value that depends on no data may vary."""
    dims: set[int] = set() if value.segments is None else {value.segments.dimension}
    for part in value.parts:
        if part.degrees and part.degrees.keys() == part.origins.keys() and all(o.exact for o in part.origins.values()):
            for origin in part.origins.values():
                dims |= {d for d, dim in enumerate(origin.dims) if any(f.axis != FOREIGN for f in dim)}
        else:
            dims |= {d for d, n in enumerate(shape) if n > 1 and d not in value.pattern.repeats}
    return frozenset(dims)
