"""The matrices that are drawn separately: layers' weights, or some rows and columns of one."""

import dataclasses
import math

from jaxinit._reading import Block, Layer, Traced, Weight


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix that is drawn separately: a layer's weight, or some rows and columns of it.

    Attributes:
      layer: the layer; for a part of its weight, with the fans of the part.
      role: see `Layer.role`.
      cell: number of the recurrent cell that it belongs to, or None.
      meets_state: whether it is applied to the state of that cell.
      in_encoder: whether the memory of cross attention is computed from it.
      is_gain: whether it multiplies a normalised kernel along one axis.
      rows, columns: (start, stop), and the columns, in the layout (fan-in, fan-out); None for all.
    """

    layer: Layer
    role: str | None
    cell: int | None
    meets_state: bool
    in_encoder: bool
    is_gain: bool
    rows: tuple[int, int] | None = None
    columns: tuple[int, ...] | None = None


def matrices_of(traced: Traced, layer: Layer, weight: Weight, fused: bool) -> tuple[Matrix, ...]:
    structure = traced.structure
    blocks = structure.weights.get(weight, ())
    in_encoder = weight.uses[0] in structure.encoder
    first = blocks[0] if blocks else Block(None)
    n_in = matrix_fan_in(layer)
    state = first.state_rows
    rows = [None] if state in (None, (0, n_in)) else [(0, state[0]), state, (state[1], n_in)]
    columns = [None] if fused or not blocks else [p.indices for p in blocks]
    named = [blocks[i].role if blocks and not (fused and len(blocks) > 1) else None for i in range(len(columns))]
    matrices = []
    own = [None] if fused or not blocks else [p.onward for p in blocks]
    for role, column, onward in zip(named, columns, own, strict=True):
        for row in rows:
            if row is not None and row[0] == row[1]:
                continue
            part = layer
            if row is not None or column is not None:
                part = dataclasses.replace(
                    layer,
                    name=layer.name + _suffix(role, row, column),
                    fan_in=layer.fan_in if row is None else row[1] - row[0],
                    fan_out=layer.fan_out if column is None else len(column),
                )
            if onward is not None:
                part = dataclasses.replace(part, activation=onward.activation, multiplier=onward.multiplier)
            meets_state = state is not None and row in (None, state)
            matrices.append(
                Matrix(part, role, first.cell, meets_state, in_encoder, _is_gain(layer, weight), row, column)
            )
    return tuple(matrices)


def _is_gain(layer: Layer, weight: Weight) -> bool:
    """Whether a leaf with at most one axis multiplies a kernel of other leaves, which has more elements than it."""
    if not set(weight.first_component.dependence.degrees) - set(weight.regions):
        return False
    component, use = weight.first_component, weight.uses[0]
    made = math.prod(use.weight.shape)
    if component.size is not None:
        made = made * component.size // sum(p.size or 0 for p in use.components)
    slice_size = math.prod(layer.shape) // layer.stacked
    return sum(n > 1 for n in layer.shape) - (layer.stacked > 1) <= 1 and made > slice_size


def _suffix(role: str | None, row: tuple[int, int] | None, columns: tuple[int, ...] | None) -> str:
    named = "" if columns is None else role or f"columns {_range(columns)}"
    met = "" if row is None else f"rows {row[0]}:{row[1]}"
    return f"[{', '.join(x for x in (met, named) if x)}]"


def _range(indices: tuple[int, ...]) -> str:
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    strided = step > 1 and indices == tuple(range(indices[0], indices[-1] + 1, step))
    return f"{indices[0]}:{indices[-1] + 1}" + (f":{step}" if strided else "")


def matrix_fan_in(layer: Layer) -> int:
    """The input features of a layer's kernel, without the taps."""
    if layer.view is None or layer.in_axes is None:
        return layer.shape[-2] if len(layer.shape) > 1 else 1
    return math.prod(layer.view[a] for a in layer.in_axes)


def transposed_features(layer: Layer) -> tuple[int, int] | None:
    """The input and output features of one group of a transposed convolution, if its stride shows them; or None."""
    n_in = matrix_fan_in(layer)
    if layer.kind != "conv" or layer.fan_in >= layer.receptive_field * n_in:
        return None
    return n_in, round(layer.fan_out / layer.receptive_field)
