"""The rows of a report: what tracing knows of each layer, one row for each slice of a scanned stack."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxinit._diagnose._curves import curve
from jaxinit._reading import Depth, Layer, Portion, Traced, Unit, slice_places


@dataclasses.dataclass(frozen=True)
class Row:
    """What tracing knows of a row.

    Attributes:
      name: the layer, and the slice of a scanned stack.
      kind: of the layer.
      activation: name of the activation that follows, beyond a normalization too; several for gates; or None.
      expected_saturation: the share of elements without slope for standard normal pre-activations; all those of gates
        that keep the state of a recurrent cell or let into it, which may be open or shut by design (a chrono start).
      gradient_factor: by how much gradients grow through the activation if the weights keep signals; 1 without one.
      residual: whether the layer sits in a residual branch.
      role: of the layer, such as "query", or None.
      normalized: whether a normalization stands between the layer and its activation.
      recurrent: whether the layer is part of a recurrent cell.
      depth: how many layers data go through before this one.
      tower: number of the tower: rows of one tower come one after another, those of others beside them.
      before: the rows that come right before this one on the ways of the data to it.
    """

    name: str
    kind: str
    activation: str | None
    expected_saturation: float
    gradient_factor: float
    residual: bool
    role: str | None
    normalized: bool
    recurrent: bool
    depth: int
    tower: int
    before: tuple[int, ...] = ()


def first_rows(units: Sequence[Unit]) -> dict[Unit, int]:
    """The number of the first row of each unit, which has one for each slice."""
    counts = [unit.order.size for unit in units]
    return dict(zip(units, itertools.accumulate(counts, initial=0), strict=False))


def _before(depth: Depth, starts: Mapping[Unit, int]) -> tuple[int, ...]:
    """The numbers of the rows of the layers right before."""
    found: list[int] = []
    for before in depth.before:
        for part in before.site.parts:
            if part.unit in starts:
                (turns,) = np.nonzero(part.unit.order.reshape(-1) == before.turn)
                found.extend(starts[part.unit] + int(i) for i in turns)
    return tuple(dict.fromkeys(found))


def rows(unit: Unit, layer: Layer, traced: Traced, starts: Mapping[Unit, int]) -> list[Row]:
    """The rows of one unit; the first rows of all units are known."""
    meetings, structure = traced.meetings[unit], traced.structure
    cells = {site for cell in structure.cells for site in (*cell.state_rows, *cell.inputs)}
    gates = _gates(structure.weights.get(unit, ()))
    weights = [math.prod(m.value.shape) for m in meetings]
    curves = [curve(m.activation) for m in meetings]
    bent = [m.activation for m, c in zip(meetings, curves, strict=True) if not (c and c.straight)]
    names = dict.fromkeys(activation.name for activation in bent if activation is not None)

    def mean(values: Sequence[float]) -> float:
        return sum(w * x for w, x in zip(weights, values, strict=True)) / max(sum(weights), 1)

    flat = mean([c.flat if c else 0.0 for c in curves])
    factor = mean([c.gradient_factor if c else 1.0 for c in curves])
    return [
        Row(
            layer.name + "".join(f"[{i}]" for i in at),
            layer.kind,
            ", ".join(names) or None,
            gates + (1 - gates) * flat,
            factor,
            layer.skip is not None,
            layer.role,
            any(m.normalized for m in meetings),
            not cells.isdisjoint(unit.sites),
            depth.layers,
            depth.tower,
            _before(depth, starts),
        )
        for at, depth in zip(slice_places(unit), traced.depths[unit], strict=True)
    ]


def _gates(portions: Sequence[Portion]) -> float:
    """The share of a unit's columns that make gates of the state."""
    sizes = [(p.role in ("forget", "input"), len(p.places or (0,))) for p in portions]
    return sum(size for gate, size in sizes if gate) / max(sum(size for _, size in sizes), 1)
