"""The rows of a report: what is known of each layer from tracing, with one row for each slice of a scanned stack."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxinit._measuring._activation_facts import curve
from jaxinit._reading import KEPT, ActivationInput, Block, Depth, Layer, Traced, Weight, slice_indices


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of a row from tracing.

    Attributes:
      name: the layer, and the slice of a scanned stack.
      kind: of the layer.
      activation: name of the activation that follows, possibly after a normalization; several for gates; or None.
      expected_saturation: the share of elements without slope for standard normal pre-activations. All elements of
        gates that keep the state of a recurrent cell or let data into it count, and of decays, since these may be open
        or shut by design (as with chrono biases).
      gradient_factor: by how much gradients grow through the activation if the weights keep signals; 1 without one.
      residual: whether the layer is in a residual branch.
      role: of the layer, such as "query", or None.
      normalized: whether there is a normalization between the layer and its activation.
      recurrent: whether the layer belongs to a recurrent cell.
      depth: how many layers data pass through before this one.
      tower: number of the tower: rows of one tower follow one another, those of others run beside them.
      before: the rows directly before this one on the paths of the data to it.
      skip, position, branch_length: the skip connection whose branch holds the layer, its position in that branch, and
        how many layers the branch has; or None.
      fresh: whether all inputs of the layer come through a normalization.
      last: whether no other layer uses its output: a readout, or a head.
      weighs: whether its whole output weighs other data by positive numbers, as gates, step sizes and decays do, or
        becomes such a weight through other layers: it may start as small as one likes.
      beside: whether its output is added to that of another layer of the same data, as noise is to a mean.
      aside: whether its output is used only by branches, and by the layers beside it: layers that condition them.
      numbers: how many output numbers the layer has for this batch, in one use.
      paced: whether leaves that are not drawn multiply its weight, as step sizes and decays do.
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
    skip: int | None = None
    position: int | None = None
    branch_length: int | None = None
    fresh: bool = False
    last: bool = False
    numbers: int = 0
    weighs: bool = False
    beside: bool = False
    aside: bool = False
    paced: bool = False


def first_rows(weights: Sequence[Weight]) -> dict[Weight, int]:
    """The number of the first row of each weight, which has one for each slice."""
    counts = [weight.order.size for weight in weights]
    return dict(zip(weights, itertools.accumulate(counts, initial=0), strict=False))


def _before(depth: Depth, starts: Mapping[Weight, int]) -> tuple[int, ...]:
    """The numbers of the rows of the layers right before."""
    found: list[int] = []
    for before in depth.before:
        for component in before.use.components:
            if component.weight in starts:
                (turns,) = np.nonzero(component.weight.order.reshape(-1) == before.turn)
                found.extend(starts[component.weight] + int(i) for i in turns)
    return tuple(dict.fromkeys(found))


def all_rows(traced: Traced, layers: Mapping[Weight, Layer]) -> tuple[Row, ...]:
    """The rows of a program, in order."""
    starts = first_rows(traced.analysis.weights)
    found = [row for weight, layer in layers.items() for row in rows(weight, layer, traced, starts)]
    takers: dict[int, list[int]] = {}
    for i, row in enumerate(found):
        for before in row.before:
            takers.setdefault(before, []).append(i)
    aside: set[int] = set()
    for i in sorted(range(len(found)), key=lambda i: -found[i].depth):
        # A layer whose output goes into a stream of many layers is `last` here, before its users are known.
        known = takers.get(i, []) if found[i].last else []
        if known and not found[i].residual and all(found[j].residual or j in aside for j in known):
            aside.add(i)
    weighing = {i for i, row in enumerate(found) if row.weighs}
    for i in sorted(range(len(found)), key=lambda i: -found[i].depth):
        if i in takers and found[i].last and weighing.issuperset(takers[i]):
            weighing.add(i)
    return tuple(
        dataclasses.replace(row, last=row.last and i not in takers, aside=i in aside, weighs=i in weighing)
        for i, row in enumerate(found)
    )


def rows(weight: Weight, layer: Layer, traced: Traced, starts: Mapping[Weight, int]) -> list[Row]:
    """The rows of one unit; the first rows of all units are known."""
    activation_inputs, structure = traced.activation_inputs[weight], traced.structure
    cells = {use for cell in structure.cells for use in (*cell.state_rows, *cell.inputs)}
    gates = 1.0 if decays(activation_inputs, traced) else _gates(structure.weights.get(weight, ()))
    weights = [math.prod(m.value.shape) for m in activation_inputs]
    curves = [curve(m.activation) for m in activation_inputs]
    met = list(zip(activation_inputs, curves, strict=True))
    bent = [m.activation for m, c in zip(activation_inputs, curves, strict=True) if not (c and c.straight)]
    names = dict.fromkeys(activation.name for activation in bent if activation is not None)

    def mean(values: Sequence[float]) -> float:
        return sum(w * x for w, x in zip(weights, values, strict=True)) / max(sum(weights), 1)

    numbers = math.prod(weight.uses[0].finish.outputs[0].shape)
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
            any(m.normalized for m in activation_inputs),
            not cells.isdisjoint(weight.uses),
            depth.layers,
            depth.tower,
            _before(depth, starts),
            layer.skip,
            layer.position,
            layer.branch_length,
            bool(depth.before) and all(before.normalized for before in depth.before),
            not depth.joins,
            numbers,
            all(c is not None and c.positive and traced.onwards.weighs(m.value) for m, c in met),
            _is_beside(weight, traced),
            paced=_is_paced(weight, traced),
        )
        for at, depth in zip(slice_indices(weight), traced.depths[weight], strict=True)
    ]


def _is_beside(weight: Weight, traced: Traced) -> bool:
    (use, *more), added = weight.uses, traced.onwards.is_added
    if more or not added(use.finish.outputs[0]):
        return False
    others = [other for other in traced.analysis.uses.values() if other.data is use.data and other is not use]
    return any(added(other.finish.outputs[0]) for other in others)


def _is_paced(weight: Weight, traced: Traced) -> bool:
    others = weight.first_component.dependence.degrees.keys() - weight.regions.keys()
    return any(traced.roles[leaf].name in KEPT for leaf in others)


def decays(activation_inputs: Sequence[ActivationInput], traced: Traced) -> bool:
    """Whether an activation of a layer's output multiplies the state of a loop."""
    met = [m.value for m in activation_inputs if m.activation is not None]
    return bool(met) and all(traced.onwards.keeps(value) for value in met)


def _gates(blocks: Sequence[Block]) -> float:
    """The share of a weight's columns whose outputs gate the state."""
    sizes = [(p.role in ("forget", "input"), len(p.indices or (0,))) for p in blocks]
    return sum(size for gate, size in sizes if gate) / max(sum(size for _, size in sizes), 1)
