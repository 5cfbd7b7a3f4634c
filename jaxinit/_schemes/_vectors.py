"""Leaves that are not the weight of a layer, or slices of them, as schemes draw them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._reading import KEPT, Block, Layer, LeafRole, Use

POSITIONS = 0.02
"""The standard deviation of positions and tokens."""

ADAPTER = "adapter"
"""The role of the factors of what is added to the weight of a layer and starts as zero."""


@dataclasses.dataclass(frozen=True)
class Vector:
    """A leaf that is not the weight of a layer, or the elements of a bias that belong to one gate of a recurrent cell.

    Attributes:
      path: path of the leaf.
      shape: shape of the leaf, or (elements,).
      role: "bias" of a layer, "gate bias", "multiplier" of a residual branch by one number, "shortcut" that multiplies
        what a branch is added to, "scale" of a normalised value or a residual branch, "offset" that is added to data,
        "position" for an offset with more than one axis, "token", "embedding", "kernel" of a layer whose scale
        cannot be set, or "adapter" for a factor of what is added to a kept weight.
      reason: the evidence for the role.
      start: the value at which the leaf changes nothing, where there is one.
      layer: the layer whose bias, or whose factor of an adapter, it is, or None.
      cell: number of the recurrent cell that a bias belongs to, or None.
      gate: the gate of that cell whose elements this is, or None for the whole leaf.
      region: (start, stop) along each axis of the leaf, or None for the whole leaf.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    reason: str = ""
    start: float | None = None
    layer: Layer | None = None
    cell: int | None = None
    gate: Block | None = None
    region: tuple[tuple[int, int], ...] | None = None


def filled(leaf: Any, slices: tuple[Vector, ...]) -> np.ndarray:
    """A leaf of which each slice is as it is drawn, except for the kernels in it."""
    found = np.zeros(jnp.shape(leaf), np.float32)
    for own in slices:
        found[tuple(slice(*bounds) for bounds in own.region or ())] = own.start or 0.0
    return found


def drawn_slices(
    path: str, role: LeafRole, layer_of: Mapping[Use, Layer], cell_of: Mapping[Layer, int | None]
) -> Iterator[Vector]:
    """The slices of a leaf that are drawn."""
    for region, own in role.slices:
        if own.name not in KEPT:
            name = f"{path}[{', '.join(f'{start}:{stop}' for start, stop in region)}]"
            sizes = tuple(int(stop - start) for start, stop in region)
            layer = layer_of.get(own.use) if own.use is not None else None
            cell = cell_of.get(layer) if layer is not None else None
            yield Vector(name, sizes, own.name, own.reason, own.start, layer, cell, region=region)
