"""Recurrent cells: which kernels meet the state, and which of their outputs gate it.

A layer inside a loop whose weight is the same in all steps is part of a cell. It is recurrent if its data is the
state that the loop carries. A gate is a factor of the state on its way to the next one: the forget gate of an LSTM,
the update gate of a GRU; the input gate is a factor of the candidate that is added there.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import outside_traces
from jaxinit._reading._attention import Features
from jaxinit._reading._flow import Flow, Followed, Tracks, follow, programs_of, use_start
from jaxinit._reading._following import following_activation
from jaxinit._reading._layers import Use
from jaxinit._reading._origin import Origin


@dataclasses.dataclass(frozen=True)
class BiasLink:
    """A parameter that is added to values which come from layers.

    Attributes:
      leaf: index of the leaf.
      origin: where its elements come from, all of them or those of a segment of a concatenation.
      segment: (dimension, start) of the segment, or None.
      tracks: how the value it is added to comes from layers' outputs.
    """

    leaf: int
    origin: Origin
    segment: tuple[int, int] | None
    tracks: tuple[tuple[Use, Followed], ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recurrent cell.

    Attributes:
      state_rows: layers that the state goes into, with the rows (start, stop) of the weight that it meets.
      inputs: the other layers of the cell.
      forget: the parts of their outputs that gate the state, and the logit of the gate where they are zero.
      input: the parts that gate what is added to it.
      parts: all the parts that outputs are cut into.
      biases: the parameters that are added to them.
    """

    state_rows: dict[Use, tuple[int, int]]
    inputs: tuple[Use, ...]
    forget: tuple[tuple[Features, float], ...]
    input: tuple[Features, ...]
    parts: tuple[Features, ...]
    biases: tuple[BiasLink, ...]


def cells(flow: Flow) -> list[Cell]:
    """Every recurrent cell of a program, in execution order."""
    loops = [e for program in programs_of(flow.analysis.program) for e in program.equations]
    return [cell for e in loops if isinstance(e, (ir.Scan, ir.While)) for cell in _Cells(flow, e).found()]


class _Cells:
    def __init__(self, flow: Flow, loop: ir.Scan | ir.While):
        self.flow, self.body = flow, loop.body
        first = loop.num_consts if isinstance(loop, ir.Scan) else loop.body_consts
        count = loop.num_carry if isinstance(loop, ir.Scan) else len(loop.body.outputs)
        self.state = loop.body.inputs[first : first + count]
        self.next = loop.body.outputs[:count]
        equations = set(loop.body.equations)
        self.uses = [s for s in flow.analysis.uses.values() if s.equation in equations and s.repeats > 1]

    def found(self) -> Iterator[Cell]:
        state_rows = {s: rows for s in self.uses if (rows := self._state_rows(s)) is not None}
        if not state_rows:
            return
        use_of = {use_start(s): s for s in self.uses}
        tracks = follow(self.flow, self.body, use_of, others=False)
        forget: list[tuple[Features, float]] = []
        inputs: list[Features] = []
        for gate, product in self._products_with_state():
            for start, track in tracks.get(gate, {}).items():
                forget.append((Features.followed(use_of[start], track), self._logit_at_zero(gate)))
            kept = {b.indices for b, _ in forget}
            for other in self._input_gates(product, tracks):
                blocks = [Features.followed(use_of[start], track) for start, track in tracks[other].items()]
                inputs.extend(b for b in blocks if b.indices not in kept or b.use not in {x.use for x, _ in forget})
        yield Cell(
            state_rows,
            tuple(s for s in self.uses if s not in state_rows),
            tuple(forget),
            tuple(inputs),
            tuple(
                dict.fromkeys(
                    Features.followed(use_of[start], track)
                    for found in tracks.values()
                    for start, track in found.items()
                )
            ),
            tuple(self._biases(tracks, use_of)),
        )

    def _state_rows(self, use: Use) -> tuple[int, int] | None:
        """The rows of a layer's weight that meet the state: all, or those of its segment of a concatenation."""
        data, weight = use.data, use.weight
        rows = math.prod(weight.shape[d] for d in use.geometry.in_dims)
        if self._is_state(data, gated=True):
            return 0, rows
        equation = self.flow.producer.get(data)
        if equation is None or equation.primitive is not ir.concatenate_p or use.geometry.kind != "dense":
            return None
        axis, start = equation.params["dimension"], 0
        if data.shape[axis] != rows:
            return None
        for part in equation.inputs:
            if self._is_state(part, gated=True):
                return start, start + part.shape[axis]
            start += part.shape[axis]
        return None

    def _is_state(self, atom: ir.Atom, gated: bool = False) -> bool:
        """Whether a value is the carried state, moved or mapped elementwise; `gated`: or multiplied by anything."""
        while atom not in self.state:
            equation = self.flow.producer.get(atom)
            if equation is None or ir.subprograms(equation) or equation in self.flow.analysis.uses:
                return False
            data = self.flow.data_sources(atom)
            if gated and equation.primitive is ir.mul_p and len(data) == 2:
                return any(self._is_state(a) for a in data)
            if len(data) != 1:
                return False
            atom = data[0]
        return True

    def _is_distance_from_state(self, atom: ir.Atom) -> bool:
        """Whether a value is the state minus a candidate, or the reverse: n + z (h − n) is z h + (1 − z) n."""
        equation = self.flow.producer.get(atom)
        if equation is None or equation.primitive is not ir.sub_p:
            return False
        return sum(self._is_state(a) for a in equation.inputs) == 1 and all(map(self.flow.is_data, equation.inputs))

    def _products_with_state(self) -> Iterator[tuple[ir.Variable, ir.Variable]]:
        """Gates, and their products with the state that are terms of the next state."""
        for e in self.body.equations:
            if e.primitive is not ir.mul_p or not all(self.flow.is_data(a) for a in e.inputs):
                continue
            for gate, state in (e.inputs, e.inputs[::-1]):
                holds = self._is_state(state) or self._is_distance_from_state(state)
                if isinstance(gate, ir.Variable) and holds and not self._is_state(gate):
                    (product,) = e.outputs
                    if product in self._makes_next:
                        yield gate, product

    @functools.cached_property
    def _makes_next(self) -> frozenset[ir.Atom]:
        """What the next state is computed from, back to the layers and the state."""
        ends = {use_start(s) for s in self.uses} | set(self.state)
        return frozenset(self.flow.upstream(self.next, lambda a: a in ends))

    def _input_gates(self, product: ir.Variable, tracks: Tracks) -> Iterator[ir.Variable]:
        """The factor of the candidate that is added to the gated state, if it is between 0 and 1."""
        for addition in self.body.readers.get(product, []):
            for other in addition.inputs if addition is not None and addition.primitive is ir.add_p else ():
                equation = self.flow.producer.get(other)
                if other is product or equation is None or equation.primitive is not ir.mul_p:
                    continue
                for gate in equation.inputs:
                    if isinstance(gate, ir.Variable) and gate in tracks and self._is_gate(gate):
                        yield gate

    def _preactivation(self, value: ir.Variable) -> ir.Variable:
        """What a value is an elementwise function of."""
        while (e := self.flow.producer.get(value)) is not None and e.primitive in ir.ELEMENTWISE:
            moving = [a for a in e.inputs if isinstance(a, ir.Variable) and a.shape == e.outputs[0].shape]
            if len(moving) != 1:
                break
            value = moving[0]
        return value

    def _activation_at(self, gate: ir.Variable, points: list[float]) -> np.ndarray | None:
        start = self._preactivation(gate)
        if start is gate:
            return None
        activation = following_activation(self.flow.analysis, self.body, start)
        if activation is None:
            return None
        values: np.ndarray = outside_traces(lambda: np.asarray(activation(jnp.asarray(points, jnp.float32))))
        return values

    def _is_gate(self, gate: ir.Variable) -> bool:
        values = self._activation_at(gate, [-30.0, 30.0])
        return values is not None and bool(np.allclose(values, [0.0, 1.0], atol=1e-3))

    def _logit_at_zero(self, gate: ir.Variable) -> float:
        """By how much the program itself opens the gate: the logit of its value at zero."""
        values = self._activation_at(gate, [0.0])
        if values is None or not 0 < values[0] < 1:
            return 0.0
        return round(float(np.log(values[0] / (1 - values[0]))), 5)

    def _biases(self, tracks: Tracks, use_of: dict[ir.Variable, Use]) -> Iterator[BiasLink]:
        for e in self.body.equations:
            if e.primitive not in (ir.add_p, ir.add_any_p):
                continue
            for value, parameter in (e.inputs, e.inputs[::-1]):
                if value not in tracks or self.flow.is_data(parameter):
                    continue
                where = tuple((use_of[v], track) for v, track in tracks[value].items())  # type: ignore[index]
                added, start = self.flow.analysis.of(parameter), 0
                for i, part in enumerate(added.parts):
                    segment = None if added.segments is None else (added.segments.dimension, start)
                    for leaf, origin in part.origins.items():
                        if part.degrees.get(leaf) == 1:
                            yield BiasLink(leaf, origin, segment, where)
                    start += 0 if added.segments is None else added.segments.sizes[i]
