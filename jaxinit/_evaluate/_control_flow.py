"""Loops and branches with layers inside, evaluated like the traced ones, with the states of weights passed through.

A weight that is used in each step is carried along; of a weight that a scan runs over, each step has its own slice.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._evaluate._rounding import Rounding
from jaxinit._evaluate._scaling import Scaling, State
from jaxinit._evaluate._visitor import Visitor
from jaxinit._reading import Analysis, Weight
from jaxinit._typing import Array

Run = Callable[[ir.Program, Sequence[Any], dict[Weight, State], Rounding | None], list[Any]]


class ControlFlow:
    """The control flow of one evaluation, which runs inner programs by `run`."""

    def __init__(self, analysis: Analysis, visitor: Visitor, scaling: Scaling, run: Run):
        self.analysis = analysis
        self.visitor = visitor
        self.scaling = scaling
        self.run = run

    def bind(
        self, equation: ir.Equation, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> list[Any] | None:
        """The outputs of a loop or a branch, `states` and `rounding` updated; None for another equation."""
        followed = rounding if rounding is not None and rounding.enters(equation) else None
        match equation:
            case ir.Scan():
                results, flags = self._scan(equation, arguments, states, followed)
            case ir.Switch():
                results, flags = self._switch(equation, arguments, states, followed)
            case ir.While():
                results, flags = self._while(equation, arguments, states, followed)
            case _:
                return None
        if rounding is not None:
            rounding.found(equation.outputs, flags)
        return results

    def _touched(self, *programs: ir.Program) -> list[Weight]:
        equations = {e for program in programs for e in ir.equations_of(program)}
        return [u for u in self.analysis.weights if any(s.finish in equations for s in u.uses)]

    def _carried(
        self, weights: Sequence[Weight], states: dict[Weight, State], *programs: ir.Program
    ) -> dict[Weight, State]:
        """The states that must pass through a loop or a branch with these programs inside, as arrays."""
        return {
            weight: jax.tree.map(jnp.asarray, states[weight] if weight in states else self._initial(weight, programs))
            for weight in weights
            if weight not in states or not self.visitor.is_final(states[weight])
        }

    def _initial(self, weight: Weight, programs: Iterable[ir.Program]) -> State:
        """The state before any use, one for each slice that scans inside the programs run over."""
        if not weight.stack:
            return self.visitor.initial(weight)
        inside = max((self._walks(weight, program) for program in programs), default=0)
        sizes = tuple(f.size for f in weight.stack[len(weight.stack) - inside :])
        return jax.tree.map(lambda x: jnp.broadcast_to(x, sizes + jnp.shape(x)), self.visitor.initial(weight))

    def _walks(self, weight: Weight, program: ir.Program) -> int:
        """How many nested scans run over a weight's stack there."""
        count = 0
        for equation in program.equations:
            for inner in ir.subprograms(equation):
                if weight in self._touched(inner):
                    own = isinstance(equation, ir.Scan) and equation.length != 1 and self._is_walked(weight, equation)
                    count = max(count, own + self._walks(weight, inner))
        return count

    def _is_walked(self, weight: Weight, equation: ir.Scan) -> bool:
        walked = equation.inputs[equation.num_consts + equation.num_carry :]
        return bool(weight.stack) and any(weight.leaf in self.analysis.of(atom).degrees for atom in walked)

    def _as_taken(
        self,
        values: Sequence[Any],
        atoms: Sequence[ir.Atom],
        taken_as: Sequence[ir.Variable],
        states: dict[Weight, State],
    ) -> list[Any]:
        """Values that enter or leave a program: parameters that continue as data are multiplied by their scales."""
        return [
            self.scaling.applied(x, self.analysis.of(atom), states) if self.analysis.of(variable).data else x
            for x, atom, variable in zip(values, atoms, taken_as, strict=True)
        ]

    def _scan(
        self, equation: ir.Scan, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> tuple[list[Any], list[Array]]:
        first, second = equation.num_consts, equation.num_consts + equation.num_carry
        arguments = self._as_taken(arguments, equation.inputs, equation.body.inputs, states)
        consts, carry, stacked = arguments[:first], arguments[first:second], arguments[second:]
        touched = self._touched(equation.body)
        walked = [u for u in touched if self._is_walked(u, equation)]
        carried = self._carried([u for u in touched if u not in walked], states, equation.body)
        # A loop of one step is not a factor of a stack, and so not a dimension of its states.
        given = {u: _with_step(states[u]) if equation.length == 1 else states[u] for u in walked if u in states}
        outside = {u: s for u, s in states.items() if u not in carried and u not in given}
        flags = rounding.flags(equation.inputs) if rounding is not None else []

        def body(carry: Any, slices: Any) -> Any:
            values, passing, of_carry = carry
            inputs, own = slices
            inside = None
            if rounding is not None:
                inside = rounding.within(equation, equation.body, [*flags[:first], *of_carry, *flags[second:]])
            inner = outside | dict(zip(carried, passing, strict=True)) | dict(zip(given, own, strict=True))
            results = self.run(equation.body, [*consts, *values, *inputs], inner, inside)
            found = inside.flags(equation.body.outputs) if inside is not None else []
            values, outputs = results[: equation.num_carry], results[equation.num_carry :]
            ends = equation.body.outputs[: equation.num_carry], equation.outputs[: equation.num_carry]
            values = self._as_taken(values, *ends, inner)
            passing = _arrays(inner, carried)
            carry = values, passing, found[: equation.num_carry]
            return carry, (outputs, _arrays(inner, walked), found[equation.num_carry :])

        start = ([jnp.asarray(x) for x in carry], list(carried.values()), flags[first:second])
        (values, passing, of_carry), (outputs, own, of_outputs) = lax.scan(
            body, start, (stacked, list(given.values())), length=equation.length, reverse=equation.reverse
        )
        if equation.length == 1:
            own = jax.tree.map(lambda x: x[0], own)
        states.update(zip(carried, passing, strict=True))
        states.update(zip(walked, own, strict=True))
        return [*values, *outputs], [*of_carry, *(jnp.all(x) for x in of_outputs)]

    def _switch(
        self, equation: ir.Switch, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> tuple[list[Any], list[Array]]:
        index, *operands = arguments
        carried = self._carried(self._touched(*equation.branches), states, *equation.branches)

        flags = rounding.flags(equation.inputs[1:]) if rounding is not None else []

        def branch(program: ir.Program) -> Any:
            def run(passing: Any, *operands: Any) -> Any:
                inner = states | dict(zip(carried, passing, strict=True))
                inside = rounding.within(equation, program, flags) if rounding is not None else None
                results = self.run(program, operands, inner, inside)
                results = self._as_taken(results, program.outputs, equation.outputs, inner)
                found = inside.flags(program.outputs) if inside is not None else []
                return results, _arrays(inner, carried), found

            return run

        branches = [branch(program) for program in equation.branches]
        results, passing, found = lax.switch(jnp.asarray(index, jnp.int32), branches, list(carried.values()), *operands)
        states.update(zip(carried, passing, strict=True))
        return list(results), list(found)

    def _while(
        self, equation: ir.While, arguments: list[Any], states: dict[Weight, State], rounding: Rounding | None
    ) -> tuple[list[Any], list[Array]]:
        first, second = equation.condition_consts, equation.condition_consts + equation.body_consts
        carries = equation.inputs[second:], equation.body.inputs[equation.body_consts :]
        arguments[second:] = self._as_taken(arguments[second:], *carries, states)
        condition_consts, consts, carry = arguments[:first], arguments[first:second], arguments[second:]
        carried = self._carried(self._touched(equation.body), states, equation.body)

        flags = rounding.flags(equation.inputs[first:]) if rounding is not None else []
        count = equation.body_consts

        def condition(carry: Any) -> Array:
            values, passing, _ = carry
            inner = states | dict(zip(carried, passing, strict=True))
            (result,) = self.run(equation.condition, [*condition_consts, *values], inner, None)
            return result

        def body(carry: Any) -> Any:
            values, passing, of_carry = carry
            inner = states | dict(zip(carried, passing, strict=True))
            inside = (
                rounding.within(equation, equation.body, [*flags[:count], *of_carry]) if rounding is not None else None
            )
            results = self.run(equation.body, [*consts, *values], inner, inside)
            results = self._as_taken(results, equation.body.outputs, carries[1], inner)
            found = inside.flags(equation.body.outputs) if inside is not None else []
            return results, _arrays(inner, carried), found

        start = ([jnp.asarray(x) for x in carry], list(carried.values()), flags[count:])
        values, passing, of_carry = lax.while_loop(condition, body, start)
        states.update(zip(carried, passing, strict=True))
        return self._as_taken(values, carries[1], equation.outputs, states), list(of_carry)


def _arrays(states: dict[Weight, State], weights: Iterable[Weight]) -> list[State]:
    """States in the form in which loops and branches pass them on."""
    return [jax.tree.map(jnp.asarray, states[weight]) for weight in weights]


def _with_step(state: State) -> State:
    """A state as that of a loop's only step."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], state)
