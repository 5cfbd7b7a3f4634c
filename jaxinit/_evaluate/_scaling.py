"""Parameters where data meets them: values computed from the original leaves, times the scales decided so far."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax

from jaxinit._arrays import drawing_dtype
from jaxinit._reading import Dependence, Factor, Weight, overlap, spread
from jaxinit._typing import Array

State: TypeAlias = Any


class Scaling:
    """Multiplies values that depend on no data by the scales of their leaves, to the power of their degree."""

    def __init__(
        self,
        weights: Sequence[Weight],
        scale: Callable[[State], Array],
        scale_factors: Mapping[Weight, tuple[Factor, ...]],
    ):
        self.scale = scale
        self.scale_factors = scale_factors
        self.weights_of_leaf: dict[int, list[Weight]] = {}
        for weight in weights:
            for leaf in weight.regions:
                self.weights_of_leaf.setdefault(leaf, []).append(weight)

    def applied(
        self,
        value: Any,
        dependence: Dependence,
        states: Mapping[Weight, State],
        but: frozenset[Weight] = frozenset(),
    ) -> Any:
        """The value for the scaled leaves, except for the scales of the weights in `but`."""
        if dependence.data or not dependence.degrees:
            return value
        if dependence.segments is not None:
            axis, matrices, start = dependence.segments.dimension, [], 0
            if not any(self._active(part, states, but) for part in dependence.segments.parts):
                return value
            for size, part in zip(dependence.segments.sizes, dependence.segments.parts, strict=True):
                matrix = lax.slice_in_dim(value, start, start + size, axis=axis)
                matrices.append(self.applied(matrix, part, states, but))
                start += size
            return jnp.concatenate(matrices, axis=axis)
        for weight, leaf in self._active(dependence, states, but).items():
            degree = dependence.degrees[leaf]
            assert degree is not None
            origin = dependence.origins.get(leaf)
            factor = self.scale(states[weight])
            if degree != 1:
                factor = factor**degree
            dims = origin.dims if origin else ((),) * jnp.ndim(value)
            factor = spread(factor, self.scale_factors[weight], dims)
            dtype = jnp.result_type(value)
            wide = drawing_dtype(dtype)
            value = (value.astype(wide) * factor.astype(wide)).astype(dtype)
        return value

    def _active(
        self, dependence: Dependence, states: Mapping[Weight, State], but: frozenset[Weight]
    ) -> dict[Weight, int]:
        """The weights whose scale enters a value, each with the leaf through which it does."""
        found: dict[Weight, int] = {}
        for leaf, degree in dependence.degrees.items():
            origin = dependence.origins.get(leaf)
            for weight in self.weights_of_leaf.get(leaf, ()):
                here = origin is None or overlap(origin.region, weight.regions[leaf])
                if degree and here and weight in states and weight not in but and weight.refused is None:
                    found.setdefault(weight, leaf)
        return found
