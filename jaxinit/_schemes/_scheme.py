"""The base of all schemes: a value with one rule for each kind of leaf.

A rule returns an initializer and the reason in words. A subclass overrides the rules that its paper speaks of; the
others are the customary ones.
"""

import dataclasses
from typing import TypeAlias

from jaxinit._initializers import Initializer, lecun_normal, normal, ones, zeros
from jaxinit._layers import Layer
from jaxinit._schemes._roles import Model, Vector

Rule: TypeAlias = tuple[Initializer, str]

REGISTRY: dict[str, "type[Scheme]"] = {}
"""Every scheme by its name."""


class MisfitError(ValueError):
    """A scheme whose assumptions the model does not meet."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A whole-model scheme: equal and printable like the initializers."""

    def __init_subclass__(cls) -> None:
        REGISTRY[cls.__name__] = cls

    def check(self, model: Model) -> None:
        """Raises `MisfitError` if the model does not meet the scheme's assumptions, naming the layer that does not."""

    def weight(self, layer: Layer, model: Model) -> Rule:
        """The rule for a layer's weight that is a matrix or a kernel."""
        return lecun_normal(), "LeCun: variance 1 / fan-in"

    def embedding(self, layer: Layer, model: Model) -> Rule:
        """The rule for a lookup table."""
        return normal(1.0), "rows of unit variance"

    def gain(self, layer: Layer, model: Model) -> Rule:
        """The rule for a leaf that multiplies a normalised kernel."""
        return ones, "the gain of a normalised kernel"

    def vector(self, vector: Vector, model: Model) -> Rule:
        """The rule for leaves that are no layer's weight."""
        match vector.role:
            case "bias":
                return zeros, "bias"
            case "scale":
                return ones, "multiplies data"
            case "offset":
                return zeros, "added to data"
            case "position":
                return normal(0.02), "an array added to data, such as positions"
            case "unread":
                return zeros, "the program does not read it"
        if len(vector.shape) >= 2:
            return lecun_normal(), "no layer's weight, in Flax's layout"
        return zeros, "neither a layer's weight nor added to or multiplied with data"
