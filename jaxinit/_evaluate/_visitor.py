"""What an evaluation asks at each layer, and for the values that are watched beside layers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from jaxinit._evaluate._scaling import State
from jaxinit._reading import Component, Factor, Use, Weight, spread
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """One weight in one of its uses, and how the dimensions of the output correspond to its scales.

    `is_rounding` is None for data that is known not to be rounding; else it says whether the data is only rounding.
    """

    weight: Weight
    use: Use
    component: Component
    factors: tuple[Factor, ...]
    dims: tuple[tuple[Factor, ...], ...]
    is_rounding: Array | None = None

    def spread(self, scales: Array) -> Array:
        """An array of the weight's scales, shaped so that it broadcasts against the output."""
        return spread(scales, self.factors, self.dims)

    def split(self, x: Array) -> Array:
        """The output, or a bias that broadcasts against it, with a dimension for each factor."""
        sizes: list[int] = []
        for size, dim in zip(x.shape, self.dims, strict=True):
            parts = dim if any(f in self.factors for f in dim) else ()
            sizes.extend([size] if not parts else [1] * len(parts) if size == 1 else [f.size for f in parts])
        return x.reshape(sizes)

    def pooled_axes(self) -> tuple[int, ...]:
        """Which dimensions of the split output belong to one scale."""
        split: list[Factor | None] = []
        for dim in self.dims:
            split.extend(dim if any(f in self.factors for f in dim) else [None])
        return tuple(i for i, factor in enumerate(split) if factor not in self.factors)


class Visitor(Protocol):
    """What happens at a layer."""

    def initial(self, weight: Weight) -> State:
        """The state of a weight that no layer has used yet, without stacked dimensions."""

    def is_final(self, state: State) -> bool:
        """Whether tracing already shows that a state stays the same at further uses."""

    def scale(self, state: State) -> Array:
        """The factor of the weight, in the shape of its `scale_factors`."""

    def use(self, used: WeightUse, state: State | None, u: Array, bias: Array | None) -> tuple[State, Array]:
        """The new state, and the pre-activation scale · u + bias; the bias broadcasts against u."""


Watch: TypeAlias = Callable[[Array, dict[Weight, State]], Mapping[Weight, State]]
