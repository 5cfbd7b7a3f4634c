"""Functions with many equal parts, such as equal layers: JAX processes each kind of part once.

JAX traces, differentiates and transposes a program equation by equation in Python, which takes up to a millisecond for
each. A jitted function that is called a hundred times with equal shapes is processed once. So equations that come again
at equal distances and are wired alike become calls of one jitted function.
"""

import collections
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinit._program import _primitives as primitives
from jaxinit._program._ir import Atom, Constant, Equation, Program, Variable, is_floating, is_known
from jaxinit._program._tracing import as_written

_TOGETHER = 4
"""This many equations in a row that come again suggest a period."""
_CANDIDATES = 8
"""How many periods are tried, the most frequent first."""
_TIMES = 3
"""What comes this often is worth a function of its own."""


class _Piece(NamedTuple):
    """Equations, what they take and give that others make or read, and what computes them."""

    compute: Callable[..., list[Any]]
    inputs: tuple[Atom, ...]
    outputs: tuple[Variable, ...]


def repeated(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function, traced for these arguments, with equal parts as calls of one jitted function."""
    program, structure = as_written(function, *arguments)
    pieces = list(_pieces(program))

    def run(*arguments: Any) -> Any:
        environment: dict[Atom, Any] = dict(zip(program.inputs, jax.tree.leaves(arguments), strict=True))

        def read(atom: Atom) -> Any:
            return atom.value if isinstance(atom, Constant) else environment[atom]

        for piece in pieces:
            environment.update(zip(piece.outputs, piece.compute(*map(read, piece.inputs)), strict=True))
        return jax.tree.unflatten(structure, list(map(read, program.outputs)))

    return run


def _pieces(program: Program) -> Iterator[_Piece]:
    """All equations of a program in order; those of a part that comes again are together."""
    equations = program.equations
    numbers = list(map(_Kinds().number, equations))
    last: dict[Atom, int] = {a: i for i, equation in enumerate(equations) for a in equation.inputs}
    last.update(dict.fromkeys(program.outputs, len(equations)))
    compiled: dict[Hashable, Callable[..., list[Any]]] = {}
    done = 0
    for start, stop, period in _runs(numbers, 0, len(equations)):
        first = start + _best_cut(equations, last, start, period)
        for equation in equations[done:first]:
            yield _Piece(equation.bind, equation.inputs, equation.outputs)
        done = first
        while done + period <= stop:
            own = equations[done : done + period]
            inputs, outputs, wiring = _wired(own, last, done + period)
            key = tuple(numbers[done : done + period]), wiring
            if key not in compiled:
                compiled[key] = jax.jit(_computing(own, inputs, outputs))
            yield _Piece(compiled[key], inputs, outputs)
            done += period
    for equation in equations[done:]:
        yield _Piece(equation.bind, equation.inputs, equation.outputs)


def _runs(numbers: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, period) of the stretches of a sequence that repeat themselves, in order."""
    before: dict[tuple[int, ...], int] = {}
    distances: collections.Counter[int] = collections.Counter()
    for i in range(start, stop - _TOGETHER + 1):
        some = tuple(numbers[i : i + _TOGETHER])
        if some in before:
            distances[i - before[some]] += 1
        before[some] = i
    best = start, start, 1
    for period, _ in distances.most_common(_CANDIDATES):
        since = start
        for i in range(start, stop - period + 1):
            if i == stop - period or numbers[i] != numbers[i + period]:
                run = since, i + period, period
                if i - since >= (_TIMES - 1) * period and run[1] - run[0] > best[1] - best[0]:
                    best = run
                since = i + 1
    if best[0] < best[1]:
        yield from _runs(numbers, start, best[0])
        yield best
        yield from _runs(numbers, best[1], stop)


def _best_cut(equations: Sequence[Equation], last: dict[Atom, int], start: int, period: int) -> int:
    """The place within a period that the fewest values cross on their way to later equations."""
    crossing = [0] * (2 * period + 1)
    for i in range(2 * period):
        for v in equations[start + i].outputs:
            end = last.get(v, 0) - start + 1
            if end > i:
                crossing[i + 1] += 1
                crossing[min(end, 2 * period)] -= 1
    total, counts = 0, []
    for change in crossing[: 2 * period]:
        total += change
        counts.append(total)
    return min(range(period), key=lambda i: counts[period + i])


def _wired(
    equations: Sequence[Equation], last: dict[Atom, int], end: int
) -> tuple[tuple[Atom, ...], tuple[Variable, ...], Hashable]:
    """The inputs and outputs of equations, in the order of their first use, and how the equations are wired."""
    numbers: dict[Atom, int] = {}
    inputs: list[Atom] = []
    wiring: list[Hashable] = []
    for equation in equations:
        for atom in equation.inputs:
            if atom not in numbers and not _is_written_in(atom):
                numbers[atom] = len(numbers)
                inputs.append(atom)
        wiring.append(tuple(numbers.get(a) for a in equation.inputs))
        for v in equation.outputs:
            numbers[v] = len(numbers)
    outputs = tuple(v for equation in equations for v in equation.outputs if last.get(v, 0) >= end)
    return tuple(inputs), outputs, (tuple(wiring), tuple(numbers[v] for v in outputs))


def _computing(
    equations: Sequence[Equation], inputs: Sequence[Atom], outputs: Sequence[Variable]
) -> Callable[..., list[Any]]:
    def run(*values: Any) -> list[Any]:
        environment: dict[Atom, Any] = dict(zip(inputs, values, strict=True))
        for equation in equations:
            written_in = (a for a in equation.inputs if isinstance(a, Constant) and a not in environment)
            environment.update((a, a.value) for a in written_in)
            taken = [environment[a] for a in equation.inputs]
            environment.update(zip(equation.outputs, equation.bind(*taken), strict=True))
        return [environment[v] for v in outputs]

    return run


def _is_written_in(atom: Atom) -> bool:
    """Whether a value is a number that is part of the program; arrays are inputs, like computed values."""
    return isinstance(atom, Constant) and not atom.shape and is_known(atom)


class _Kinds:
    """Numbers for equations; two have the same number if they do the same, whatever they are wired to."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._jaxprs: dict[int, Hashable] = {}

    def number(self, equation: Equation) -> int:
        """The number of an equation."""
        taken = tuple(_number(a.value) if _is_written_in(a) else (a.shape, a.dtype) for a in equation.inputs)  # type: ignore[union-attr]
        made = tuple((v.shape, v.dtype) for v in equation.outputs)
        params = dict(equation.params)
        derivative = None
        if equation.primitive is primitives.custom_jvp_call_p and all(map(is_floating, equation.inputs)):
            # The rule is a new object for each call, even if it computes the same.
            derivative = self._derivative(equation)
            params.pop("jvp_jaxpr_fun", None)
        around = primitives.context_key(equation.context)
        kind = equation.primitive, self._params(params), taken, made, derivative, around
        return self._numbers.setdefault(kind, len(self._numbers))

    def _derivative(self, equation: Equation) -> Hashable:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in equation.inputs]
        closed = jax.make_jaxpr(lambda values, tangents: jax.jvp(equation.bind, values, tangents))(shapes, shapes)
        return self._written_out(closed, ("jvp_jaxpr_fun",))

    def _params(self, params: dict[str, Any]) -> Hashable:
        return tuple((name, self._comparable(x)) for name, x in params.items())

    def _comparable(self, x: Any) -> Hashable:
        """A parameter, by value where it has one."""
        if isinstance(x, primitives.JAXPRS):
            if id(x) not in self._jaxprs:  # JAX keeps one for calls of a function with equal shapes
                self._jaxprs[id(x)] = self._written_out(x)
            return self._jaxprs[id(x)]
        try:
            hash(x)
        except TypeError:
            return id(x)
        return type(x), x

    def _written_out(self, closed: Any, but: Container[str] = ()) -> Hashable:
        """A program among the parameters of an equation; what it closes over is compared by identity.

        Parameters `but` are left out: a rule for derivatives calls the function again that it is the rule of.
        """
        jaxpr = getattr(closed, "jaxpr", closed)
        numbers: dict[Any, int] = {}

        def number(v: Any) -> Hashable:
            return _number(v.val) if isinstance(v, primitives.Literal) else numbers.setdefault(v, len(numbers))

        inputs = tuple((number(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
        equations = tuple(
            (
                eqn.primitive,
                self._params({name: x for name, x in eqn.params.items() if name not in but}),
                tuple(map(number, eqn.invars)),
                tuple((number(v), v.aval) for v in eqn.outvars),
                primitives.context_key(eqn.ctx),
            )
            for eqn in jaxpr.eqns
        )
        return inputs, tuple(map(id, getattr(closed, "consts", ()))), equations, tuple(map(number, jaxpr.outvars))


def _number(value: Any) -> Hashable:
    array = np.asarray(value)
    return type(value), array.dtype, array.shape, array.tobytes()
