"""From scales to parameters: makes weights orthonormal, multiplies them by their scales, and moves biases."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import drawing_dtype, with_automatic_axes
from jaxinit._haar import converted, orthonormal_or_zero
from jaxinit._lsuv._centre import output_dims
from jaxinit._lsuv._limits import is_narrow
from jaxinit._lsuv._passes import Problem, States
from jaxinit._reading import (
    FOREIGN,
    Weight,
    in_order_of_leaf,
    other_factors,
    part_of,
    spread,
    spread_over_leaf,
    view,
    with_part,
)
from jaxinit._stages import computed, hosted
from jaxinit._typing import Array


def with_orthonormal(leaves: Sequence[Any], weights: Iterable[Weight]) -> list[Any]:
    """The leaves, with each of these weights replaced by its own orthonormal factor in its layout of use.

    Matrices of zeros have no such factor and stay zero, since a readout or a branch may be meant to start at zero.

    Weights of equal shape and layout go through one loop: a program for each of a hundred layers would take a hundred
    times as long to compile.
    """
    found: list[Any] = with_automatic_axes(
        functools.partial(_with_orthonormal, weights), list(leaves), like=list(leaves)
    )
    return found


def _with_orthonormal(weights: Iterable[Weight], leaves: Sequence[Any]) -> list[Any]:
    new = list(leaves)
    alike: dict[Any, list[Weight]] = {}
    for weight in weights:
        axes = view(weight)
        alone = not other_factors(weight) and not weight.members
        if axes is not None and axes.in_axes and axes.out_axes and alone:
            alike.setdefault((axes, jnp.result_type(new[weight.leaf])), []).append(weight)
    for (axes, _), group in alike.items():
        parts = [part_of(new[weight.leaf], weight) for weight in group]
        views = [part.reshape(axes.shape) for part in parts]
        where = axes.in_axes, axes.out_axes, axes.batch_axes + axes.stack_axes
        by_jax, by_numpy = functools.partial(_all_orthonormal, *where), functools.partial(_orthonormal_by_numpy, *where)
        matrices = computed(by_jax, by_numpy, views, like=views)
        for weight, part, matrix in zip(group, parts, matrices, strict=True):
            new[weight.leaf] = with_part(new[weight.leaf], weight, matrix.reshape(part.shape))
    return new


def _all_orthonormal(
    in_axes: tuple[int, ...], out_axes: tuple[int, ...], batch_axes: tuple[int, ...], *views: Array
) -> list[Array]:
    make = functools.partial(orthonormal_or_zero, in_axis=in_axes, out_axis=out_axes, batch_axis=batch_axes)
    return [make(views[0])] if len(views) == 1 else _entries(jax.lax.map(make, jnp.stack(views)))


def _orthonormal_by_numpy(
    _: tuple[int, ...], out_axes: tuple[int, ...], batch_axes: tuple[int, ...], *views: Any
) -> list[Any]:
    return [converted(x, out_axes, batch_axes, zeros_stay=True) for x in views]


def _entries(stack: Array) -> list[Array]:
    """stack[0], stack[1], ...

    Each index is stored in memory first: if it were written into the program, all slices would be different
    operations, and XLA's CPU compiler, which generates code for equal operations once, would take eight milliseconds
    for each.
    """
    indices = [jax.lax.optimization_barrier(np.array([i, 0], np.int32)) for i in range(len(stack))]
    return [jax.lax.dynamic_index_in_dim(stack, index[0], keepdims=False) for index in indices]


def with_scales(leaves: Sequence[Any], problem: Problem, states: States) -> list[Any]:
    """The leaves multiplied by the scales that were found, with the biases moved."""
    change = functools.partial(_with_scales, problem)
    found = {weight: (states[weight].scale, states[weight].shift) for weight in problem.selected}
    new: list[Any] = with_automatic_axes(change, list(leaves), found, like=list(leaves))
    return new


def _with_scales(
    problem: Problem, leaves: Sequence[Any], found: Mapping[Weight, tuple[Array, Array | None]]
) -> list[Any]:
    new = list(leaves)
    for weight in problem.analysis.weights:
        if weight not in problem.selected:
            continue
        scale, shift = found[weight]
        for leaf in weight.regions:
            own = weight.seen_in(leaf)
            part = part_of(new[leaf], own)
            scales = spread_over_leaf(own, problem.factors[weight], scale)
            new[leaf] = with_part(new[leaf], own, _scaled(part, scales))
        if shift is not None:
            _move_bias(new, problem, weight, shift)
    return new


@hosted()
def _scaled(part: Array, scales: Array) -> Array:
    wide = drawing_dtype(part.dtype)
    return (part.astype(wide) * scales.astype(wide)).astype(part.dtype)


def _move_bias(leaves: list[Any], problem: Problem, weight: Weight, shift: Array) -> None:
    centre = problem.centres[weight]
    leaf, origin = centre.leaf, centre.origin
    # The bias has the output's features, stacked dimensions first, and each dimension may be a product of factors in
    # an order of its own.
    known = [*weight.stack, *centre.channels]
    dims = [*((f,) for f in weight.stack), *output_dims(weight)]
    shift = spread(shift.reshape([f.size for f in known]), known, dims)
    names = [*origin.stack, *(f for dim in origin.dims for f in dim if f.axis != FOREIGN)]
    by_axis = sorted(range(len(names)), key=lambda i: (names[i].axis, -names[i].stride))
    moved = jnp.transpose(shift.reshape([f.size for f in names]), by_axis)
    moved = in_order_of_leaf(moved, [names[i] for i in by_axis])
    bias = leaves[leaf]
    new = (bias + centre.sign * moved.reshape(bias.shape).astype(bias.dtype)).astype(bias.dtype)
    leaves[leaf] = jnp.where(jnp.isfinite(new), new, bias) if is_narrow(bias.dtype) else new
