"""What each leaf of the parameters is to the program: a layer's weight, its bias, a scale, an offset, or nothing."""

import dataclasses
import math

import jax.numpy as jnp

from jaxinit._layers import Layer
from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._trace import Traced, layers_of
from jaxinit._layers._units import Unit


@dataclasses.dataclass(frozen=True)
class Vector:
    """A leaf that is no layer's weight.

    Attributes:
      path: path of the leaf.
      shape: shape of the leaf.
      role: "bias" of a layer, "scale" that multiplies data, "offset" that is added to it, "position" for an offset with
        more than one axis, "unread" by the program, or "other".
      layer: the layer whose bias it is, or None.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    layer: Layer | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A traced program, and the role of every floating-point leaf.

    Attributes:
      traced: the program.
      layers: the layers in execution order, with their units.
      vectors: index of a leaf → its role, for leaves that are no layer's weight.
    """

    traced: Traced
    layers: tuple[tuple[Layer, Unit], ...]
    vectors: dict[int, Vector]

    @property
    def branches(self) -> int:
        """The number of skip connections; one that a scan repeats counts as often as it is run."""
        lengths = {layer.skip: layer.stacked for layer, _ in self.layers if layer.skip is not None}
        return sum(lengths.values())

    def is_recurrent(self, layer: Layer) -> bool:
        """Whether a layer is used again and again inside a loop, as in a recurrent cell."""
        unit = next(unit for other, unit in self.layers if other is layer)
        return any(site.repeats > 1 for site in unit.sites)

    def last_in_branch(self, layer: Layer) -> bool:
        """Whether a layer is the last one of a residual branch."""
        return layer.skip is not None and layer.position == (layer.branch_length or 0) - 1


def roles(traced: Traced) -> Model:
    """The role of every leaf."""
    analysis = traced.analysis
    layers = tuple(zip(layers_of(traced), analysis.units, strict=True))
    weights = {unit.leaf for unit in analysis.units}
    biases: dict[int, Layer] = {}
    for layer, unit in layers:
        for site in unit.sites:
            if site.bias is not None:
                for part in analysis.of(site.bias).parts:
                    biases |= {leaf: layer for leaf in part.degrees if leaf not in biases}
    vectors = {}
    for leaf, path in enumerate(traced.paths):
        array = traced.leaves[leaf]
        shape = tuple(jnp.shape(array))
        if leaf in weights or not jnp.issubdtype(jnp.result_type(array), jnp.inexact):
            continue
        if leaf in biases:
            vectors[leaf] = Vector(path, shape, "bias", biases[leaf])
        else:
            vectors[leaf] = Vector(path, shape, _role(traced, leaf, shape))
    return Model(traced, layers, vectors)


def _role(traced: Traced, leaf: int, shape: tuple[int, ...]) -> str:
    analysis = traced.analysis
    if leaf not in analysis.read_leaves:
        return "unread"
    primitives = {read.primitive for read in analysis.reads if read.leaf == leaf}
    if primitives & {ir.mul_p, ir.div_p}:
        return "scale"
    if primitives & {ir.add_p, ir.sub_p, ir.add_any_p}:
        return "position" if sum(n > 1 for n in shape) > 1 and not _stacked(traced, leaf) else "offset"
    return "other"


def _stacked(traced: Traced, leaf: int) -> bool:
    """Whether a scan walks along the leaf, so that the program sees one slice at a time."""
    origins = [read.origin for read in traced.analysis.reads if read.leaf == leaf and read.origin is not None]
    return any(math.prod(f.size for f in o.stack) > 1 for o in origins)
