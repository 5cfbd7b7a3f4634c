"""Weights that the program makes of leaves: scaled by a constant, gathered, normalised, of real and imaginary parts.

A scheme sets the variance of the weight that data meets. If that is not simply a leaf, the leaf is drawn first,
the program's own equations compute the weight from it, and the leaf is multiplied by the factor that is missing. All
of these weights are proportional to their leaf, so one correction is exact.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._arrays import drawing_dtype
from jaxinit._initializers import VarianceScaling, draw_from
from jaxinit._reading import Layer, Weight, is_made, part_of, spread_over_leaf, weights_made, with_part
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule
from jaxinit._typing import Array

_CENTRED = 1e-3
"""The mean of a centred weight over its size; for a random weight it is one over the root of the fan-in."""

REMARK = "for the weight that the program makes of it"
UNMADE = "though the program makes the weight of it with data, so that the size of the weight is unknown"
"""What the report says of weights that are corrected, and of those that cannot be."""


def is_corrected(weight: Weight, matrices: Sequence[Matrix], kept: Callable[[int], bool]) -> bool:
    """Whether all leaves that make a weight are drawn."""
    alike = all(weight.is_alike(leaf) for leaf in weight.regions)
    # A kept leaf that multiplies it, such as the step size of a recurrence, is meant to do so.
    drawn = not any(kept(leaf) for leaf in {*weight.regions, *weight.first_component.dependence.degrees})
    one = len(matrices) == 1 and len(weight.uses[0].components) == 1 and matrices[0].layer.kind != "embed"
    return alike and drawn and one and _grows(weight) and (matrices[0].is_gain or is_made(weight))


def _grows(weight: Weight) -> bool:
    """Whether the weight is proportional to its leaves."""
    value = weight.first_component.dependence
    return bool(value.terms) or value.degree(weight.leaf) == 1


def corrected(
    leaves: list[Any],
    model: Model,
    weight: Weight,
    matrix: Matrix,
    rule: Rule,
    key: Array,
    centred: Callable[[Layer, Model], float | Sequence[float]],
) -> list[Any]:
    """The leaves, with those of a weight multiplied so that it has the second moment of an initializer.

    Args:
      leaves: of the parameters, drawn.
      model: the traced program.
      weight: the weight.
      matrix: how it is drawn.
      rule: the distribution that its elements should have.
      key: of the draw.
      centred: by how much more variance a layer gets if its weights sum to zero over the inputs of each unit.
    """
    made = weights_made(model.traced.analysis, weight, leaves)
    if made is None:
        return leaves
    measured = jnp.stack([_second_moment(weights) for weights in made])
    squares = jnp.square(jnp.asarray(rule.by_slice or 1.0))
    if matrix.is_gain or matrix.layer.view is None:
        wanted = second_moment_of(rule.init, key, matrix.layer) * squares
    else:
        parts = [part_of(leaves[leaf], weight.seen_in(leaf)) for leaf in weight.regions]
        wanted = _second_moment(parts) * (len(parts) if len(weight.uses[0].entries) == 1 else 1)
        wanted = wanted * squares / jnp.mean(squares)
    summed = _summed_dims(weight)
    if summed:
        is_centred = jnp.stack([_sums_to_zero(weights[0], summed) for weights in made])
        wanted = wanted * jnp.where(is_centred, jnp.asarray(centred(matrix.layer, model)), 1.0)
    factor = jnp.where(measured > 0, jnp.sqrt(wanted / jnp.where(measured > 0, measured, 1)), 1)
    new = list(leaves)
    for leaf in weight.regions:
        own = weight.seen_in(leaf)
        part = part_of(new[leaf], own)
        spread = spread_over_leaf(own, (), factor if weight.stack else factor[0])
        wide = drawing_dtype(part.dtype)
        new[leaf] = with_part(new[leaf], own, (part.astype(wide) * spread.astype(wide)).astype(part.dtype))
    return new


def _summed_dims(weight: Weight) -> tuple[int, ...]:
    """The dimensions of a layer's weight over which each of its outputs sums."""
    use = weight.uses[0]
    (first, *others) = use.entries
    if others or first.equation.primitive not in (ir.dot_general_p, ir.conv_p):
        return ()
    kept = use.geometry.out_dims + use.geometry.batch_dims
    return tuple(d for d in range(len(first.atom.shape)) if d not in kept)


def _sums_to_zero(weight: Array, dims: tuple[int, ...]) -> Array:
    """Whether a program has centred a weight: its mean over inputs is rounding relative to its size."""
    wide = jnp.asarray(weight).astype(drawing_dtype(weight.dtype))
    mean, size = jnp.abs(jnp.mean(wide, dims)), jnp.sqrt(jnp.mean(jnp.abs(wide) ** 2))
    return jnp.max(mean) <= _CENTRED * size


def second_moment_of(init: Callable[..., Array], key: Array, layer: Layer) -> Any:
    """E[w²] of a layer's weight under an initializer, by the fans of use."""
    if isinstance(init, VarianceScaling):
        fans = {
            "fan_in": layer.fan_in,
            "fan_out": layer.fan_out,
            "fan_avg": (layer.fan_in + layer.fan_out) / 2,
            "fan_geo_avg": math.sqrt(layer.fan_in * layer.fan_out),
        }
        return init.scale / fans[init.mode]
    shape = (max(int(layer.fan_in), 1), max(int(layer.fan_out // max(layer.receptive_field, 1)), 1))
    return _second_moment([draw_from(init, key, shape, jnp.float32)])


def drawn_mixed(init: Callable[..., Array], key: Array, layer: Layer, dtype: Any, factors: Array | None) -> Array:
    """A leaf whose elements the program mixes before use: normal, with the variance intended for the weight.

    Factors of its slices broadcast against it.
    """
    wide = drawing_dtype(dtype)
    draw = jax.random.normal(key, layer.shape, wide)
    scale = jnp.sqrt(second_moment_of(init, key, layer)).astype(wide)
    return (draw * (scale if factors is None else scale * factors.astype(wide))).astype(dtype)


def _second_moment(weights: Sequence[Any]) -> Array:
    wide = [w.astype(drawing_dtype(w.dtype)) for w in map(jnp.asarray, weights)]
    total = sum(jnp.sum(jnp.real(w * w.conj())).astype(jnp.float32) for w in wide)
    return jnp.asarray(total) / max(sum(w.size for w in wide), 1)
