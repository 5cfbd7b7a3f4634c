"""Weights, from the values that data meets: which leaf carries the scale, and which part of it is scaled on its own."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from jaxinit._reading._dependence import Dependence
from jaxinit._reading._layers import Weight
from jaxinit._reading._origin import Factor, Origin

UNSCALABLE = (
    "a product, convolution or lookup uses it mixed with others, or in a way that is not homogeneous",
    "a product, convolution or lookup uses it divided by its own norm: scaling it changes nothing",
)
"""Why a scale of the leaf is not one of the weight, which is not proportional to the leaf or does not change."""


@dataclasses.dataclass
class Loop:
    """An enclosing scan: its length, the leaves it runs over, and whether in reverse."""

    length: int
    leaves: frozenset[int]
    reverse: bool = False


class Weights:
    """The weights that a walk has met, for leaves of these shapes."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = shapes
        self.weights: dict[Hashable, Weight] = {}

    def leaf_of(self, value: Dependence) -> int | None:
        """The leaf that carries the scale: the largest of those in which the value is homogeneous of degree one."""
        return max((leaf for leaf in value.degrees if value.degree(leaf) == 1), key=self._size_of(value), default=None)

    def _size_of(self, value: Dependence) -> Callable[[int], tuple[bool, int, int]]:
        return lambda leaf: (leaf in value.origins, math.prod(self.shapes[leaf]), -leaf)

    def leaves_of(self, value: Dependence) -> tuple[int, ...]:
        """The leaves that carry the scale: one, or one per term of a sum; if no scale changes it, its largest."""
        alone = self.leaf_of(value)
        together = self.of_each_term(value)
        sizes = [math.prod(self.shapes[leaf]) for leaf in together]
        if together and (alone is None or max(sizes) > math.prod(self.shapes[alone])):
            return together
        if alone is not None:
            return (alone,)
        arrays = [leaf for leaf in value.degrees if sum(n > 1 for n in self.shapes[leaf]) > 1]
        largest = max(arrays, key=self._size_of(value), default=None)
        return () if largest is None or value.segments else (largest,)

    def of_each_term(self, value: Dependence) -> tuple[int, ...]:
        """For a sum, the largest leaf of each term that the term grows with, whatever multiplies all terms."""
        chosen = []
        for term in value.terms:
            own = [leaf for leaf in term if value.degrees.get(leaf) == 1 and value.degree(leaf) is None]
            if not own:
                return ()
            chosen.append(max(own, key=self._size_of(value)))
        return tuple(dict.fromkeys(sorted(chosen, key=self._size_of(value), reverse=True)))

    def weight(
        self,
        leaves: tuple[int, ...],
        value: Dependence,
        mixed: Mapping[int, Origin | None],
        loops: tuple[Loop, ...],
        recording: bool,
    ) -> Weight:
        """The part of these leaves that a value consists of, new or met before; for mixed slices that of the slices."""
        leaf, *others = leaves
        walks = [loop for loop in loops if leaf in loop.leaves]
        origins = {x: value.origins.get(x) or mixed.get(x) for x in leaves}
        stacks = {x: origin.stack if origin else () for x, origin in origins.items()}
        region, stack = self.region_of(leaf, origins), stacks[leaf]
        members = {other: self.region_of(other, origins) for other in others}
        key = leaf, region, stack, frozenset(members.items())
        weight = self.weights.get(key)
        if weight is None:
            weight = Weight(leaf, region, stack, _order(stack, walks), members=members)
            if walks and not (stack or leaf in value.origins):
                weight.refused = "its slices are mixed inside a scan, so they cannot be told apart"
            elif len({tuple(f.size for f in found) for found in stacks.values()}) > 1:
                weight.refused = f"loops run over the {len(leaves)} leaves that form this weight in different ways"
            elif not value.terms and value.degree(leaf) != 1:
                weight.refused = UNSCALABLE[value.degree(leaf) == 0]
            if recording:
                self.weights[key] = weight
        return weight

    def region_of(self, leaf: int, origins: Mapping[int, Origin | None]) -> tuple[tuple[int, int], ...]:
        """The part of a leaf that a value consists of; all of it if that is not known."""
        origin = origins[leaf]
        return origin.region if origin else tuple((0, n) for n in self.shapes[leaf])


def _order(stack: Sequence[Factor], walks: Sequence[Loop]) -> np.ndarray:
    """The iteration of each slice of a stack in the order of execution."""
    order = np.arange(math.prod(loop.length for loop in walks)).reshape([loop.length for loop in walks])
    order = np.flip(order, tuple(i for i, loop in enumerate(walks) if loop.reverse))
    sizes = [f.size for f in stack]
    return order.reshape(sizes) if order.size == math.prod(sizes) else np.arange(math.prod(sizes)).reshape(sizes)
