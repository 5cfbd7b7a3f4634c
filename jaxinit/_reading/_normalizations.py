"""Where a program normalizes: divides data by the root of a statistic of data, or by that of a running variance.

A statistic is a reduction over dimensions of data, or a function of such reductions. Numbers that data is merely
multiplied or divided by, such as a learned temperature, are not statistics.
"""

import math
from collections.abc import Iterator

from jaxinit import _program as ir
from jaxinit._reading._flow import programs_of
from jaxinit._reading._layers import Analysis

_REDUCTIONS = ir.family("reduce_sum", "reduce_max", "reduce_window_sum", "psum")
_ROOTS = ir.family("sqrt", "rsqrt", "pow")
_MOVES = frozenset(
    {*ir.ELEMENTWISE, ir.broadcast_p, ir.reshape_p, ir.squeeze_p, ir.transpose_p, ir.slice_p, ir.stack_p}
)


def normalizations(analysis: Analysis) -> Iterator[ir.Equation]:
    """The equations that normalize data."""
    for program in programs_of(analysis.program):
        yield from normalizations_of(analysis, program)


def normalizations_of(analysis: Analysis, program: ir.Program) -> Iterator[ir.Equation]:
    """Those of one program, without those of programs inside it."""
    statistics: set[ir.Atom] = set()
    roots: set[ir.Atom] = set()
    for equation in program.equations:
        inputs = [a for a in equation.inputs if isinstance(a, ir.Variable)]
        if equation.primitive in _REDUCTIONS:
            if any(analysis.of(a).data for a in inputs):
                statistics.update(equation.outputs)
            continue
        if equation.primitive in _ROOTS and _is_power(analysis, inputs[:1], statistics):
            roots.update(equation.outputs)
            continue
        if equation.primitive not in _MOVES or (roots.isdisjoint(inputs) and statistics.isdisjoint(inputs)):
            continue
        data = [a for a in inputs if analysis.of(a).data]
        if equation.primitive in (ir.mul_p, ir.div_p) and len(inputs) == 2:
            value, divisor = inputs if inputs[1] in roots else inputs[::-1]
            divides = divisor in roots and (equation.primitive is ir.mul_p or divisor is inputs[1])
            if divides and value in data and value not in statistics and value not in roots:
                yield equation
                continue
        if not roots.isdisjoint(inputs) and all(a in roots or a not in data for a in inputs):
            roots.update(equation.outputs)
        elif data and all(a in statistics for a in data):
            statistics.update(equation.outputs)


def _is_power(analysis: Analysis, inputs: list[ir.Variable], statistics: set[ir.Atom]) -> bool:
    """Whether a root is that of a statistic, or of a parameter of several numbers, such as a running variance."""
    return any(
        a in statistics or (not analysis.of(a).data and bool(analysis.of(a).degrees) and math.prod(a.shape) > 1)
        for a in inputs
    )
