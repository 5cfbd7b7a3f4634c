"""How each primitive carries on what its inputs depend on.

Degrees of homogeneity, and the origin of the elements, go through every primitive; what no rule covers is taken to be
inhomogeneous, never guessed.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxinit import _program as ir
from jaxinit._reading import _one_hot
from jaxinit._reading._dependence import (
    DATA,
    INDEPENDENT,
    ZERO,
    Dependence,
    Segments,
    added,
    inhomogeneous,
    multiplied,
)
from jaxinit._reading._origin import Origin


def apply(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    """What the outputs of an equation without programs inside depend on."""
    if equation.primitive is ir.select_p and inputs[0].data and _are_one(inputs[1:]):
        return [inputs[1]]
    if any(x.data for x in inputs):
        return [_with_pattern(DATA, equation, inputs)] * len(equation.outputs)
    if not any(x.degrees for x in inputs):
        stays = equation.primitive is ir.broadcast_p or equation.primitive in ir.IDENTITIES
        value = ZERO if stays and inputs[0].zero else INDEPENDENT
        return [_with_pattern(value, equation, inputs)] * len(equation.outputs)
    if equation.primitive is ir.convert_p and _rounds(equation):
        # Whether a number is zero, its scale does not change.
        return [_scale_free(inputs) if equation.outputs[0].dtype == bool else inhomogeneous(inputs)]
    if equation.primitive is ir.split_p:
        return _split(equation, inputs[0])
    if equation.primitive is ir.unstack_p:
        return [_slice_of(equation, inputs[0], i) for i in range(len(equation.outputs))]
    if equation.primitive is ir.stack_p:
        alike = all(x.degrees == inputs[0].degrees for x in inputs) and not any(x.segments for x in inputs)
        return [inputs[0].without_origins() if alike else inhomogeneous(inputs)]
    if equation.primitive is ir.concatenate_p:
        return [_concatenated(equation, inputs)]
    if equation.primitive is ir.broadcast_p:
        return [_with_pattern(x, equation, inputs) for x in _one_value(equation, inputs)]
    return _one_value(equation, inputs)


def _with_pattern(value: Dependence, equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    pattern = _one_hot.apply(equation, [x.pattern for x in inputs])
    return value if pattern == value.pattern else dataclasses.replace(value, pattern=pattern)


def _one_value(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    """What the only output of an equation depends on, which reads parameters and no data."""
    segmented = next((x for x in inputs if x.segments), None)
    if segmented is not None:
        return [_segmented(equation, inputs, segmented)] * len(equation.outputs)
    return [_unsegmented(equation, inputs)] * len(equation.outputs)


def _unsegmented(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    primitive, params = equation.primitive, equation.params
    first = inputs[0]
    move = rearrangement(equation)
    if move is not None:
        return first.map(move)
    if primitive in (ir.add_p, ir.sub_p, ir.add_any_p):
        return added([x for x in inputs if not x.zero])
    if primitive is ir.neg_p:
        return first.map(Origin.multiplied)
    if primitive in (ir.max_p, ir.min_p):
        return added([x for x in inputs if not x.zero]).without_origins()
    if primitive is ir.select_p and _is_free(first):
        return added([x for x in inputs[1:] if not x.zero])
    if primitive in (ir.mul_p, ir.dot_general_p, ir.conv_p):
        return _product(inputs, equation.outputs[0].shape if primitive is ir.mul_p else None)
    if primitive is ir.div_p:
        return _product([first, inputs[1].power(-1.0)], equation.outputs[0].shape)
    if primitive is ir.integer_pow_p:
        return first.power(float(params["y"]))
    if primitive is ir.square_p:
        return first.power(2.0)
    if primitive is ir.sqrt_p:
        return first.power(0.5)
    if primitive is ir.rsqrt_p:
        return first.power(-0.5)
    if primitive is ir.pad_p and inputs[1].zero:
        return first.without_origins()
    if primitive is ir.gather_p and ir.fills(equation):
        return inhomogeneous(inputs)
    if primitive in ir.LINEAR and all(_is_free(x) for x in inputs[1:]):
        return first.without_origins()
    if primitive in ir.POSITIVELY_HOMOGENEOUS and len(inputs) == 1:
        return first.without_origins()
    if primitive in ir.SCALE_FREE:
        return _scale_free(inputs)
    return inhomogeneous(inputs)


def rearrangement(equation: ir.Equation) -> Callable[[Origin], Origin | None] | None:
    """What an equation that only moves, copies or drops elements does to their origin."""
    primitive, params = equation.primitive, equation.params
    shape = equation.inputs[0].shape
    if primitive in ir.IDENTITIES:
        return lambda origin: origin
    if primitive is ir.rev_p:
        return lambda origin: origin.reversed(params["dimensions"])
    if primitive is ir.transpose_p:
        return lambda origin: origin.transposed(params["permutation"])
    if primitive is ir.squeeze_p:
        return lambda origin: origin.squeezed(tuple(d % len(shape) for d in params["dimensions"]))
    if primitive is ir.reshape_p:
        return lambda origin: origin.reshaped(params["new_sizes"]) if params["dimensions"] is None else None
    if primitive is ir.broadcast_p:
        return lambda origin: origin.broadcast(params["shape"], params["broadcast_dimensions"])
    if primitive is ir.slice_p:
        if params["strides"] is not None and any(s != 1 for s in params["strides"]):
            return lambda origin: None
        return lambda origin: origin.sliced(params["start_indices"], params["limit_indices"], shape)
    if primitive is ir.dynamic_slice_p and (starts := _known_starts(equation)) is not None:
        sizes = params["slice_sizes"]
        # dynamic_slice clamps a start that would reach beyond the end.
        starts = [min(max(s, 0), n - size) for s, n, size in zip(starts, shape, sizes, strict=True)]
        limits = [s + size for s, size in zip(starts, sizes, strict=True)]
        return lambda origin: origin.sliced(starts, limits, shape)
    return None


def _known_starts(equation: ir.Equation) -> list[int] | None:
    starts = equation.inputs[1:]
    if not all(isinstance(start, ir.Constant) for start in starts):
        return None
    try:
        return [int(start.value) for start in starts if isinstance(start, ir.Constant)]
    except TypeError:  # a tracer of an outer transformation
        return None


def _split(equation: ir.Equation, operand: Dependence) -> list[Dependence]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    if operand.segments is not None:
        if operand.segments.dimension == axis and operand.segments.sizes == tuple(sizes):
            return list(operand.segments.parts)
        return [inhomogeneous([operand])] * len(sizes)
    shape = equation.inputs[0].shape
    results, start = [], 0
    for size in sizes:
        starts = [start if d == axis else 0 for d in range(len(shape))]
        limits = [start + size if d == axis else n for d, n in enumerate(shape)]
        results.append(operand.map(lambda o, s=starts, e=limits: o.sliced(s, e, shape)))  # type: ignore[misc]
        start += size
    return results


def _slice_of(equation: ir.Equation, operand: Dependence, index: int) -> Dependence:
    """One output of `lax.unstack`."""
    if operand.segments is not None:
        return inhomogeneous([operand])
    return operand.map(lambda origin: unstacked_at(equation, origin, index))


def unstacked_at(equation: ir.Equation, origin: Origin, index: int) -> Origin | None:
    """The origin of one output of `lax.unstack`."""
    shape, axis = equation.inputs[0].shape, equation.params["axis"]
    starts = [index if d == axis else 0 for d in range(len(shape))]
    limits = [index + 1 if d == axis else n for d, n in enumerate(shape)]
    found = origin.sliced(starts, limits, shape)
    return None if found is None else found.squeezed((axis,))


def _concatenated(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    if all(x.degrees == inputs[0].degrees for x in inputs) and not any(x.segments for x in inputs):
        return inputs[0].without_origins()
    axis = equation.params["dimension"]
    sizes: list[int] = []
    parts: list[Dependence] = []
    for x, atom in zip(inputs, equation.inputs, strict=True):
        if x.segments is None:
            sizes.append(atom.shape[axis])
            parts.append(x)
        elif x.segments.dimension == axis:
            sizes.extend(x.segments.sizes)
            parts.extend(x.segments.parts)
        else:
            return inhomogeneous(inputs)
    return _with_segments(Segments(axis, tuple(sizes), tuple(parts)))


def _with_segments(segments: Segments) -> Dependence:
    return dataclasses.replace(inhomogeneous(segments.parts), segments=segments)


def _segmented(equation: ir.Equation, inputs: Sequence[Dependence], operand: Dependence) -> Dependence:
    """Rules for a concatenation: moved as a whole, or multiplied by something without leaves."""
    segments, primitive, params = operand.segments, equation.primitive, equation.params
    assert segments is not None
    axis = segments.dimension
    others_free = all(_is_free(x) for x in inputs if x is not operand)
    if len(inputs) == 1 and (primitive in ir.IDENTITIES or primitive is ir.neg_p):
        return operand
    if primitive is ir.mul_p and others_free:
        parts = tuple(part.map(Origin.multiplied) for part in segments.parts)
        return _with_segments(dataclasses.replace(segments, parts=parts))
    moved: int | None = None
    if primitive is ir.transpose_p:
        moved = params["permutation"].index(axis)
    elif primitive is ir.broadcast_p:
        moved = params["broadcast_dimensions"][axis]
    elif primitive is ir.squeeze_p:
        moved = axis - sum(d < axis for d in params["dimensions"])
    elif primitive is ir.reshape_p and params["dimensions"] is None:
        return _segmented_reshape(equation, inputs, segments)
    move = rearrangement(equation)
    if moved is None or move is None:
        return inhomogeneous(inputs)
    parts = tuple(part.map(move) for part in segments.parts)
    return _with_segments(Segments(moved, segments.sizes, parts))


def _segmented_reshape(equation: ir.Equation, inputs: Sequence[Dependence], segments: Segments) -> Dependence:
    """A reshape that only adds or drops dimensions of size 1."""
    shape, sizes, axis = equation.inputs[0].shape, list(equation.params["new_sizes"]), segments.dimension
    if [n for n in shape if n > 1] != [n for n in sizes if n > 1] or shape[axis] == 1:
        return inhomogeneous(inputs)
    moved = [d for d, n in enumerate(sizes) if n > 1][sum(n > 1 for n in shape[:axis])]

    def part(value: Dependence, size: int) -> Dependence:
        return value.map(lambda origin: origin.reshaped([*sizes[:moved], size, *sizes[moved + 1 :]]))

    parts = tuple(map(part, segments.parts, segments.sizes))
    return _with_segments(Segments(moved, segments.sizes, parts))


def _product(inputs: Sequence[Dependence], shape: tuple[int, ...] | None) -> Dependence:
    """A product adds degrees; one element by element, of this shape, keeps where the elements come from."""
    degrees: dict[int, float | None] = {}
    for x in inputs:
        for leaf, degree in x.degrees.items():
            before = degrees.get(leaf, 0.0)
            degrees[leaf] = None if degree is None or before is None else before + degree
    origins: dict[int, Origin] = {}
    if shape is not None:
        for x in inputs:
            # A factor may be a number, or have size 1 along a dimension of the product.
            spread = {leaf: o.broadcast(shape, range(len(o.dims))) for leaf, o in multiplied(x.origins).items()}
            origins |= {leaf: o for leaf, o in spread.items() if leaf not in origins}
        shared = {leaf for leaf in degrees if sum(leaf in x.degrees for x in inputs) > 1}
        origins = {leaf: o for leaf, o in origins.items() if leaf not in shared}
    return Dependence(degrees=degrees, origins=origins)


def _scale_free(inputs: Sequence[Dependence]) -> Dependence:
    terms = [x for x in inputs if not x.zero]
    degrees = {leaf: 0.0 if degree is not None else None for leaf, degree in added(terms).degrees.items()}
    return Dependence(degrees=degrees)


def _are_one(cases: Sequence[Dependence]) -> bool:
    """Whether values are the same elements of one leaf: `vmap` chooses so between the operands of a branch."""
    first = cases[0]
    exact = len(first.degrees) == 1 and all(o.exact for o in first.origins.values())
    return (
        exact
        and len(first.origins) == 1
        and all((x.degrees, x.origins) == (first.degrees, first.origins) for x in cases)
    )


def _rounds(equation: ir.Equation) -> bool:
    """Whether a cast drops what is no integer."""
    return ir.is_floating(equation.inputs[0]) and not ir.is_floating(equation.outputs[0])


def _is_free(x: Dependence) -> bool:
    """Whether scaling any leaf leaves the value alone."""
    return not x.data and all(degree == 0 for degree in x.degrees.values())
