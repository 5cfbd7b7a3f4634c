"""The value of a leaf at which a product with a function of it has no effect: f(θ) = 1.

The function is evaluated on a grid as the program computes it; if it is monotone, bisection finds the value.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import outside_traces
from jaxinit._reading._flow import Flow
from jaxinit._reading._products import depends_on

_RANGE = 16.0
_MARGIN = 1e-3
_MOVES = (
    ir.reshape_p,
    ir.transpose_p,
    ir.squeeze_p,
    ir.broadcast_p,
    ir.slice_p,
    ir.split_p,
    ir.unstack_p,
    ir.rev_p,
    *ir.IDENTITIES,
)


def neutral_value(flow: Flow, atom: ir.Atom, leaf: int) -> float | None:
    """The θ with f(θ) = 1 for a value f of the program that is computed from a leaf θ alone, element by element.

    Factors that are computed from other leaves count as one. None if the rest is not computed from the leaf alone,
    or not element by element, if f is not monotone, or if it never is one.
    """
    steps_and_function = _function(flow, atom, leaf)
    if steps_and_function is None:
        return None
    steps, function = steps_and_function
    if not steps:
        return 1.0

    def solve() -> float | None:
        low, high = -_RANGE, _RANGE
        for _ in range(4):
            points = np.linspace(low, high, 129)
            values = function(points)
            if not np.all(np.isfinite(values)):
                return None
            above = values >= 1
            steps = np.diff(values)
            monotone = (steps >= 0).all() or (steps <= 0).all()
            # A sigmoid that rounds to one never equals one.
            if not monotone or above.all() or not above.any() or (high == _RANGE and values.max() < 1 + _MARGIN):
                return None
            at = int(np.flatnonzero(above[1:] != above[:-1])[0])
            low, high = points[at], points[at + 1]
        found = float((low + high) / 2)
        tidy = round(found, 3)
        return tidy if function(np.array([tidy]))[0] == 1 else found

    return outside_traces(solve)


def _function(
    flow: Flow, atom: ir.Atom, leaf: int
) -> tuple[list[ir.Equation], Callable[[np.ndarray], np.ndarray]] | None:
    """A value as a function of the elements of one leaf, and the steps that it takes; None if it is not one."""
    steps: list[ir.Equation] = []
    seen: set[ir.Atom] = set()
    moved: dict[ir.Atom, ir.Atom] = {}

    def visit(atom: ir.Atom) -> bool:
        if atom in seen:
            return True
        seen.add(atom)
        if isinstance(atom, ir.Constant):
            return _number(atom) is not None
        if atom is flow.analysis.program.inputs[leaf]:
            return True
        equation = flow.producer.get(atom)
        sources = flow.sources(atom)
        if equation is None or (equation.primitive in _MOVES and not _converts_kind(equation)):
            if not sources:
                return False
            moved[atom] = sources[0] if equation is None else equation.inputs[0]
            return (equation is not None or len(sources) == 1) and visit(moved[atom])
        if equation.primitive in (ir.mul_p, ir.div_p):
            others = [x for x in equation.inputs if not depends_on(flow, x, leaf) and flow.analysis.of(x).degrees]
            if others:
                moved[atom] = next(x for x in equation.inputs if x not in others)
                return visit(moved[atom])
        if equation.primitive not in ir.ELEMENTWISE or not all(map(visit, equation.inputs)):
            return False
        steps.append(equation)
        return True

    if not depends_on(flow, atom, leaf) or not visit(atom):
        return None

    def function(points: np.ndarray) -> np.ndarray:
        values: dict[ir.Atom, Any] = {flow.analysis.program.inputs[leaf]: jnp.asarray(points, jnp.float32)}

        def read(atom: ir.Atom) -> Any:
            while atom in moved:
                atom = moved[atom]
            if isinstance(atom, ir.Constant):
                return jnp.full(points.shape, _number(atom), atom.dtype)
            return values[atom]

        for equation in steps:
            inputs = [x.astype(v.dtype) for x, v in zip(map(read, equation.inputs), equation.inputs, strict=True)]
            values.update(zip(equation.outputs, equation.bind_here(*inputs), strict=True))
        return np.asarray(read(atom), np.float64)

    return steps, function


def _converts_kind(equation: ir.Equation) -> bool:
    """Whether a cast drops the fractional part."""
    return ir.is_floating(equation.inputs[0]) != ir.is_floating(equation.outputs[0])


def _number(constant: ir.Constant) -> Any:
    """The number that all elements of a constant equal, or None."""
    if not ir.is_known(constant):
        return None
    values = np.unique(np.asarray(constant.value))
    return values[0] if values.size == 1 and np.isrealobj(values) else None
