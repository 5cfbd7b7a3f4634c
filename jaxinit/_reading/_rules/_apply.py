"""How an equation carries on what its inputs depend on, by the rule of its primitive."""

import dataclasses
from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import DATA, INDEPENDENT, ZERO, Dependence
from jaxinit._reading._rules._rule import Move, rule_of


def apply(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    """What the outputs of an equation without programs inside depend on."""
    if equation.primitive is ir.select_p and inputs[0].data and _are_one(inputs[1:]):
        return [inputs[1]]
    count = len(equation.outputs)
    if any(x.data for x in inputs):
        return [_with_pattern(DATA, equation, inputs)] * count
    if not any(x.degrees for x in inputs):
        stays = equation.primitive is ir.broadcast_p or equation.primitive in ir.IDENTITIES
        value = ZERO if stays and inputs[0].zero else INDEPENDENT
        return [_with_pattern(value, equation, inputs)] * count
    found = rule_of(equation).dependence(equation, inputs)
    if not isinstance(found, Dependence):
        return list(found)
    return [_with_pattern(found, equation, inputs)] * count


def rearrangement(equation: ir.Equation) -> Move | None:
    """What an equation that only moves, copies or drops elements does to their origin; None for others."""
    return rule_of(equation).move(equation)


def _with_pattern(value: Dependence, equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    pattern = rule_of(equation).pattern(equation, [x.pattern for x in inputs])
    return value if pattern is value.pattern else dataclasses.replace(value, pattern=pattern)


def _are_one(cases: Sequence[Dependence]) -> bool:
    """Whether values are the same elements of one leaf: `vmap` chooses so between the operands of a branch."""
    first = cases[0]
    exact = len(first.degrees) == 1 and all(o.exact for o in first.origins.values())
    return (
        exact
        and len(first.origins) == 1
        and all((x.degrees, x.origins) == (first.degrees, first.origins) for x in cases)
    )
