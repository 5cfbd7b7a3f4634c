"""Where activations are applied to the outputs of layers: directly, or after other operations in between.

Between a layer and its activation there may be a normalization, which computes statistics of the output and combines
them with it again element by element; gains and offsets; one addition of other data, as in a recurrent cell, where
layers of the input and of the state are added; and cuts of a fused output into gates. Elements are followed through all
of these to the activation.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jax import lax

from jaxinit import _program as ir
from jaxinit._reading._consumers import consumers_of
from jaxinit._reading._flow import Flow, Followed, Tracks, follow_move, programs_of
from jaxinit._reading._following import following_activation
from jaxinit._reading._layers import Component, Use, Weight
from jaxinit._reading._origin import Factor
from jaxinit._reading._traced_activation import TracedActivation
from jaxinit._typing import Array

_ADDITIONS = (ir.add_p, ir.add_any_p)


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationInput:
    """Where an activation is applied to the output of a weight, or to part of it.

    Attributes:
      weight: the weight.
      value: the input of the activation.
      activation: the activation; None for a weight without one, whose value is the layer's output.
      samples, features: the dimensions of the value along which samples and positions are, and those of the units.
      normalized: whether statistics of the output come in between.
      segment: (dimension, start, stop) of the value that belongs to the weight, or None for all of it.
    """

    weight: Weight
    value: ir.Variable
    activation: TracedActivation | None
    samples: tuple[int, ...]
    features: tuple[int, ...]
    normalized: bool
    segment: tuple[int, int, int] | None

    def of(self, value: Array) -> Array:
        """The part that belongs to the weight."""
        if self.segment is None:
            return value
        dimension, start, stop = self.segment
        return lax.slice_in_dim(value, start, stop, axis=dimension)


def activation_inputs(flow: Flow, leaves: Sequence[Any] = ()) -> dict[Weight, list[ActivationInput]]:
    """For each unit of a program, where activations are applied to it; its own output if there are none."""
    found: dict[Weight, list[ActivationInput]] = {weight: [] for weight in flow.analysis.weights}
    for program in programs_of(flow.analysis.program):
        for activation_input in _ActivationInputs(flow, program, leaves).activation_inputs():
            found[activation_input.weight].append(activation_input)
    return found


class _ActivationInputs:
    """One walk through a program in execution order.

    Attributes:
      tracks: value → output of a layer → how the elements of the value come from it.
      added: values to which other data have been added.
      normalized: values that statistics have gone into.
      statistics: values that are computed only from the tracked ones.
      taken: outputs of layers that other layers have used directly: a sum in which they are added to other data again
        no longer belongs to them.
    """

    def __init__(self, flow: Flow, program: ir.Program, leaves: Sequence[Any]):
        self.flow, self.program, self.leaves = flow, program, leaves
        analysis = flow.analysis
        self.consumers = consumers_of(analysis)
        self.use_of: dict[ir.Variable, Use] = {
            e.outputs[0]: analysis.uses[e] for e in program.equations if e in analysis.uses
        }
        self.tracks: Tracks = {v: {v: Followed.from_start(v.shape)} for v in self.use_of}
        self.added: set[ir.Atom] = set()
        self.normalized: set[ir.Atom] = set()
        self.statistics: set[ir.Atom] = set()
        self.taken: set[ir.Variable] = set()
        self.entries = {entry.equation for use in analysis.uses.values() for entry in use.entries}
        # Intermediate values of a call with a custom derivative are invisible outside of it.
        self.hidden: set[ir.Atom] = set()
        for call in program.calls:
            if not any(e in analysis.uses for e in call.inlined):
                self.hidden |= {v for e in call.inlined for v in e.outputs} - set(call.results)

    def activation_inputs(self) -> Iterator[ActivationInput]:
        met: set[ir.Variable] = set()
        for equation in self.program.equations:
            if equation in self.entries:
                known = [a for a in equation.inputs if isinstance(a, ir.Variable)]
                self.taken.update(v for a in known for v in self.tracks.get(a, ()))
            if not ir.subprograms(equation) and equation not in self.flow.analysis.uses:
                self._follow(equation)
            for value in equation.outputs:
                if value not in self.tracks or value in self.hidden or equation in self.consumers.idle:
                    continue
                activation = following_activation(self.flow.analysis, self.program, value, self.leaves)
                if activation is not None:
                    tracks = self.tracks.pop(value)
                    met |= set(tracks)
                    for start, track in tracks.items():
                        yield from self._at(self.use_of[start], track, value, activation)
        for start, use in self.use_of.items():
            if start not in met:
                yield from self._at(use, Followed.from_start(start.shape), start, None)

    def _follow(self, equation: ir.Equation) -> None:
        data = [a for a in equation.inputs if self.flow.is_data(a) and a not in self.consumers.free]
        tracked = [a for a in data if isinstance(a, ir.Variable) and a in self.tracks]
        strange = [a for a in data if a not in self.tracks and a not in self.statistics]
        moved = follow_move(equation, self.tracks)
        if moved:
            self.tracks.update(moved)
        elif tracked and equation.primitive in ir.ELEMENTWISE:
            self._join(equation, tracked, strange)
        elif data and not strange and self._sums_up(equation):
            self.statistics.update(equation.outputs)
        for marks in (self.added, self.normalized):
            if not marks.isdisjoint(data):
                marks.update(equation.outputs)
        if tracked and not self.statistics.isdisjoint(data):
            self.normalized.update(equation.outputs)

    def _sums_up(self, equation: ir.Equation) -> bool:
        """Whether an equation computes statistics; subtracting a maximum is for safety, not normalization."""
        contracts = equation.primitive in ir.CONTRACTIONS and equation not in self.consumers.idle
        return equation.primitive is not ir.reduce_max_p and not contracts

    def _join(self, equation: ir.Equation, tracked: list[ir.Variable], strange: list[ir.Atom]) -> None:
        (output,) = equation.outputs
        starts = [set(self.tracks[a]) for a in tracked]
        gone: set[ir.Variable] = set()
        if strange or any(x != starts[0] for x in starts):
            # One addition only: further on, a stream sums many branches, and it is not they that are activated.
            tracked = [a for a in tracked if a not in self.added]
            if equation.primitive not in _ADDITIONS:
                return
            self.added.add(output)
            gone = self.taken
        same = [a for a in tracked if a.shape == output.shape]
        tracks = {v: track for a in same for v, track in self.tracks[a].items() if v not in gone}
        if tracks:
            self.tracks[output] = tracks

    def _at(
        self, use: Use, track: Followed, value: ir.Variable, activation: TracedActivation | None
    ) -> Iterator[ActivationInput]:
        weights = set(use.placed.values())
        features = tuple(d for d, dim in enumerate(track.dims) if any(f.axis in weights for f in dim))
        samples = tuple(d for d in range(len(value.shape)) if d not in features)
        for component, segment in _segments(use, track):
            yield ActivationInput(
                component.weight, value, activation, samples, features, value in self.normalized, segment
            )


def _segments(use: Use, track: Followed) -> Iterator[tuple[Component, tuple[int, int, int] | None]]:
    """The components of a use that a value comes from, and where in the value they are, if not all of it."""
    axis = use.segment_dim
    for component in use.components:
        if axis is None or component.size is None:
            yield component, None
            continue
        indices, stop = track.indices(axis), component.start + component.size
        own = [component.start <= i < stop for i in indices]
        along = [d for d, dim in enumerate(track.dims) if any(f.axis == axis for f in dim)]
        if all(own) or (any(own) and (len(along) != 1 or not _is_run(track.dims[along[0]]))):
            yield component, None
        elif any(own):
            base = track.base[axis]
            yield component, (along[0], max(component.start - base, 0), min(stop - base, len(indices)))


def _is_run(dim: tuple[Factor, ...]) -> bool:
    """Whether the elements along a dimension are neighbours where they come from."""
    return len(dim) == 1 and dim[0].stride == 1
