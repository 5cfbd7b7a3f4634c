"""Means: sums of products or of rows that are divided by the number of their terms."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._rules import rule_of

_Consumers: TypeAlias = Mapping[ir.Atom, Sequence[ir.Equation | None]]


def division_into_mean(output: ir.Atom, count: int, consumers: _Consumers) -> ir.Equation | None:
    """The equation that divides a sum by the number of its terms, if nothing else reads the sum."""
    readers = consumers.get(output, [])
    while len(readers) == 1 and readers[0] is not None and rule_of(readers[0]).rearranges:
        readers = consumers.get(readers[0].outputs[0], [])
    reader = readers[0] if len(readers) == 1 else None
    return reader if reader is not None and divides_by(reader, count) else None


def divides_by(equation: ir.Equation, count: int) -> bool:
    """Whether an equation divides a value by this number, or multiplies it by the inverse."""
    numbers = [x.value for x in equation.inputs if isinstance(x, ir.Constant) and not x.shape and ir.is_known(x)]
    if len(numbers) != 1 or equation.primitive not in (ir.div_p, ir.mul_p):
        return False
    factor = complex(numbers[0]) if equation.primitive is ir.mul_p else 1 / complex(numbers[0] or 1)
    return math.isclose(abs(factor) * count, 1, rel_tol=1e-2)
