"""The table of layers that tracing returns, as data and as text."""

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import jax

from jaxinit._reading._traced_activation import TracedActivation
from jaxinit._tabular import Tabular, add_path_column

UNREAD = "which activation follows is unknown"
"""How the note of a layer begins if its output goes into something that is not read."""


@dataclasses.dataclass(frozen=True)
class NamedActivation:
    """Replaces an activation that could not be pickled."""

    name: str

    def __call__(self, x: Any) -> Any:
        """Raises: what the function computes was not pickled."""
        raise TypeError(f"only the name of the activation {self.name} was pickled; trace the layers again to call it")

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One weight and what the program does with it.

    Attributes:
      path: path of the leaf, "/"-separated.
      paths: paths of all leaves that form one weight and are scaled alike, such as its real and its imaginary part.
      name: the path or paths, and the region of the leaf if the layer is not all of it.
      kind: "dense", "einsum" (batched or grouped, picked by data, or of several dimensions), "conv", "depthwise" (a sum
        of shifted products, channel by channel) or "embed" (rows looked up by data, or by a product with a comparison).
      shape: shape of the part of the leaf that is used, `region` of it.
      region: (start, stop) along each axis of the leaf.
      fan_in, fan_out: connections into and out of a unit, counted as the program computes them, with groups, dilation
        and batched contractions. A lookup reads one row: its fan-in is 1. If the output becomes the weight of the next
        product, as in a hypernetwork, the fan-in counts the inputs of that as well.
      receptive_field: taps of a convolution, 1 otherwise.
      feature_group_count: groups of a convolution, 1 otherwise.
      view: `shape` with every axis that plays two roles split; the axes that follow refer to it.
      in_axes, out_axes, batch_axes, stack_axes: axes of the view that are contracted, that are features of the output,
        along which there are independent weights, and that a `scan` runs over. Others are the receptive field. All are
        None if the program mixes the elements before use.
      stacked: how many layers of a scan the weight holds, 1 otherwise.
      uses: how often each of them is used in one call; a `while_loop` counts as two.
      activation: the elementwise function that follows, after terms that are added to the output and factors by
        channels; or None. Multiplication by constants alone does not count.
      skip: number of the innermost skip connection whose branch holds the layer, or None.
      position, branch_length: its position in that branch and how many layers the branch has, or None.
      role: "query", "key", "value" or "output" in attention, "forget" or "input" for the gates of recurrent cells;
        several for a fused weight; or None.
      has_bias: whether a bias is added to the output.
      note: why the weight cannot be scaled consistently, or that what follows is not read, or None.
      multiplier: without an activation, by how much numbers and dropout multiply the standard deviation of the output;
        1 for queries and keys, whose scores are made smaller on purpose.
    """

    path: str
    paths: tuple[str, ...]
    name: str
    kind: str
    shape: tuple[int, ...]
    region: tuple[tuple[int, int], ...]
    fan_in: int | float
    fan_out: int | float
    receptive_field: int
    feature_group_count: int
    view: tuple[int, ...] | None
    in_axes: tuple[int, ...] | None
    out_axes: tuple[int, ...] | None
    batch_axes: tuple[int, ...] | None
    stack_axes: tuple[int, ...] | None
    stacked: int
    uses: int
    activation: TracedActivation | None
    skip: int | None
    position: int | None
    branch_length: int | None
    role: str | None
    has_bias: bool
    note: str | None
    multiplier: float = 1.0

    def __getstate__(self) -> dict[str, Any]:
        """Its state; an activation that cannot be pickled is replaced by its name, which can no longer be called.

        Such activations contain primitives that JAX does not name anywhere, such as those that a user has added.
        """
        state = dict(vars(self))
        try:
            pickle.dumps(self.activation)
        except Exception:  # whatever one of its parts raises
            state["activation"] = NamedActivation(self.activation.name if self.activation else "")
        return state

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the activation by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"activation": self.activation.name if self.activation else None}


@dataclasses.dataclass(frozen=True)
class Unvisited:
    """A weight that no layer uses directly, and why."""

    path: str
    reason: str


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layers(Tabular):
    """The layers of a program in execution order; a sequence, and a pytree of static data.

    Attributes:
      layers: one row per weight, in order of first use.
      unvisited: weights that do not belong to any layer, and why: those in parts of the program that are not read,
        those chosen or multiplied by data, those mixed so that no scale could apply, and matrices whose role the
        program does not show.
      unused: paths of floating-point leaves on which no output depends.
    """

    layers: tuple[Layer, ...]
    unvisited: tuple[Unvisited, ...] = ()
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, key: int | str) -> Layer:
        """A layer by its number, or by its path."""
        if isinstance(key, str):
            found = [layer for layer in self.layers if key in layer.paths]
            if not found:
                raise KeyError(f"no layer has the path {key!r}; the paths are {[x.path for x in self.layers]}")
            return found[0]
        return self.layers[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "unvisited": [dataclasses.asdict(entry) for entry in self.unvisited],
            "unused": list(self.unused),
        }

    def _shown(self) -> Iterator[Any]:
        yield _table(self)
        for layer in self:
            if layer.note:
                yield f"* {layer.name}: {layer.note}"
        for entry in self.unvisited:
            yield f"not visited: {entry.path}: {entry.reason}"
        if self.unused:
            yield f"unused: {', '.join(self.unused)}"


def _table(layers: Layers) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(layers)} layers in execution order")
    columns = (
        "kind",
        "shape",
        "fan-in",
        "fan-out",
        "field",
        "groups",
        "stacked",
        "uses",
        "activation",
        "skip",
        "role",
    )
    add_path_column(table, "layer")
    for column in columns:
        table.add_column(column, justify="left" if column in ("kind", "activation", "role") else "right")
    for layer in layers:
        table.add_row(
            layer.name + (" *" if layer.note else ""),
            layer.kind,
            "×".join(map(str, layer.shape)),
            f"{layer.fan_in:g}",
            f"{layer.fan_out:g}",
            _unless_one(layer.receptive_field),
            _unless_one(layer.feature_group_count),
            _unless_one(layer.stacked),
            str(layer.uses),
            layer.activation.name if layer.activation else "–",
            "–" if layer.skip is None else f"{layer.skip} ({(layer.position or 0) + 1}/{layer.branch_length})",
            layer.role or "–",
        )
    return table


def _unless_one(number: int) -> str:
    return "–" if number == 1 else str(number)
