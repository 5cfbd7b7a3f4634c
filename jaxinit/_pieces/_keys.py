"""When two pieces are one program: equal equations with equal parameters, on arrays of equal shapes, wired alike.

A key compares by value. What has none that could be compared, such as a function among the parameters of a callback,
gives no key, and the piece is compiled for its program alone.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir

_IRRELEVANT = frozenset({"name", "debug_info", "debug_infos", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"})
"""Parameters that do not change what is computed once derivatives have been taken."""


class NotComparable(Exception):
    """Something has no value to compare by."""


class Keys:
    """Keys of the pieces of one program."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._known: list[Hashable] = []
        self._of: dict[ir.Equation, int] = {}
        self._contexts: dict[int, Hashable] = {}

    def short(
        self, equations: Sequence[ir.Equation], inputs: Sequence[ir.Atom], outputs: Sequence[ir.Variable]
    ) -> Hashable | None:
        """A key for comparison with other pieces of this program; None if a piece has none."""
        numbers: dict[ir.Atom, int] = {atom: i for i, atom in enumerate(inputs)}
        parts: list[Any] = [(atom.shape, atom.dtype) for atom in inputs]
        try:
            for equation in equations:
                taken = tuple(numbers[a] if a in numbers else _constant(a) for a in equation.inputs)
                for v in equation.outputs:
                    numbers[v] = len(numbers)
                parts.append((self._number(equation), taken))
        except (NotComparable, TypeError):
            return None
        return len(inputs), tuple(parts), tuple(numbers[v] for v in outputs)

    def full(self, short: Any) -> Hashable:
        """A key for comparison with pieces of all programs."""
        first, parts, outputs = short
        equations = tuple((self._known[number], taken) for number, taken in parts[first:])
        return tuple((shape, str(dtype)) for shape, dtype in parts[:first]), equations, outputs

    def _number(self, equation: ir.Equation) -> int:
        if equation not in self._of:
            context = equation.context
            if id(context) not in self._contexts:
                self._contexts[id(context)] = repr(context)
            made = tuple((v.shape, str(v.dtype)) for v in equation.outputs)
            signature = equation.primitive, _params(equation.params), made, self._contexts[id(context)]
            if signature not in self._numbers:
                self._numbers[signature] = len(self._known)
                self._known.append(signature)
            self._of[equation] = self._numbers[signature]
        return self._of[equation]


def _constant(atom: ir.Atom) -> Hashable:
    assert isinstance(atom, ir.Constant)
    value = np.asarray(atom.value)
    return type(atom.value), value.dtype.str, value.shape, value.tobytes()


def _context(context: Any) -> Hashable:
    return repr(context)


def _params(params: dict[str, Any]) -> Hashable:
    return tuple((name, _value(x)) for name, x in sorted(params.items()) if name not in _IRRELEVANT)


def _value(x: Any) -> Hashable:
    if x is None or isinstance(x, (bool, int, float, str, np.dtype)):
        return type(x), x
    if isinstance(x, ir.JAXPRS):
        return _jaxpr(x)
    if isinstance(x, (tuple, list)):
        return type(x), tuple(map(_value, x))
    if isinstance(x, dict):
        return tuple((_value(k), _value(v)) for k, v in x.items())
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    by_identity: Any = type(x).__hash__
    if by_identity is object.__hash__ and not isinstance(x, type):
        raise NotComparable
    try:
        hash(x)
    except TypeError:
        raise NotComparable from None
    return type(x), x


def _jaxpr(closed: Any) -> Hashable:
    """A program among the parameters of an equation, as of a loop."""
    jaxpr = getattr(closed, "jaxpr", closed)
    numbers: dict[Any, int] = {}

    def number(v: Any) -> Any:
        if isinstance(v, ir.Literal):
            return _constant(ir.Constant(v.val))
        return numbers.setdefault(v, len(numbers))

    inputs = tuple((number(v), str(v.aval)) for v in (*jaxpr.constvars, *jaxpr.invars))
    consts = tuple(_known(x) for x in getattr(closed, "consts", ()))
    equations = tuple(
        (
            eqn.primitive,
            _params(eqn.params),
            tuple(number(v) for v in eqn.invars),
            tuple((number(v), str(v.aval)) for v in eqn.outvars),
            _context(eqn.ctx),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, consts, equations, tuple(number(v) for v in jaxpr.outvars)


def _known(x: Any) -> Hashable:
    """A small array that a loop closes over."""
    if ir.is_traced(x) or not hasattr(x, "dtype") or np.size(x) > 1024:
        raise NotComparable
    return _constant(ir.Constant(x))
