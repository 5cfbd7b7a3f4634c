"""Equations computed by NumPy with the same results as by XLA, up to rounding: those that measurements consist of.

An equation that is not in the tables of `_numpy_elementwise` and `_numpy_arrays`, or is of a form that NumPy computes
differently, is compiled.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._stages import _numpy_arrays as _numpy_arrays  # registers its rules
from jaxinit._stages._numpy_elementwise import TABLE, Compute


def computation(equation: ir.Equation) -> Compute | None:
    """NumPy's computation of an equation; None if there is none."""
    make = TABLE.get(equation.primitive)
    if make is None or any(ir.is_key(atom) for atom in (*equation.inputs, *equation.outputs)):
        return None
    return make(equation)


def program_computation(program: ir.Program) -> Callable[..., list[Any]] | None:
    """NumPy's computation of a flat program; None if some equation has none."""
    numbers: dict[ir.Atom, int] = {}
    values: list[Any] = []

    def slot(atom: ir.Atom) -> int:
        if atom not in numbers:
            numbers[atom] = len(values)
            values.append(as_numpy(atom) if isinstance(atom, ir.Constant) else None)
        return numbers[atom]

    inputs = [slot(atom) for atom in program.inputs]
    steps = []
    for equation in program.equations:
        compute = computation(equation)
        if compute is None:
            return None
        taken = [slot(atom) for atom in equation.inputs]
        steps.append((compute, taken, [slot(atom) for atom in equation.outputs], equation.primitive.multiple_results))
    outputs = [slot(atom) for atom in program.outputs]

    def run(*arguments: Any) -> list[Any]:
        environment = list(values)
        for i, argument in zip(inputs, arguments, strict=True):
            environment[i] = argument
        for compute, taken, made, several in steps:
            result = compute(*[environment[i] for i in taken])
            if several:
                for i, x in zip(made, result, strict=True):
                    environment[i] = x
            else:
                environment[made[0]] = result
        return [environment[i] for i in outputs]

    return run


def as_numpy(constant: ir.Constant) -> Any:
    """The value of a constant, in its dtype."""
    return np.asarray(constant.value, constant.dtype)


def is_small(equation: ir.Equation, most: int) -> bool:
    """Whether an equation has no more than so many input and output numbers."""
    atoms: Sequence[ir.Atom] = (*equation.inputs, *equation.outputs)
    return sum(math.prod(atom.shape) for atom in atoms) <= most
