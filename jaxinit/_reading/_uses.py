"""What is recorded of each layer that a walk through a program finds: its uses.

A layer is one operation between data and a weight, the product with a weight that data has picked, or a region of
several operations. `_bias` determines where its output ends, and what is added on the way.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Set
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading import _dependence as dependence
from jaxinit._reading._bias import finish_of
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._ensembles import feature_dims
from jaxinit._reading._experts import Picked
from jaxinit._reading._geometry import Geometry, weight_operand
from jaxinit._reading._hypernetworks import Around, fan_in_made
from jaxinit._reading._layers import Component, Entry, Use
from jaxinit._reading._mixed_slices import MixedSlices
from jaxinit._reading._notes import Notes
from jaxinit._reading._regions import Region, geometry_of_region, segments_of_region
from jaxinit._reading._weights import Loop, Weights

Consumers: TypeAlias = dict[ir.Atom, list[ir.Equation | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Uses:
    """Records the uses that a walk finds.

    Attributes:
      weights: the weights so far.
      notes: where uses are recorded.
      slices: which slices of a leaf a loop mixes.
      producers: the equations that have been walked, by what they compute.
      of: what a value depends on that has been walked.
      so_far: the same; values that have not been walked yet depend on data.
      noise: values made of random numbers.
    """

    weights: Weights
    notes: Notes
    slices: MixedSlices
    producers: Mapping[ir.Atom, ir.Equation]
    of: Callable[[ir.Atom], Dependence]
    so_far: Callable[[ir.Atom], Dependence]
    noise: Set[ir.Atom]

    def of_equation(
        self,
        equation: ir.Equation,
        arguments: list[Dependence],
        loops: tuple[Loop, ...],
        consumers: Consumers,
        picked: Picked | None = None,
    ) -> Use | None:
        """The layer that an equation is by itself, or the product with a weight that data has picked."""
        found = (picked.weight, picked.geometry) if picked else weight_operand(equation, arguments)
        if found is None:
            return None
        weight, shape = found
        value = _whole_segments(picked.value if picked else arguments[weight], shape)
        return self._layer((Entry(equation, weight),), equation, shape, value, loops, consumers, picked)

    def of_region(self, region: Region, loops: tuple[Loop, ...], consumers: Consumers) -> None:
        """The layer that a region is."""
        if region.joint:
            first = region.entries[0].equation
            found = weight_operand(first, [self.of(atom) for atom in first.inputs])
            assert found is not None
            placed = {d: region.dimensions[p] for d, p in found[1].placed.items() if p in region.dimensions}
            shape = dataclasses.replace(found[1], fan_in=found[1].fan_in * len(region.entries), placed=placed)
            value = dependence.added([self.of(entry.atom) for entry in region.entries])
        else:
            shape, origin = geometry_of_region(region, self.of)
            value = self.of(region.entries[0].atom)
            if value.segments is not None:
                value = _whole_segments(segments_of_region(region, self.of), shape)
            else:
                leaf = self.weights.leaf_of(value)
                origins = {} if leaf is None or origin is None else {leaf: origin}
                value = Dependence(degrees=value.degrees, origins=origins)
        self._layer(region.entries, region.end, shape, value, loops, consumers)

    def _layer(
        self,
        entries: tuple[Entry, ...],
        equation: ir.Equation,
        shape: Geometry,
        value: Dependence,
        loops: tuple[Loop, ...],
        consumers: Consumers,
        picked: Picked | None = None,
    ) -> Use | None:
        """The layer of a weight that is used by these entries, with its output computed by an equation."""
        segments = value.segments
        segmented = segments.dimension if segments else None
        end = finish_of(equation, consumers, shape, self.so_far, segmented, self.noise)
        placed = {d: end.dimensions[p] for d, p in shape.placed.items() if p in end.dimensions}
        components = []
        start = 0
        for i, share in enumerate(value.parts):
            size = segments.sizes[i] if segments else None
            leaves = self.weights.leaves_of(share)
            if leaves:
                mixed = [leaf for leaf in leaves if leaf not in share.origins]
                slices = {leaf: self.slices.walked([entry.atom for entry in entries], leaf) for leaf in mixed}
                weight = self.weights.weight(leaves, share, slices, loops, self.notes.recording)
                fan_out = shape.fan_out
                if segments and size is not None:
                    fan_out = fan_out * size // sum(segments.sizes)
                components.append(Component(weight, share, fan_out, start, size))
            start += size or 0
        if not components:
            return None
        segment_dim = placed[segments.dimension] if segments else None
        walked = {component.weight.leaf for component in components}
        repeats = math.prod(loop.length for loop in loops if walked.isdisjoint(loop.leaves))
        # A weighted sum over experts is a mean of outputs and not a product with a weight.
        features = [placed[d] for d in feature_dims(components, shape) if d in placed]
        around = Around(consumers, self.producers, self.so_far)
        use = Use(
            entries,
            equation,
            shape,
            components,
            end.equation,
            end.biases,
            end.bias_dims,
            placed,
            segment_dim,
            repeats,
            picked.lookup if picked else None,
            fan_in_made(end.equation.outputs[0], features, around),
            end.sign,
        )
        if self.notes.recording:
            self.notes.uses[end.equation] = use
            for component in components:
                component.weight.uses.append(use)
        return use


def _whole_segments(value: Dependence, shape: Geometry) -> Dependence:
    """A weight, whose segments are separate weights if they are concatenated along features of its output."""
    if value.segments is None or value.segments.dimension in shape.out_dims:
        return value
    return dependence.together(value.parts)
