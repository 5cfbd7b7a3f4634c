"""A weight's part of its leaf as an array with one axis for each role: input, output, batch, stack.

The factors of an origin are runs of the leaf's axes. A view reshapes the part so that each factor is an axis of its
own; scales are spread over a leaf, and its matrices found, in this form.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from jaxinit._reading._layers import Analysis, Weight
from jaxinit._reading._origin import FOREIGN, Factor
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class View:
    """The part of a leaf, reshaped to one axis per factor, and the axes by role; the rest is the receptive field."""

    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    batch_axes: tuple[int, ...]
    stack_axes: tuple[int, ...]


def scale_factors(analysis: Analysis, weight: Weight, per_channel: bool = False) -> tuple[Factor, ...]:
    """The factors along which the scale of a weight varies: independent weights, and channels if asked for.

    A weight of several leaves has one scale for all of them, unless they are alike.

    Every value that reads the weight must be able to locate these factors; factors that one of them cannot locate are
    left out, and the weight has one scale along them.
    """
    shapes = {tuple(stop - start for start, stop in region) for region in weight.regions.values()}
    if len(shapes) > 1:
        return ()
    origins = [component.origin for use in weight.uses for component in use.components if component.weight is weight]
    origins += [read.origin for read in analysis.reads if read.leaf in weight.regions and read.degree is not None]
    wanted: list[Factor] | None = None
    for use in weight.uses:
        for component in use.components:
            if component.weight is not weight:
                continue
            # The channels of a depthwise convolution are one layer.
            if use.geometry.kind == "depthwise" and not per_channel:
                return ()
            if (
                component.origin is None
                or component.origin.region != weight.region
                or len(weight.stack) != len(component.origin.stack)
            ):
                return ()
            roles = use.geometry.batch_dims + (use.geometry.out_dims if per_channel else ())
            here = [f for d in roles if d in use.placed for f in component.origin.dims[d] if f.axis != FOREIGN]
            here += [
                f for d in use.placed for f in component.origin.dims[d] if f in component.ensemble and f not in here
            ]
            wanted = here if wanted is None else [f for f in wanted if f in here]
    assert wanted is not None
    present = [None if o is None else {f for dim in o.dims for f in dim} for o in origins]
    return tuple(f for f in wanted if all(found is not None and f in found for found in present))


def view(weight: Weight) -> View | None:
    """The roles of a weight's axes at its first use; None if the program does not show them."""
    component, roles = weight.first_component, weight.uses[0].geometry
    origin = component.origin
    if origin is None or origin.region != weight.region or roles.kind == "embed":
        return None
    dims = roles.in_dims, roles.out_dims, roles.batch_dims
    apart = weight.stack, origin.picked, component.ensemble
    return _view(weight.region, origin.dims, dims, roles.feature_group_count, apart)


@functools.lru_cache(maxsize=1024)
def _view(
    region: tuple[tuple[int, int], ...],
    dims: tuple[tuple[Factor, ...], ...],
    roles: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    group_count: int,
    apart: tuple[tuple[Factor, ...], tuple[Factor, ...], frozenset[Factor]],
) -> View | None:
    """The view of a weight with these factors; those of the stack, picked by data, and of an ensemble are `apart`."""
    (in_dims, out_dims, batch_dims), (stack, picked, ensemble) = roles, apart
    role = dict.fromkeys(picked, "batch") | dict.fromkeys(stack, "stack")
    for d, dim in enumerate(dims):
        name = "in" if d in in_dims else "out" if d in out_dims else "batch" if d in batch_dims else ""
        rest = list(dim)
        if name == "out" and group_count > 1:
            # Each group of a grouped convolution is a matrix of its own; the groups are the outer part of the axis.
            groups = grouped_factors(rest, group_count)
            if groups:
                role |= dict.fromkeys(groups, "batch")
                role |= dict.fromkeys(rest[len(groups) :], name)
                continue
            if len(rest) != 1 or rest[0].size % group_count:
                return None
            (whole,) = rest
            size = whole.size // group_count
            role[whole._replace(size=group_count, stride=whole.stride * size)] = "batch"
            rest = [whole._replace(size=size)] if size > 1 else []
        role |= {f: "batch" if f in ensemble else name for f in rest}
    axes = [f for axis, (start, stop) in enumerate(region) for f in axis_factors(axis, stop - start, list(role))]
    if any(f not in role for f in axes):
        return None
    by_role = {
        name: tuple(i for i, f in enumerate(axes) if role[f] == name) for name in ("in", "out", "batch", "stack")
    }
    return View(tuple(f.size for f in axes), by_role["in"], by_role["out"], by_role["batch"], by_role["stack"])


def grouped_factors(factors: Sequence[Factor], groups: int) -> list[Factor]:
    """The outer factors of the output of a grouped convolution that are its groups, if some are exactly these."""
    for i in range(len(factors)):
        if math.prod(f.size for f in factors[: i + 1]) == groups:
            return list(factors[: i + 1])
    return []


def axis_factors(axis: int, extent: int, known: list[Factor]) -> list[Factor]:
    """An axis split into the known factors along it, and the rest between them."""
    result = []
    for factor in sorted((f for f in known if f.axis == axis), key=lambda f: -f.stride):
        outer = extent // max(factor.stride * factor.size, 1)
        if outer > 1:
            result.append(Factor(axis, outer, factor.stride * factor.size))
        result.append(factor)
        extent = factor.stride
    return [*result, Factor(axis, extent, 1)] if extent > 1 else result


def spread_over_leaf(weight: Weight, factors: tuple[Factor, ...], scales: Array) -> Array:
    """The scales of a weight, stacked dimensions first, as an array that broadcasts against its part of the leaf."""
    known = [*weight.stack, *factors]
    scales = in_order_of_leaf(scales.reshape([f.size for f in known]), known)
    dims = [axis_factors(axis, stop - start, known) for axis, (start, stop) in enumerate(weight.region)]
    return spread(scales, known, dims)


def in_order_of_leaf(x: Array, factors: Sequence[Factor]) -> Array:
    """Converts an array whose first axes are factors from the program's order to the leaf's, or the reverse."""
    flipped = [i for i, f in enumerate(factors) if f.flipped]
    return jnp.flip(x, flipped) if flipped else x


def in_order_of_view(weight: Weight, x: Array) -> Array:
    """One number for each slice of a weight, in the program's order, along the stack axes of its view."""
    ordered = in_order_of_leaf(x.reshape([f.size for f in weight.stack]), weight.stack)
    return jnp.transpose(
        ordered, sorted(range(len(weight.stack)), key=lambda i: (weight.stack[i].axis, -weight.stack[i].stride))
    )


def slice_indices(weight: Weight) -> Iterator[tuple[int, ...]]:
    """The position in its leaf of each slice of a stacked weight, in the program's order."""
    return itertools.product(*(range(f.size)[:: -1 if f.flipped else 1] for f in weight.stack))


def per_slice(part: Array, weight: Weight) -> Array:
    """A weight's part of its leaf with the stacked dimensions first, and all others as one."""
    factors = [
        f for a, (start, stop) in enumerate(weight.region) for f in axis_factors(a, stop - start, list(weight.stack))
    ]
    order = [factors.index(f) for f in weight.stack]
    order += [i for i in range(len(factors)) if i not in order]
    sizes = [f.size for f in weight.stack]
    slices = jnp.transpose(part.reshape([f.size for f in factors]), order).reshape(*sizes, -1)
    return in_order_of_leaf(slices, weight.stack)


def part_of(leaf: Array, weight: Weight) -> Array:
    """The part of a leaf that a weight is."""
    return leaf[tuple(slice(start, stop) for start, stop in weight.region)]


def other_factors(weight: Weight) -> list[int]:
    """Other leaves that a weight is a product with; the program does not show which of them is the matrix."""
    degrees = weight.first_component.dependence.degrees
    return [leaf for leaf, degree in degrees.items() if degree == 1 and leaf not in weight.regions]


def with_part(leaf: Array, weight: Weight, part: Array) -> Array:
    """The leaf with another part in place of a weight."""
    if part.shape == leaf.shape:
        return part
    return leaf.at[tuple(slice(start, stop) for start, stop in weight.region)].set(part)


def weight_name(paths: Sequence[str], weight: Weight, shapes: Sequence[Sequence[int]]) -> str:
    """The path of a weight's leaf, or of all leaves that form it, and which parts of them they are, if not all."""
    return " + ".join(part_name(paths[leaf], weight.seen_in(leaf), shapes[leaf]) for leaf in weight.regions)


def part_name(path: str, weight: Weight, shape: Sequence[int]) -> str:
    """The path of a weight's leaf, and which part of the leaf it is, if not all."""
    if all(stop - start == n for (start, stop), n in zip(weight.region, shape, strict=True)):
        return path
    return f"{path}[{', '.join(f'{start}:{stop}' for start, stop in weight.region)}]"


def stacked_size(weight: Weight) -> int:
    """How many slices a surrounding scan runs over."""
    return math.prod(f.size for f in weight.stack)


def spread(scales: Array, factors: Sequence[Factor], dims: Sequence[Sequence[Factor]]) -> Array:
    """Scales along `factors` as an array that broadcasts against a value with these dimensions."""
    if not factors:
        return scales
    order = [f for dim in dims for f in dim if f in factors]
    scales = jnp.transpose(scales, [factors.index(f) for f in order])
    flat: list[tuple[int, int]] = []
    shape: list[int] = []
    for dim in dims:
        if not any(f in factors for f in dim):
            shape.append(1)
            continue
        flat.extend((f.size if f in factors else 1, f.size) for f in dim)
        shape.append(math.prod(f.size for f in dim))
    scales = jnp.broadcast_to(scales.reshape([n for n, _ in flat]), [n for _, n in flat])
    return scales.reshape(shape)
