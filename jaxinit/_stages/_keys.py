"""When two stages are one program: equal equations with equal parameters, on arrays of equal shapes, wired alike.

A key compares by value. If a parameter cannot be compared by value, such as the function of a callback, there is no
key, and the stage is compiled for its program alone.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir

_IRRELEVANT = frozenset({"name", "debug_info", "debug_infos", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "rule"})
"""Parameters that do not change the result once derivatives and batches have been taken."""


_ONCE = frozenset({"PRNGImpl", "Mesh", "UnspecifiedValue"})
"""JAX classes without two equal objects, which identity compares: kinds of random keys, meshes, open shardings."""


class NotComparable(Exception):
    """An object cannot be compared by value."""


class _Same:
    """An object that is equal only to itself."""

    def __init__(self, x: Any):
        self.x = x

    def __hash__(self) -> int:
        return id(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.x is other.x


class Keys:
    """Keys of the stages of one program."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._known: list[Hashable] = []
        self._of: dict[ir.Equation, int] = {}
        self._jaxprs: dict[int, Hashable] = {}

    def short(
        self, equations: Sequence[ir.Equation], inputs: Sequence[ir.Atom], outputs: Sequence[ir.Variable]
    ) -> Hashable | None:
        """A key for comparison with other stages of this program; None if a stage has none."""
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
        """A key for comparison with stages of all programs."""
        first, parts, outputs = short
        equations = tuple((self._known[number], taken) for number, taken in parts[first:])
        return parts[:first], equations, outputs

    def _number(self, equation: ir.Equation) -> int:
        if equation not in self._of:
            made = tuple((v.shape, v.dtype) for v in equation.outputs)
            signature = equation.primitive, self._params(equation.params), made, ir.context_key(equation.context)
            if signature not in self._numbers:
                self._numbers[signature] = len(self._known)
                self._known.append(signature)
            self._of[equation] = self._numbers[signature]
        return self._of[equation]

    def _params(self, params: dict[str, Any]) -> Hashable:
        # A reduction holds its function as well as that function's program.
        skipped = {*_IRRELEVANT, "computation"} if "jaxpr" in params else _IRRELEVANT
        return tuple((name, self._value(x)) for name, x in sorted(params.items()) if name not in skipped)

    def _value(self, x: Any) -> Hashable:
        if x is None or isinstance(x, (bool, int, float, str, np.dtype)):
            return type(x), x
        if isinstance(x, ir.JAXPRS):
            if id(x) not in self._jaxprs:  # calls for equal shapes share it, and the equations keep it alive
                self._jaxprs[id(x)] = self._jaxpr(x)
            return self._jaxprs[id(x)]
        if type(x).__name__ in _ONCE:
            return _Same(x)
        if isinstance(x, (tuple, list)):
            return type(x), tuple(map(self._value, x))
        if isinstance(x, dict):
            return tuple((self._value(k), self._value(v)) for k, v in x.items())
        if isinstance(x, np.ndarray):
            return x.dtype.str, x.shape, x.tobytes()
        by_identity: Any = type(x).__hash__
        if by_identity is object.__hash__ and not isinstance(x, type):
            raise NotComparable
        hash(x)
        return type(x), x

    def _jaxpr(self, closed: Any) -> Hashable:
        """A program among the parameters of an equation, as of a loop."""
        jaxpr = getattr(closed, "jaxpr", closed)
        numbers: dict[Any, int] = {}

        def number(v: Any) -> Any:
            if isinstance(v, ir.Literal):
                return _constant(ir.Constant(v.val))
            return numbers.setdefault(v, len(numbers))

        def made(v: Any) -> Any:
            return number(v), getattr(v.aval, "shape", None), getattr(v.aval, "dtype", None)

        inputs = tuple(made(v) for v in (*jaxpr.constvars, *jaxpr.invars))
        consts = tuple(_known(x) for x in getattr(closed, "consts", ()))
        equations = tuple(
            (
                eqn.primitive,
                self._params(eqn.params),
                tuple(number(v) for v in eqn.invars),
                tuple(made(v) for v in eqn.outvars),
                ir.context_key(eqn.ctx),
            )
            for eqn in jaxpr.eqns
        )
        return inputs, consts, equations, tuple(number(v) for v in jaxpr.outvars)


def _constant(atom: ir.Atom) -> Hashable:
    assert isinstance(atom, ir.Constant)
    value = np.asarray(atom.value)
    return isinstance(atom.value, (bool, int, float, complex)), value.dtype.str, value.shape, value.tobytes()


def _known(x: Any) -> Hashable:
    """A small array that a loop closes over."""
    if ir.is_traced(x) or not hasattr(x, "dtype") or np.size(x) > 1024:
        raise NotComparable
    return _constant(ir.Constant(x))
