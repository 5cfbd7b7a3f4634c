"""What an evaluation asks at each layer, and of the values that are watched beside layers."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from jaxinit._evaluate._scaling import State
from jaxinit._evaluate._weight_use import WeightUse
from jaxinit._reading import Weight
from jaxinit._typing import Array


class Visitor(Protocol):
    """What happens at a layer."""

    def initial(self, weight: Weight) -> State:
        """The state of a weight that no layer has used yet, without stacked dimensions."""

    def is_final(self, state: State) -> bool:
        """Whether a state is known, while tracing, to stay as it is at further uses."""

    def scale(self, state: State) -> Array:
        """What the weight is multiplied by, of the weight's `scale_factors`."""

    def use(self, used: WeightUse, state: State | None, u: Array, bias: Array | None) -> tuple[State, Array]:
        """The new state, and the pre-activation scale · u + bias; the bias broadcasts against u."""


Watch: TypeAlias = Callable[[Array, dict[Weight, State]], Mapping[Weight, State]]
