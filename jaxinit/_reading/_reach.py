"""Which leaves of the parameters each output of a program is computed from, loops and branches included.

Sets of leaves are the bits of integers. With `frozen`, a leaf whose value goes through `stop_gradient` before any data
meets it does not count: the remaining leaves are those that training can change.
"""

import functools
import operator
from collections.abc import Iterable, Sequence

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis


def leaves_of_outputs(analysis: Analysis, count: int, *, frozen: bool = False) -> list[int]:
    """For each output of a program, which of its first `count` inputs it is computed from."""
    program = analysis.program
    inputs = [1 << i if i < count else 0 for i in range(len(program.inputs))]
    return _Reach(analysis, frozen).program(program, inputs)


class _Reach:
    def __init__(self, analysis: Analysis, frozen: bool):
        self.analysis, self.frozen = analysis, frozen

    def program(self, program: ir.Program, inputs: Sequence[int]) -> list[int]:
        """The sets of a program's outputs, given those of its inputs."""
        found: dict[ir.Atom, int] = dict(zip(program.inputs, inputs, strict=True))
        for equation in program.equations:
            results = self.equation(equation, [found.get(atom, 0) for atom in equation.inputs])
            found.update(zip(equation.outputs, results, strict=True))
        return [found.get(atom, 0) for atom in program.outputs]

    def equation(self, equation: ir.Equation, inputs: list[int]) -> list[int]:
        match equation:
            case ir.Scan():
                first = equation.num_consts
                carried = self.loop(equation.body, inputs, first, equation.num_carry)
                return self.program(equation.body, carried)
            case ir.Switch():
                index, *operands = inputs
                outputs = [self.program(branch, operands) for branch in equation.branches]
                return [_union(x) | index for x in zip(*outputs, strict=True)]
            case ir.While():
                consts, first = equation.condition_consts, equation.condition_consts + equation.body_consts
                body = self.loop(equation.body, inputs[consts:], equation.body_consts, len(inputs) - first)
                carry = body[equation.body_consts :]
                (goes_on,) = self.program(equation.condition, [*inputs[:consts], *carry])
                return [x | goes_on for x in carry]
        found = _union(inputs)
        if self.frozen and equation.primitive is ir.stop_gradient_p and not self.analysis.of(equation.inputs[0]).data:
            found = 0
        return [found] * len(equation.outputs)

    def loop(self, body: ir.Program, inputs: list[int], first: int, count: int) -> list[int]:
        """The inputs of a loop's body, with the sets of `count` carries from `first` on after any number of steps."""
        while True:
            outputs = self.program(body, inputs)[:count]
            after = [*inputs[:first], *map(operator.or_, inputs[first:], outputs), *inputs[first + count :]]
            if after == inputs:
                return inputs
            inputs = after


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)
