"""Parameters where data meets them: values computed from the leaves as they came, multiplied by the scales decided."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax

from jaxinit._dtypes import drawing_dtype
from jaxinit._reading import Dependence, Factor, Unit, overlap, spread
from jaxinit._typing import Array

State: TypeAlias = Any


class Scaling:
    """Multiplies values that depend on no data by the scales of their leaves, to the power of their degree."""

    def __init__(
        self,
        units: Sequence[Unit],
        scale: Callable[[State], Array],
        scale_factors: Mapping[Unit, tuple[Factor, ...]],
    ):
        self.scale = scale
        self.scale_factors = scale_factors
        self.units_of_leaf: dict[int, list[Unit]] = {}
        for unit in units:
            for leaf in unit.regions:
                self.units_of_leaf.setdefault(leaf, []).append(unit)

    def applied(
        self,
        value: Any,
        dependence: Dependence,
        states: Mapping[Unit, State],
        but: frozenset[Unit] = frozenset(),
    ) -> Any:
        """The value for the scaled leaves; the scales of the units `but` are left out."""
        if dependence.data or not dependence.degrees:
            return value
        if dependence.segments is not None:
            axis, pieces, start = dependence.segments.dimension, [], 0
            if not any(self._active(part, states, but) for part in dependence.segments.parts):
                return value
            for size, part in zip(dependence.segments.sizes, dependence.segments.parts, strict=True):
                piece = lax.slice_in_dim(value, start, start + size, axis=axis)
                pieces.append(self.applied(piece, part, states, but))
                start += size
            return jnp.concatenate(pieces, axis=axis)
        for unit, leaf in self._active(dependence, states, but).items():
            degree = dependence.degrees[leaf]
            assert degree is not None
            origin = dependence.origins.get(leaf)
            factor = self.scale(states[unit])
            if degree != 1:
                factor = factor**degree
            dims = origin.dims if origin else ((),) * jnp.ndim(value)
            factor = spread(factor, self.scale_factors[unit], dims)
            dtype = jnp.result_type(value)
            wide = drawing_dtype(dtype)
            value = (value.astype(wide) * factor.astype(wide)).astype(dtype)
        return value

    def _active(self, dependence: Dependence, states: Mapping[Unit, State], but: frozenset[Unit]) -> dict[Unit, int]:
        """The units whose scale enters a value, each with the leaf by which it does."""
        found: dict[Unit, int] = {}
        for leaf, degree in dependence.degrees.items():
            origin = dependence.origins.get(leaf)
            for unit in self.units_of_leaf.get(leaf, ()):
                here = origin is None or overlap(origin.region, unit.regions[leaf])
                if degree and here and unit in states and unit not in but and unit.refused is None:
                    found.setdefault(unit, leaf)
        return found
