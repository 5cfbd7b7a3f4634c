"""The input of each layer in a model whose pre-activations all have unit variance."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import whole_array
from jaxinit._moments import Incoming, Samples, constant, mean_square, normal_samples, of_array, propagate
from jaxinit._program import is_traced
from jaxinit._reading import Layer, LeafRole, Traced, Use, Weight, weights_made
from jaxinit._schemes._vectors import POSITIONS

_OWN = (0.5, 2.0)
"""A number between these that multiplies an activation's argument belongs to the activation."""


def argument_factor(layer: Layer) -> float:
    """By how much constants multiply a layer's output on the way to an activation, or to where it is used."""
    found = layer.multiplier if layer.activation is None else getattr(layer.activation, "leading_factor", 1.0)
    if not 0 < found < math.inf or (layer.activation is not None and _OWN[0] <= found <= _OWN[1]):
        return 1.0
    return float(found)


def incoming(
    traced: Traced,
    batch: Any,
    layer_of: Mapping[Use, Layer],
    wanted: Callable[[Layer], float | None],
    starts: Mapping[int, tuple[str, float | None]],
    kept: Mapping[int, LeafRole],
    slices: Mapping[int, np.ndarray],
) -> Mapping[Weight, Incoming]:
    """The second moments of the input of each weight.

    Args:
      traced: the program.
      batch: what it was traced for, arrays or shapes.
      layer_of: the layers by where they are computed.
      wanted: the intended variance of a layer's output.
      starts: index of a leaf → its role, and the number that it is drawn as.
      kept: index of a leaf → its role, for leaves that keep their values.
      slices: index of a leaf → its numbers, for leaves whose slices have roles of their own.
    """
    leaf_of = {use: weight.leaf for weight in traced.analysis.weights for use in weight.uses}
    shares = {use: share for weight in traced.analysis.weights for use, share in _shares(traced, weight, kept)}

    def variance(use: Use, met: Incoming) -> float:
        leaf = leaf_of.get(use)
        known = _known(traced.leaves[leaf]) if leaf is not None and leaf in kept else None
        if known is not None and known.size:
            return mean_square(known) * use.geometry.fan_in * met.second_moment
        if use not in layer_of:
            return 1.0
        own = wanted(layer_of[use])
        return (met.second_moment if own is None else own) * shares.get(use, 1.0)

    leaves = [
        functools.partial(of_array, slices[i]) if i in slices else functools.partial(_leaf, i, leaf, starts, kept)
        for i, leaf in enumerate(traced.leaves)
    ]
    return propagate(traced.analysis, leaves, jax.tree.leaves(batch), variance)


def _shares(traced: Traced, weight: Weight, kept: Mapping[int, LeafRole]) -> Iterator[tuple[Use, float]]:
    """For the uses of a weight that kept leaves multiply, such as step sizes: the factor, in variance.

    The weight is drawn as if the factor were not there, since it is meant to act.
    """
    others = [i for i in weight.first_component.dependence.degrees if i not in weight.regions]
    if not any(i in kept for i in others) or any(i in kept for i in weight.regions):
        return
    leaves = list(traced.leaves)
    for i in weight.regions:
        draws = np.random.default_rng(i).standard_normal(traced.shapes[i])
        leaves[i] = jnp.asarray(draws, np.dtype(leaves[i].dtype))
    if any(_known(leaves[i]) is None for i in others):
        return
    made = weights_made(traced.analysis, weight, leaves)
    if made is None:
        return
    size = mean_square(np.stack([np.asarray(x) for weights in made for x in weights]))
    parts = 2 if np.iscomplexobj(made[0][0]) and not np.iscomplexobj(leaves[weight.leaf]) else 1
    if np.isfinite(size):
        yield from ((use, size / parts) for use in weight.uses)


def _leaf(
    index: int, leaf: Any, starts: Mapping[int, tuple[str, float | None]], kept: Mapping[int, LeafRole]
) -> Samples | None:
    """What is known of a leaf of the parameters: its value if it is kept, and what it is drawn from."""
    shape = tuple(jnp.shape(leaf))
    if index in starts:
        role, start = starts[index]
        if role == "embedding":
            return normal_samples(shape, 1.0)
        return normal_samples(shape, POSITIONS) if role in ("position", "token") else constant(start or 0.0, shape)
    if index not in kept:
        return None
    known = _known(leaf)
    if known is not None:
        return of_array(known)
    return constant(kept[index].start or 0.0, shape) if isinstance(leaf, jax.ShapeDtypeStruct) else None


def _known(leaf: Any) -> np.ndarray | None:
    """The numbers of a leaf, if they are known outside a trace."""
    if isinstance(leaf, jax.ShapeDtypeStruct) or is_traced(leaf) or not hasattr(leaf, "dtype"):
        return None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return None
    found = np.asarray(whole_array(leaf))
    return found if found.dtype.kind in "biufc" else found.astype(np.float64)
