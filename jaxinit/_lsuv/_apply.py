"""From scales to parameters: weights made orthonormal, multiplied by their scales, biases moved."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._dtypes import drawing_dtype
from jaxinit._lsuv._limits import is_narrow
from jaxinit._lsuv._passes import Problem, States
from jaxinit._orthonormalize import orthonormal_or_zero
from jaxinit._reading._origin import FOREIGN, Factor, Origin
from jaxinit._reading._trace import Traced
from jaxinit._reading._units import Unit
from jaxinit._reading._views import (
    in_order_of_leaf,
    other_factors,
    part_of,
    scale_factors,
    spread,
    spread_over_leaf,
    view,
    with_part,
)
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array


def centred_channels(
    traced: Traced, selected: frozenset[Unit]
) -> tuple[dict[Unit, tuple[Factor, ...]], dict[Unit, str]]:
    """Along which factors each unit is centred; and why the others of those selected are not.

    Only a unit that is used once can be, with a bias that is a leaf of its own and has an entry for each channel.
    """
    channels, refused = {}, {}
    for unit in selected:
        factors = scale_factors(traced.analysis, unit, per_channel=True)
        if unit.uses > 1:
            # What centres one use does not centre the others.
            refused[unit] = "not centred: it is used more than once"
        elif (bias := _bias_leaf(traced, unit)) is None:
            refused[unit] = "not centred: it has no real bias of its own"
        elif not _has_entry_for_each_channel(unit, factors, bias[1]):
            refused[unit] = "not centred: its bias does not have one entry for each unit"
        else:
            channels[unit] = factors
    return channels, refused


def _bias_leaf(traced: Traced, unit: Unit) -> tuple[int, Origin] | None:
    """The leaf that is a unit's bias and nothing else, and its origin."""
    if len(unit.sites) != 1:
        return None
    (site,) = unit.sites
    part = unit.first_part
    if site.bias is None or len(site.parts) != 1 or part.origin is None or part.size is not None:
        return None
    dependence = traced.analysis.of(site.bias)
    if jnp.issubdtype(site.finish.outputs[0].dtype, jnp.complexfloating):  # means are kept as real numbers
        return None
    if len(dependence.origins) != 1 or list(dependence.degrees.values()) != [1]:
        return None
    ((leaf, origin),) = dependence.origins.items()
    feature_dims = set(site.placed.values())
    if site.biases[0].equation.primitive is not ir.add_p or not site.bias_dims <= feature_dims:
        return None
    reads = [read for read in traced.analysis.reads if read.leaf == leaf]
    whole = all(
        stop - start == n for (start, stop), n in zip(origin.region, np.shape(traced.leaves[leaf]), strict=True)
    )
    if not origin.exact or not whole or len(reads) != 1 or _is_in_a_weight(traced, leaf):
        return None
    return leaf, origin


def _is_in_a_weight(traced: Traced, leaf: int) -> bool:
    """Whether the weight of any layer is made of this leaf, or a program that is not read takes it."""
    weights = (part.dependence for site in traced.analysis.sites.values() for part in site.parts)
    return any(leaf in weight.degrees for weight in weights) or any(leaf == at for at, _ in traced.analysis.opaque)


def _has_entry_for_each_channel(unit: Unit, factors: tuple[Factor, ...], bias: Origin) -> bool:
    """Whether the bias has its own entry wherever the output has a channel of its own."""
    if [f.size for f in unit.stack] != [f.size for f in bias.stack]:
        return False
    dims = _output_dims(unit)
    for dim, own in zip(dims, bias.dims or [()] * len(dims), strict=True):
        if not any(f in factors for f in dim) and all(f.axis == FOREIGN for f in own):
            continue
        if any(f not in factors for f in dim) or any(f.axis == FOREIGN for f in own):
            return False
        if math.prod(f.size for f in dim) != math.prod(f.size for f in own):
            return False
    return True


def _output_dims(unit: Unit) -> list[tuple[Factor, ...]]:
    """The factors of the weight along each dimension of the output of its only layer."""
    (site,) = unit.sites
    origin = site.parts[0].origin
    assert origin is not None
    dims: list[tuple[Factor, ...]] = [()] * len(site.finish.outputs[0].shape)
    for source, target in site.placed.items():
        dims[target] = origin.dims[source]
    return dims


def with_orthonormal(leaves: Sequence[Any], units: Iterable[Unit]) -> list[Any]:
    """The leaves, each of these units replaced by the orthonormal factor of itself in its layout of use.

    Matrices of zeros have none, and stay: a readout or a branch may be meant to start at zero.

    Units of equal shape and layout go through one loop: a program for each of a hundred layers would take a hundred
    times as long to compile.
    """
    found: list[Any] = with_automatic_axes(functools.partial(_with_orthonormal, units), list(leaves), like=list(leaves))
    return found


def _with_orthonormal(units: Iterable[Unit], leaves: Sequence[Any]) -> list[Any]:
    new = list(leaves)
    alike: dict[Any, list[Unit]] = {}
    for unit in units:
        axes = view(unit)
        alone = not other_factors(unit) and not unit.members
        if axes is not None and axes.in_axes and axes.out_axes and alone:
            alike.setdefault((axes, jnp.result_type(new[unit.leaf])), []).append(unit)
    for (axes, _), group in alike.items():
        parts = [part_of(new[unit.leaf], unit) for unit in group]
        batch_axes = axes.batch_axes + axes.stack_axes
        make = functools.partial(
            orthonormal_or_zero, in_axis=axes.in_axes, out_axis=axes.out_axes, batch_axis=batch_axes
        )
        views = [part.reshape(axes.shape) for part in parts]
        matrices = [make(views[0])] if len(group) == 1 else _entries(jax.lax.map(make, jnp.stack(views)))
        for unit, part, matrix in zip(group, parts, matrices, strict=True):
            new[unit.leaf] = with_part(new[unit.leaf], unit, matrix.reshape(part.shape))
    return new


def _entries(stack: Array) -> list[Array]:
    """stack[0], stack[1], ...

    Each index goes through memory: with it written into the program, no two of these slices would be alike, and XLA's
    CPU compiler, which makes code for equal operations once, would take eight milliseconds for each.
    """
    places = [jax.lax.optimization_barrier(np.array([i, 0], np.int32)) for i in range(len(stack))]
    return [jax.lax.dynamic_index_in_dim(stack, place[0], keepdims=False) for place in places]


def with_scales(leaves: Sequence[Any], problem: Problem, states: States) -> list[Any]:
    """The leaves multiplied by the scales found, and the biases moved."""
    change = functools.partial(_with_scales, problem)
    found = {unit: (states[unit].scale, states[unit].shift) for unit in problem.selected}
    new: list[Any] = with_automatic_axes(change, list(leaves), found, like=list(leaves))
    return new


def _with_scales(
    problem: Problem, leaves: Sequence[Any], found: Mapping[Unit, tuple[Array, Array | None]]
) -> list[Any]:
    new = list(leaves)
    for unit in problem.analysis.units:
        if unit not in problem.selected:
            continue
        scale, shift = found[unit]
        for leaf in unit.regions:
            own = unit.seen_in(leaf)
            part = part_of(new[leaf], own)
            scales = spread_over_leaf(own, problem.factors[unit], scale)
            wide = drawing_dtype(part.dtype)
            scaled = (part.astype(wide) * scales.astype(wide)).astype(part.dtype)
            new[leaf] = with_part(new[leaf], own, scaled)
        if shift is not None:
            _move_bias(new, problem, unit, shift)
    return new


def _move_bias(leaves: list[Any], problem: Problem, unit: Unit, shift: Array) -> None:
    (site,) = unit.sites
    assert site.bias is not None
    ((leaf, origin),) = problem.analysis.of(site.bias).origins.items()
    # The bias has the output's features, stacked dimensions first, and each dimension may be made of factors in an
    # order of its own.
    known = [*unit.stack, *problem.channels[unit]]
    dims = [*((f,) for f in unit.stack), *_output_dims(unit)]
    shift = spread(shift.reshape([f.size for f in known]), known, dims)
    names = [*origin.stack, *(f for dim in origin.dims for f in dim if f.axis != FOREIGN)]
    by_axis = sorted(range(len(names)), key=lambda i: (names[i].axis, -names[i].stride))
    moved = jnp.transpose(shift.reshape([f.size for f in names]), by_axis)
    moved = in_order_of_leaf(moved, [names[i] for i in by_axis])
    bias = leaves[leaf]
    new = (bias + moved.reshape(bias.shape).astype(bias.dtype)).astype(bias.dtype)
    leaves[leaf] = jnp.where(jnp.isfinite(new), new, bias) if is_narrow(bias.dtype) else new
