"""Whether a value becomes a concatenated ReLU, [relu(z), relu(−z)], decided by evaluating it at some points.

Reference: Shang et al., 2016, "Understanding and improving convolutional neural networks via concatenated rectified
linear units" (arXiv:1603.05201).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import outside_traces
from jaxinit._reading._flow import programs_of
from jaxinit._reading._layers import Analysis
from jaxinit._typing import Array

_POINTS = np.linspace(-7.5, 7.5, 61, dtype=np.float32)


def is_concatenated_relu(analysis: Analysis, start: ir.Variable) -> bool:
    """Whether a value becomes the concatenation [relu(z), relu(−z)], in either order."""
    program = next((p for p in programs_of(analysis.program) if any(start in e.outputs for e in p.equations)), None)
    points = jnp.asarray(_POINTS)
    # What is computed from the value, at some points: one function of it, or two that are concatenated.
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
        there = np.asarray(_POINTS, points.dtype)
        positive, negative = np.maximum(there, 0), np.maximum(-there, 0)
        return any(
            np.array_equal(a, x) and np.array_equal(b, y)
            for a, b in pairs
            for x, y in ((positive, negative), (negative, positive))
        )

    return bool(outside_traces(evaluate))


def _is_number(atom: ir.Atom) -> bool:
    return isinstance(atom, ir.Constant) and np.ndim(atom.value) == 0 and not ir.is_traced(atom.value)


def _number(atom: ir.Atom) -> Any:
    assert isinstance(atom, ir.Constant)
    return atom.value
