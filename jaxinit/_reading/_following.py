"""The activation that follows a layer: the elementwise function between its pre-activation and whatever comes next."""

import dataclasses
import functools
import heapq
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._activations import NAMES, activation_function
from jaxinit._eager import outside_traces
from jaxinit._reading._flow import programs_of
from jaxinit._reading._units import Analysis
from jaxinit._typing import Array

_POINTS = np.linspace(-7.5, 7.5, 61, dtype=np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class TracedActivation:
    """An elementwise function cut out of a program: call it, or take `jaxinit.gain` of it.

    Two are equal if they are the same steps, so the gain of a hundred layers alike is computed once.
    """

    equations: tuple[ir.Equation, ...]
    argument: ir.Atom
    result: ir.Atom

    def __call__(self, x: Array) -> Array:
        """The function of an array of any shape, computed in the precision of the array."""
        x = jnp.asarray(x)
        environment: dict[ir.Atom, Any] = {self.argument: x}

        def dtype_of(atom: ir.Atom) -> Any:
            return x.dtype if jnp.issubdtype(atom.dtype, jnp.floating) else atom.dtype

        def read(atom: ir.Atom) -> Array:
            value = environment[atom] if atom in environment else _number(atom)
            return jnp.broadcast_to(jnp.asarray(value, dtype_of(atom)), x.shape)

        for equation in self.equations:
            if _keeps_numbers(equation):
                (result,) = equation.outputs
                environment[result] = read(equation.inputs[0]).astype(dtype_of(result))
            else:
                results = equation.bind_here(*map(read, equation.inputs))
                environment.update(zip(equation.outputs, results, strict=True))
        return environment[self.result]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedActivation) and self._steps == other._steps

    def __hash__(self) -> int:
        return hash(self._steps)

    @functools.cached_property
    def _steps(self) -> tuple[Any, ...]:
        """All that `__call__` depends on, without the variables of the program."""
        numbered: dict[ir.Atom, int] = {self.argument: 0}

        def read(atom: ir.Atom) -> Any:
            if atom in numbered:
                return numbered[atom]
            number = np.asarray(_number(atom))
            return number.dtype.str, number.tobytes()

        steps = []
        for equation in self.equations:
            names = () if _keeps_numbers(equation) else equation.params
            params = tuple((name, _hashable(equation.params[name])) for name in names)
            kinds = tuple("f" if ir.is_floating(v) else str(v.dtype) for v in equation.outputs)
            steps.append((str(equation.primitive), params, tuple(map(read, equation.inputs)), kinds))
            numbered.update((v, len(numbered) + i) for i, v in enumerate(equation.outputs))
        return (*steps, read(self.result))

    @property
    def name(self) -> str:
        """The name of the activation it equals, or the primitives it is made of."""
        return _name(self)

    @functools.cached_property
    def only_multiplies(self) -> bool:
        """Whether it is x → c x for some number c."""

        def compare() -> bool:
            try:
                values = np.asarray(self(jnp.asarray(_POINTS)), np.float64)
            except (TypeError, ValueError, NotImplementedError):
                return False
            return np.allclose(values, _POINTS * (values[-1] / _POINTS[-1]), rtol=1e-4, atol=0)

        return outside_traces(compare)

    def _known_name(self) -> str | None:
        points = jnp.asarray(_POINTS)
        try:
            values = self(points)
        except (TypeError, ValueError, NotImplementedError):  # primitives that real numbers do not go through
            return None
        return next((n for n in NAMES if np.allclose(values, activation_function(n)(points), 1e-4, 1e-5)), None)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _keeps_numbers(equation: ir.Equation) -> bool:
    """Whether an equation changes no number, but where it lies or how it is stored."""
    return equation.primitive is ir.broadcast_p or equation.primitive in ir.IDENTITIES


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


@functools.lru_cache(maxsize=256)
def _name(activation: TracedActivation) -> str:
    known = outside_traces(activation._known_name)
    return known or "·".join(str(e.primitive) for e in activation.equations)


class _Reading:
    """What is asked of a program for every layer in it: who reads a value, and which values are one known number."""

    def __init__(self, program: ir.Program):
        self.readers: dict[ir.Atom, list[int]] = {}
        self.producer: dict[ir.Atom, int] = {}
        self.uniform: set[ir.Atom] = set()
        for i, equation in enumerate(program.equations):
            if _spreads_number(equation, self.uniform):
                self.uniform.update(equation.outputs)
            self.producer.update(dict.fromkeys(equation.outputs, i))
            for atom in set(equation.inputs):
                self.readers.setdefault(atom, []).append(i)


_reading = functools.lru_cache(maxsize=8)(_Reading)


def following_activation(analysis: Analysis, program: ir.Program, start: ir.Variable) -> TracedActivation | None:
    """The elementwise function that all of `start` goes through next; None if it goes on as it is, or divides."""
    reading = _reading(program)
    inside: dict[ir.Atom, None] = {start: None}
    chosen: list[ir.Equation] = []
    consumed_outside: set[ir.Atom] = {atom for atom in program.outputs if isinstance(atom, ir.Variable)}
    pending = list(reading.readers.get(start, []))
    seen = set(pending)
    heapq.heapify(pending)
    while pending:  # in execution order
        equation = program.equations[heapq.heappop(pending)]
        elementwise = (
            equation.primitive in ir.ELEMENTWISE
            and equation not in analysis.sites
            and all(atom in inside or atom in reading.uniform or _is_number(atom) for atom in equation.inputs)
        )
        if not elementwise:
            consumed_outside.update(atom for atom in equation.inputs if atom in inside)
            continue
        chosen.append(equation)
        inside.update(dict.fromkeys(equation.outputs))
        for index in {i for output in equation.outputs for i in reading.readers.get(output, [])} - seen:
            seen.add(index)
            heapq.heappush(pending, index)
    exits = [atom for atom in inside if atom in consumed_outside]
    if not exits or exits[0] is start or _avoids(exits[0], exits[1:], start, chosen):
        return None
    kept: set[int] = set()
    needed = [exits[0]]
    while needed:
        producer = reading.producer.get(atom := needed.pop())
        if producer is not None and producer not in kept and atom is not start:
            kept.add(producer)
            needed.extend(program.equations[producer].inputs)
    equations = tuple(program.equations[i] for i in sorted(kept))
    if all(e.primitive in ir.IDENTITIES for e in equations):
        return None
    return TracedActivation(equations, start, exits[0])


def is_concatenated_relu(analysis: Analysis, start: ir.Variable) -> bool:
    """Whether a value goes on as the concatenation [relu(z), relu(−z)], or the other way round."""
    program = next((p for p in programs_of(analysis.program) if any(start in e.outputs for e in p.equations)), None)
    points = jnp.asarray(_POINTS)
    # What is made of the value, at some points: one function of it, or two that are concatenated.
    known: dict[ir.Atom, tuple[Array, ...]] = {start: (points,)}

    def evaluate() -> bool:
        for equation in program.equations if program else ():
            inputs = equation.inputs
            if equation.primitive is ir.concatenate_p and len(inputs) == 2 and all(a in known for a in inputs):
                known[equation.outputs[0]] = known[inputs[0]] + known[inputs[1]]
            elif (
                equation.primitive in ir.ELEMENTWISE
                and any(a in known for a in inputs)
                and all(a in known or _is_number(a) for a in inputs)
            ):
                sides = max(len(known.get(a, ())) for a in inputs)
                branches = [
                    [known[a][i] if a in known else jnp.full_like(points, _number(a)) for a in inputs]
                    for i in range(sides)
                ]
                known[equation.outputs[0]] = tuple(equation.bind(*branch)[0] for branch in branches)
        pairs = [values for values in known.values() if len(values) == 2]
        positive, negative = jnp.maximum(points, 0), jnp.maximum(-points, 0)
        return any(
            np.array_equal(a, x) and np.array_equal(b, y)
            for a, b in pairs
            for x, y in ((positive, negative), (negative, positive))
        )

    return bool(outside_traces(evaluate))


def _avoids(first: ir.Atom, others: list[ir.Atom], start: ir.Atom, equations: list[ir.Equation]) -> bool:
    """Whether one of the other exits can be reached from the start other than through the first."""
    reached: set[ir.Atom] = {start}
    for equation in equations:
        if not reached.isdisjoint(equation.inputs):
            reached.update(out for out in equation.outputs if out is not first)
    return not reached.isdisjoint(others)


def _spreads_number(equation: ir.Equation, uniform: set[ir.Atom]) -> bool:
    """Whether all elements of the outputs are one number, known from the program alone."""
    computes = equation.primitive is ir.broadcast_p or equation.primitive in ir.ELEMENTWISE
    return computes and all(atom in uniform or _is_number(atom) for atom in equation.inputs)


def _is_number(atom: ir.Atom) -> bool:
    return isinstance(atom, ir.Constant) and np.ndim(atom.value) == 0 and not ir.is_traced(atom.value)


def _number(atom: ir.Atom) -> Any:
    assert isinstance(atom, ir.Constant)
    return atom.value
