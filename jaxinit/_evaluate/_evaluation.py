"""Evaluates a program once, stopping at each layer.

A visitor sees the output of every layer, decides the factor of its weight, and keeps a state for each weight.
Values that depend on no data are computed from the original parameters; where data meets them they are multiplied
by the scales decided so far, to the power of their degree. So every use of a leaf sees the scale that its first use
decided, and the result is that of the program with scaled parameters.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._evaluate._biases import cut, segment, total
from jaxinit._evaluate._control_flow import ControlFlow
from jaxinit._evaluate._rounding import Rounding
from jaxinit._evaluate._scaling import Scaling, State
from jaxinit._evaluate._visitor import Visitor, Watch, WeightUse
from jaxinit._reading import Analysis, Component, Factor, Use, Weight
from jaxinit._stages import tracing_once
from jaxinit._typing import Array


class Evaluation:
    """The evaluation of one analysed program with one visitor.

    Args:
      analysis: of the program.
      visitor: what happens at layers.
      scale_factors: for each weight, the factors along which its scale varies.
      differentiable: weights keep their scales, and functions with custom derivatives are called unchanged.
      watched: values that depend on data, and what each adds to the states: a function of (value, states).
      rounding: whether to look for layers whose data is only rounding, and tell the visitor.
    """

    def __init__(
        self,
        analysis: Analysis,
        visitor: Visitor,
        scale_factors: dict[Weight, tuple[Factor, ...]],
        differentiable: bool = False,
        watched: Mapping[ir.Atom, Watch] = MappingProxyType({}),
        rounding: bool = False,
    ):
        self.analysis = analysis
        self.visitor = visitor
        self.scale_factors = scale_factors
        self.differentiable = differentiable
        self.watched = watched
        self.rounding = rounding
        self._scaling = Scaling([] if differentiable else analysis.weights, visitor.scale, scale_factors)
        self._control_flow = ControlFlow(analysis, visitor, self._scaling, self._program)
        # Where weights are used: which input is one, and the weights whose scale the layer's output gets instead.
        self._weights: dict[ir.Equation, tuple[int, frozenset[Weight]]] = {}
        for use in analysis.uses.values():
            own = frozenset(component.weight for component in use.components) | _apart(analysis, use)
            self._weights.update((entry.equation, (entry.weight, own)) for entry in use.entries)
            if use.lookup is not None:
                self._weights[use.lookup.equation] = use.lookup.weight, own
        # If there are several biases, all are added with the last; until then, the sum is the output alone.
        self._additions = {b.equation: b.value for use in analysis.uses.values() for b in use.biases}
        self._holding_uses: dict[ir.Equation, bool] = {}

    def run(self, values: Sequence[Array], states: dict[Weight, State]) -> tuple[list[Array], dict[Weight, State]]:
        """The outputs of the program, and the state of every weight."""
        states = dict(states)
        program = self.analysis.program
        outputs = self._program(program, values, states, Rounding(self.analysis, program) if self.rounding else None)
        return outputs, states

    def _program(
        self, program: ir.Program, values: Sequence[Array], states: dict[Weight, State], rounding: Rounding | None
    ) -> list[Array]:
        environment: dict[ir.Variable, Array] = dict(zip(program.inputs, values, strict=True))

        def read(atom: ir.Atom) -> Any:
            return atom.value if isinstance(atom, ir.Constant) else environment[atom]

        for atom in program.inputs:
            if atom in self.watched:
                states.update(self.watched[atom](environment[atom], states))
        # Values that depend on no data come first, so that a bias is ready when its layer needs it. Exceptions are
        # values computed from other outputs of an equation that meets data, such as the number of steps of a loop of
        # layers. Equations that are recomputed in the backward pass stay together.
        regions = {e: r for r in program.recomputed for e in r.inlined} if self.differentiable else {}
        late = []
        unknown: set[ir.Atom] = set()
        for equation in program.equations:
            if equation in regions or self._meets_data(equation) or not unknown.isdisjoint(equation.inputs):
                late.append(equation)
                unknown.update(equation.outputs)
            else:
                environment.update(zip(equation.outputs, equation.bind(*map(read, equation.inputs)), strict=True))
        calls = self._calls(program)
        for region, equations in itertools.groupby(late, regions.get):
            together = list(equations)
            if region is None:
                self._late(together, environment, calls, states, rounding)
            else:
                self._recomputed(region, together, program, environment, calls, states)
        return [read(atom) for atom in program.outputs]

    def _recomputed(
        self,
        region: ir.Recomputed,
        equations: Sequence[ir.Equation],
        program: ir.Program,
        environment: dict[ir.Variable, Array],
        calls: Mapping[ir.Equation, ir.Call],
        states: dict[Weight, State],
    ) -> None:
        """Evaluates what `jax.checkpoint` recomputes in the backward pass, so that it is recomputed here too."""
        inside = set(equations)
        used = {atom for e in program.equations if e not in inside for atom in e.inputs} | set(program.outputs)
        used |= {atom for e, call in calls.items() if e not in inside for atom in call.inputs}
        before = set(environment)

        def run(given: dict[Weight, State]) -> tuple[dict[int, Array], dict[Weight, State]]:
            own, inner = dict(environment), dict(given)
            self._late(equations, own, calls, inner, None)
            made = {i: own[v] for i, v in enumerate(own) if v not in before and v in used}
            order.extend(own)
            return made, {weight: state for weight, state in inner.items() if state is not given.get(weight)}

        order: list[ir.Variable] = []
        with tracing_once():
            made, changed = region.apply(run)(states)
        environment.update((order[i], value) for i, value in made.items())
        states.update(changed)

    def _late(
        self,
        equations: Sequence[ir.Equation],
        environment: dict[ir.Variable, Array],
        calls: Mapping[ir.Equation, ir.Call],
        states: dict[Weight, State],
        rounding: Rounding | None,
    ) -> None:
        """Evaluates equations that meet data, and updates values and states."""

        def read(atom: ir.Atom) -> Any:
            return atom.value if isinstance(atom, ir.Constant) else environment[atom]

        seen: set[ir.Atom] = set()
        for equation in equations:
            if equation in calls:
                call = calls[equation]
                # Some results may be arguments, or constants.
                results = call.bind(*map(read, call.inputs)) if call.outputs[0] not in environment else []
                environment.update(zip(call.outputs, results, strict=False))
                environment.update(
                    (atom, environment[v])
                    for atom, v in zip(call.results, call.outputs, strict=True)
                    if isinstance(atom, ir.Variable)
                )
                made = call.results
            else:
                arguments = [read(atom) for atom in equation.inputs]
                if equation in self.analysis.uses:
                    arguments += [read(bias.value) for bias in self.analysis.uses[equation].biases]
                results = self._equation(equation, arguments, states, rounding)
                environment.update(zip(equation.outputs, results, strict=True))
                made = equation.outputs
            for atom in made:
                if atom in self.watched and atom not in seen:
                    seen.add(atom)
                    states.update(self.watched[atom](read(atom), states))

    def _calls(self, program: ir.Program) -> dict[ir.Equation, ir.Call]:
        """Equation → the call that replaces it, for calls without layers inside."""
        if not self.differentiable:
            return {}
        whole = [call for call in program.calls if not any(self._is_of_layer(e) for e in call.inlined)]
        return {equation: call for call in whole for equation in call.inlined}

    def _is_of_layer(self, equation: ir.Equation) -> bool:
        ends = equation in self.analysis.uses or equation in self._additions
        return ends or equation in self._weights or self._uses_within(equation)

    def _meets_data(self, equation: ir.Equation) -> bool:
        return (
            equation in self.analysis.uses
            or self._uses_within(equation)
            or any(self.analysis.of(v).data for v in (*equation.inputs, *equation.outputs))
        )

    def _uses_within(self, equation: ir.Equation) -> bool:
        if equation not in self._holding_uses:
            inner = (e for p in ir.subprograms(equation) for e in ir.equations_of(p))
            self._holding_uses[equation] = any(e in self.analysis.uses for e in inner)
        return self._holding_uses[equation]

    def _equation(
        self, equation: ir.Equation, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> list[Any]:
        use = self.analysis.uses.get(equation)
        if use is not None:
            return [self._use(use, equation, arguments, states, rounding)]
        results = self._without_use(equation, arguments, states, rounding)
        if rounding is not None:
            rounding.follow(equation, arguments, results)
        return results

    def _without_use(
        self, equation: ir.Equation, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> list[Any]:
        if equation in self._additions:
            return [self._without_bias(equation, arguments)]
        if self._uses_within(equation) or (rounding is not None and rounding.enters(equation)):
            with tracing_once() if self.differentiable else contextlib.nullcontext():
                outputs = self._control_flow.bind(equation, arguments, states, rounding)
            if outputs is not None:
                return outputs
        if not any(self.analysis.of(v).data for v in equation.outputs):
            # These values are the same for any choice of the data; scales are applied where they are used.
            return equation.bind(*arguments)
        return self._bound(equation, arguments, states)

    def _bound(self, equation: ir.Equation, arguments: Sequence[Any], states: dict[Weight, State]) -> list[Any]:
        """The outputs for scaled leaves; the scale of a layer's own weight is applied at the end of the layer."""
        weight, own = self._weights.get(equation, (None, frozenset[Weight]()))
        scaled = [
            self._scaling.applied(x, self.analysis.of(atom), states, but=own if i == weight else frozenset())
            for i, (x, atom) in enumerate(zip(arguments, equation.inputs, strict=True))
        ]
        return equation.bind(*scaled)

    # Layers

    def _use(
        self,
        use: Use,
        equation: ir.Equation,
        arguments: list[Any],
        states: dict[Weight, State],
        rounding: Rounding | None,
    ) -> Array:
        operands, added = arguments[: len(equation.inputs)], arguments[len(equation.inputs) :]
        bias = noise = None
        if use.biases:
            u = self._without_bias(equation, operands)
            terms = [
                self._scaling.applied(value, self.analysis.of(bias.value), states)
                for bias, value in zip(use.biases, added, strict=True)
            ]
            bias, noise = (total(use, terms, jnp.shape(u), is_noise) for is_noise in (False, True))
        else:
            (u,) = self._bound(equation, operands, states)
        answer = rounding.known.get(use.data) if rounding is not None and noise is None else None
        if rounding is not None and answer is not None:
            rounding.known[equation.outputs[0]] = rounding.through(answer, bias)
        outputs, start = [], 0
        for component in use.components:
            used = self.weight_use(use, component, u.ndim, None if answer is None else answer())
            piece, bias_piece = u, bias
            if component.size is not None:
                assert use.segment_dim is not None
                if component.start > start:
                    outputs.append(segment(u, bias, use.segment_dim, start, component.start))
                start = component.start + component.size
                piece = cut(u, use.segment_dim, component.start, start)
                bias_piece = None if bias is None else cut(bias, use.segment_dim, component.start, start)
            states[component.weight], output = self.visitor.use(used, states.get(component.weight), piece, bias_piece)
            outputs.append(output)
        if use.segment_dim is not None and start < u.shape[use.segment_dim]:
            outputs.append(segment(u, bias, use.segment_dim, start, u.shape[use.segment_dim]))
        output = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=use.segment_dim)
        return output if noise is None else output + noise

    def _without_bias(self, equation: ir.Equation, arguments: Sequence[Array]) -> Array:
        """The other term of a sum or difference with a bias."""
        bias = self._additions[equation]
        i, u = next((i, x) for i, x in enumerate(arguments) if equation.inputs[i] is not bias)
        return -u if i == 1 and equation.primitive is ir.sub_p else u

    def weight_use(self, use: Use, component: Component, rank: int, is_rounding: Array | None = None) -> WeightUse:
        """How the output of a use, of this rank, corresponds to the scales of one of its weights."""
        factors = self.scale_factors[component.weight]
        dims: list[tuple[Factor, ...]] = [()] * rank
        if component.origin is not None:
            for source, target in use.placed.items():
                dims[target] = component.origin.dims[source]
        return WeightUse(component.weight, use, component, factors, tuple(dims), is_rounding)


def _apart(analysis: Analysis, use: Use) -> frozenset[Weight]:
    """Other weights of the same leaf where the program mixes elements: none of theirs are among those of this layer."""
    leaves = {leaf for component in use.components if component.origin is None for leaf in component.weight.regions}
    return frozenset(weight for weight in analysis.weights if not leaves.isdisjoint(weight.regions))
