"""What each leaf of the parameters is to the program: a layer's weight, its bias, a scale, an offset, or unknown."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import whole_array
from jaxinit._moments import Incoming, terms
from jaxinit._program import is_traced
from jaxinit._reading import (
    FROZEN,
    KEPT,
    Layer,
    LeafRole,
    Traced,
    Use,
    Weight,
    is_concatenated_relu,
    layers_of,
    low_rank_pairs,
)
from jaxinit._schemes._incoming import argument_factor, incoming
from jaxinit._schemes._matrices import Matrix as Matrix
from jaxinit._schemes._matrices import matrices_of
from jaxinit._schemes._matrices import matrix_fan_in as matrix_fan_in
from jaxinit._schemes._matrices import transposed_features as transposed_features
from jaxinit._schemes._vectors import ADAPTER, drawn_slices, filled
from jaxinit._schemes._vectors import Vector as Vector

_UNKNOWN = Incoming(1.0, 1.0, known=False)


@dataclasses.dataclass(frozen=True)
class Model:
    """A traced program, and the role of every floating-point leaf.

    Attributes:
      traced: the program.
      layers: the layers in execution order, with their weights.
      matrices: the matrices that are drawn, layer by layer.
      vectors: index of a leaf → its role, for leaves that are not the weight of a layer, or not with all of their
        elements.
      kept: index of a leaf → its role, for leaves that keep their values, or of whose elements only those are drawn
        that are the weight of a layer.
      batch: the data that the program was traced for, or shapes.
      slices: index of a leaf that is kept → those slices of it that are drawn, each by its own role.
      closed: the layers that are zero since they end a residual branch, where the scheme closes all branches; None
        where it does not.
    """

    traced: Traced
    layers: tuple[tuple[Layer, Weight], ...]
    matrices: tuple[tuple[Matrix, ...], ...]
    vectors: Mapping[int, Vector]
    kept: Mapping[int, LeafRole]
    batch: Any = None
    slices: Mapping[int, tuple[Vector, ...]] = dataclasses.field(default_factory=dict)
    closed: frozenset[tuple[str, tuple[tuple[int, int], ...]]] | None = None

    def met(self, layer: Layer) -> Incoming:
        """What a layer is applied to if all layers before it have outputs of unit variance."""
        return self._incoming.get(self._weight_of(layer), _UNKNOWN)

    def terms(self, layer: Layer) -> int:
        """How many layers' outputs are added in the sum that a layer's output goes into."""
        return self._terms[self._weight_of(layer).uses[0]]

    def keeps_state(self, layer: Layer) -> bool:
        """Whether all of a layer's weight is applied to the state of a recurrence."""
        return all(m.meets_state for m in self._by_layer[self._weight_key(layer)])

    @functools.cached_property
    def _by_layer(self) -> dict[tuple[str, tuple[tuple[int, int], ...]], tuple[Matrix, ...]]:
        found = zip(self.layers, self.matrices, strict=True)
        return {(self.traced.paths[i], r): ms for (_, w), ms in found for i, r in w.regions.items()}

    def _weight_of(self, layer: Layer) -> Weight:
        return self._weights[self._weight_key(layer)]

    @staticmethod
    def _weight_key(layer: Layer) -> tuple[str, tuple[tuple[int, int], ...]]:
        return layer.path, layer.region

    @functools.cached_property
    def _weights(self) -> dict[tuple[str, tuple[tuple[int, int], ...]], Weight]:
        paths = self.traced.paths
        return {(paths[i], r): weight for _, weight in reversed(self.layers) for i, r in weight.regions.items()}

    @functools.cached_property
    def _terms(self) -> Mapping[Use, int]:
        keeping = {use for layer, weight in self.layers if self.keeps_state(layer) for use in weight.uses}
        return terms(self.traced.analysis, {skip.sum for skip in self.traced.skips}, keeping)

    @functools.cached_property
    def _incoming(self) -> Mapping[Weight, Incoming]:
        layer_of = {use: layer for layer, weight in self.layers for use in weight.uses}
        starts = {i: (vector.role, vector.start) for i, vector in self.vectors.items()}
        slices = {i: filled(self.traced.leaves[i], parts) for i, parts in self.slices.items() if i not in self.kept}
        return incoming(self.traced, self.batch, layer_of, self._wanted, starts, self.kept, slices)

    def _wanted(self, layer: Layer) -> float | None:
        """The variance of a layer's output that gives all pre-activations unit variance; None for that of its input."""
        if self.keeps_state(layer):
            return None
        if layer.kind == "embed":
            fan_in = self.readout_fan_in(layer)
            return 1.0 if fan_in is None else 1 / fan_in
        if self.is_closed(layer) or self._is_adapter_at_zero(layer):
            return 0.0
        return 1 / (argument_factor(layer) ** 2 * self.terms(layer) * self.summed_branches(layer))

    def _is_adapter_at_zero(self, layer: Layer) -> bool:
        vector = self.vectors.get(self._weight_of(layer).leaf)
        return vector is not None and vector.role == ADAPTER and vector.start == 0

    def is_readout(self, layer: Layer) -> bool:
        """Whether no other layer takes what a layer gives, and no branch adds it."""
        return layer.skip is None and layer.kind != "embed" and self._weight_of(layer) not in self._taken

    @functools.cached_property
    def _taken(self) -> frozenset[Weight]:
        depths = (depth for found in self.traced.depths.values() for depth in found)
        return frozenset(c.weight for depth in depths for before in depth.before for c in before.use.components)

    def is_closed(self, layer: Layer) -> bool:
        """Whether a layer is zero since it ends a residual branch."""
        return self.closed is not None and self._weight_key(layer) in self.closed

    def summed_branches(self, layer: Layer) -> int:
        """How many branches are added, for the last layer of one; 1 for other layers, and where all are closed."""
        return self.branches if self.closed is None and self.last_in_branch(layer) else 1

    @property
    def all_matrices(self) -> tuple[Matrix, ...]:
        """The matrices that are drawn, in execution order."""
        return tuple(matrix for matrices in self.matrices for matrix in matrices)

    @functools.cached_property
    def branches(self) -> int:
        """The number of skip connections; one that a scan repeats counts as often as it runs."""
        stacked = {weight: layer.stacked for layer, weight in self.layers}
        uses = [[component.weight for use in skip.layers for component in use.components] for skip in self.traced.skips]
        return sum(max(stacked[weight] for weight in weights) for weights in uses)

    @property
    def depth(self) -> int:
        """The number of layers on the longest path through the model, lookups excluded; parallel layers count once."""
        deep = [d.layers for layer, weight in self.layers if layer.kind != "embed" for d in self.traced.depths[weight]]
        return max(deep) - min(deep) + 1 if deep else 0

    def blocks(self, *, encoder: bool) -> int:
        """The number of transformer blocks in the encoder, or outside it: those of self-attention."""
        structure = self.traced.structure
        uses = [a.value[0].use for a in structure.attentions if not a.cross]
        return sum(self._executions(use) for use in uses if (use in structure.encoder) == encoder)

    def _executions(self, use: Use) -> int:
        stacked = {weight: layer.stacked for layer, weight in self.layers}
        return use.repeats * max(stacked[component.weight] for component in use.components)

    def attention(self, matrix: Matrix) -> tuple[int, int]:
        """For a projection of attention: the number of the attention, and the size of a head."""
        uses = next(
            set(u.uses) for matrices, (_, u) in zip(self.matrices, self.layers, strict=True) if matrix in matrices
        )
        for i, found in enumerate(self.traced.structure.attentions):
            blocks = {b.use for b in (*found.query, *found.key, *found.value)}
            if not uses.isdisjoint(blocks | set(found.output)):
                return i, found.size
        raise AssertionError(f"{matrix.layer.name} does not belong to any attention")

    def hidden_size(self, cell: int) -> int:
        """The size of the state of a recurrent cell."""
        start, stop = next(iter(self.traced.structure.cells[cell].state_rows.values()))
        return stop - start

    def has_concatenated_relu(self, layer: Layer) -> bool:
        """Whether a concatenated ReLU follows a layer."""
        use = next(weight.uses[0] for other, weight in self.layers if other is layer)
        return is_concatenated_relu(self.traced.analysis, use.finish.outputs[0])

    def readout_fan_in(self, layer: Layer) -> int | float | None:
        """For a lookup table that is a layer's weight as well, as tied embeddings are: the fan-in of that layer."""
        uses = next(weight.uses for other, weight in self.layers if other is layer)
        return next((use.geometry.fan_in for use in uses if use.geometry.kind != "embed"), None)

    def is_gated(self, cell: int) -> bool:
        """Whether a recurrent cell has a forget gate and an input gate, as an LSTM has."""
        found = self.traced.structure.cells[cell]
        return bool(found.forget and found.input)

    def last_in_branch(self, layer: Layer) -> bool:
        """Whether a layer is the last one of a residual branch."""
        return layer.skip is not None and layer.position == (layer.branch_length or 0) - 1


def roles(traced: Traced, fused: bool = False, batch: Any = None) -> Model:
    """The role of every leaf; `fused` weights, whose outputs the program splits, are drawn as one matrix.

    Args:
      traced: the program.
      fused: whether a weight whose output the program splits is one matrix.
      batch: what the program was traced for.
    """
    layers = tuple(zip(layers_of(traced), traced.analysis.weights, strict=True))
    matrices = tuple(matrices_of(traced, layer, weight, fused) for layer, weight in layers)
    vectors, kept, slices = _others(traced, layers)
    return Model(traced, layers, matrices, vectors, kept, batch, slices)


def _adapters(traced: Traced) -> frozenset[int]:
    """The leaves of low-rank additions to layers that are initially zero, as adapters have."""
    found: set[int] = set()
    for pair in low_rank_pairs(traced.flow):
        factors = pair.first, pair.second
        leaves = [{leaf for component in use.components for leaf in component.weight.regions} for use in factors]
        if any(_is_zero(traced.leaves[leaf]) for leaf in leaves[1]):
            found |= leaves[0] | leaves[1]
    return frozenset(found)


def with_adapters(model: Model, is_told: Callable[[int], bool]) -> Model:
    """The same model, with the factors of low-rank additions to kept weights among the leaves that are drawn.

    Args:
      model: the traced program.
      is_told: whether the user says how to draw or keep a leaf.
    """
    traced, vectors, kept = model.traced, dict(model.vectors), dict(model.kept)
    layer_of = {weight: layer for layer, weight in model.layers}
    for pair in low_rank_pairs(traced.flow):
        if not pair.base_leaves or any(leaf not in kept for leaf in pair.base_leaves):
            continue
        for use, start in ((pair.first, None), (pair.second, 0.0)):
            weight = use.components[0].weight
            whole = len(use.components) == 1 and not weight.members and weight.sizes_in(weight.leaf)
            shape = traced.shapes[weight.leaf]
            if whole == list(shape) and weight.leaf not in model.slices and not is_told(weight.leaf):
                reason = "a factor of a term that starts at zero and is added to a kept weight"
                path, layer = traced.paths[weight.leaf], layer_of[weight]
                vectors[weight.leaf] = Vector(path, shape, ADAPTER, reason, start, layer)
                kept.pop(weight.leaf, None)
    return dataclasses.replace(model, vectors=vectors, kept=kept)


def _is_zero(leaf: Any) -> bool:
    """Whether an array is known to be zero."""
    if isinstance(leaf, jax.ShapeDtypeStruct) or is_traced(leaf) or not hasattr(leaf, "dtype"):
        return False
    return not np.any(np.asarray(whole_array(leaf)))


def _others(
    traced: Traced, layers: tuple[tuple[Layer, Weight], ...]
) -> tuple[dict[int, Vector], dict[int, LeafRole], dict[int, tuple[Vector, ...]]]:
    """The leaves that are not layers' weights, or not with all of their elements.

    Returns those to draw, those to keep, and those whose slices are drawn.
    """
    shapes, found = traced.shapes, traced.roles
    structure = traced.structure
    layer_of = {use: layer for layer, weight in layers for use in weight.uses}
    cell_of = {layer: parts[0].cell for layer, weight in layers if (parts := structure.weights.get(weight))}
    drawn_elements = [0] * len(shapes)
    alike = {(region, leaf) for u in traced.analysis.weights for leaf, region in u.regions.items() if u.is_alike(leaf)}
    for region, leaf in alike:
        drawn_elements[leaf] += math.prod(stop - start for start, stop in region)
    vectors: dict[int, Vector] = {}
    kept: dict[int, LeafRole] = {}
    slices: dict[int, tuple[Vector, ...]] = {}
    adapters = _adapters(traced)
    for leaf, role in enumerate(found):
        path, shape = traced.paths[leaf], shapes[leaf]
        gates = structure.biases.get(leaf, ())
        if not jnp.issubdtype(jnp.result_type(traced.leaves[leaf]), jnp.inexact):
            kept[leaf] = LeafRole("integer", "no floating-point numbers")
        elif role.name in FROZEN:
            kept[leaf] = role
        elif leaf in adapters:
            kept[leaf] = LeafRole(ADAPTER, "a factor of a term that starts at zero and is added to a layer")
        elif drawn_elements[leaf] and drawn_elements[leaf] >= math.prod(shape):
            continue
        elif role.use is not None or gates:
            layer = layer_of.get(role.use) if role.use is not None else None
            cell = cell_of.get(layer) if layer is not None else None
            if gates:
                role, cell = LeafRole("bias", "bias", 0.0), gates[0].cell if cell is None else cell
            vectors[leaf] = Vector(path, shape, role.name, role.reason, role.start, layer, cell)
        elif role.slices:
            slices[leaf] = tuple(drawn_slices(path, role, layer_of, cell_of))
            drawn_elements[leaf] += sum(math.prod(vector.shape) for vector in slices[leaf])
            if drawn_elements[leaf] < math.prod(shape):
                named = "; ".join(f"{own.name}: {own.reason}" for _, own in role.slices if own.name in KEPT)
                kept[leaf] = LeafRole("unknown", f"parts of it keep their values: {named or 'nothing reads them'}")
        elif role.name in KEPT:
            kept[leaf] = role
        else:
            vectors[leaf] = Vector(path, shape, role.name, role.reason, role.start)
    return vectors, kept, slices
