"""One rule per primitive: all that the reading knows of it, in one registered object.

A primitive that is not registered has the rule `OPAQUE`: how its output grows with a leaf is unknown, and so is
where its elements come from. Nothing is guessed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._dependence import DATA, INDEPENDENT, ZERO, Dependence, inhomogeneous
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._origin import Origin

Move: TypeAlias = Callable[[Origin], Origin | None]

Linear: TypeAlias = Literal["", "first", "each", "all", "cases"]


def _unknown(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inhomogeneous(inputs)


def _no_move(equation: ir.Equation) -> None:
    return None


def _no_dimensions(equation: ir.Equation) -> dict[int, int]:
    return {}


def _moved_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    return inputs[0].moved(rule_of(equation).dimensions(equation)) if inputs and inputs[0] is not NONE else NONE


@dataclasses.dataclass(frozen=True)
class PrimitiveRule:
    """What is known of a primitive.

    Attributes:
      dependence: how the output depends on leaves, for inputs that depend on no data; for an equation with several
        outputs a sequence.
      linear: in which operands the output is linear while the others are fixed: the "first"; "each" of them
        alone, as in a product; "all" of them together, as in a sum; the "cases" between which the first chooses.
      elementwise: whether each element of the output is a function of the elements of the operands at its position.
      rearranges: whether each element of an output is an element of an operand, moved, copied or cut, or a constant.
      move: how an equation changes the origin of its first operand's elements, if it only moves, copies or drops them.
      dimensions: dimension of the first operand → dimension of the output, for those that are kept whole.
      pattern: how one-hot values, and values from which they are computed, go through it.
    """

    dependence: Callable[[ir.Equation, Sequence[Dependence]], Dependence | Sequence[Dependence]] = _unknown
    linear: Linear = ""
    elementwise: bool = False
    rearranges: bool = False
    move: Callable[[ir.Equation], Move | None] = _no_move
    dimensions: Callable[[ir.Equation], Mapping[int, int]] = _no_dimensions
    pattern: Callable[[ir.Equation, Sequence[Pattern]], Pattern] = _moved_pattern

    def is_linear_in(self, operands: Sequence[bool]) -> bool:
        """Whether the output is linear in these of the operands together, while the others are fixed."""
        match self.linear:
            case "first":
                return operands[0] and not any(operands[1:])
            case "each":
                return sum(operands) == 1
            case "all":
                return any(operands)
            case "cases":
                return any(operands) and not operands[0]
        return False


OPAQUE = PrimitiveRule()

_RULES: dict[Any, PrimitiveRule] = {}


def register(rule: PrimitiveRule, *primitives: Any) -> None:
    """Registers a rule for some primitives; those that this JAX does not have are never looked up."""
    for primitive in primitives:
        if primitive in _RULES:
            raise ValueError(f"{primitive} has a rule already")
        _RULES[primitive] = rule


def rule_of(equation: ir.Equation) -> PrimitiveRule:
    """The rule of an equation's primitive."""
    return _RULES.get(equation.primitive, OPAQUE)


def is_free(x: Dependence) -> bool:
    """Whether scaling any leaf leaves the value unchanged."""
    return not x.data and all(degree == 0 for degree in x.degrees.values())


def scale_free(inputs: Sequence[Dependence]) -> Dependence:
    """Unchanged when all operands are multiplied by the same positive number."""
    terms = [x for x in inputs if not x.zero]
    found: dict[int, set[float | None]] = {}
    for leaf in {leaf for x in terms for leaf in x.degrees}:
        found[leaf] = {x.degrees.get(leaf, 0.0) for x in terms}
    return Dependence(degrees={leaf: 0.0 if len(d) == 1 and None not in d else None for leaf, d in found.items()})


def apply(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    """What the outputs of an equation without programs inside depend on."""
    if equation.primitive is ir.select_p and inputs[0].data and _are_one(inputs[1:]):
        return [inputs[1]]
    rule, value = rule_of(equation), INDEPENDENT
    for x in inputs:
        if x.data:
            value = DATA
            break
        if x.degrees:
            value = None  # type: ignore[assignment]
    if value is None:
        found = rule.dependence(equation, inputs)
        if not isinstance(found, Dependence):
            return list(found)
        value = found
    elif value is INDEPENDENT and inputs and inputs[0].zero:
        stays = equation.primitive is ir.broadcast_p or equation.primitive in ir.IDENTITIES
        value = ZERO if stays else INDEPENDENT
    pattern = rule.pattern(equation, [x.pattern for x in inputs])
    return [value if pattern is value.pattern else _with_pattern(value, pattern)] * len(equation.outputs)


def rearrangement(equation: ir.Equation) -> Move | None:
    """How an equation that only moves, copies or drops elements changes their origin; None for others."""
    return rule_of(equation).move(equation)


def _with_pattern(value: Dependence, pattern: Pattern) -> Dependence:
    return _data_with(pattern) if value is DATA else dataclasses.replace(value, pattern=pattern)


@functools.lru_cache(maxsize=256)
def _data_with(pattern: Pattern) -> Dependence:
    """Data by its pattern; cached, since there are few kinds."""
    return dataclasses.replace(DATA, pattern=pattern)


def _are_one(cases: Sequence[Dependence]) -> bool:
    """Whether values are the same elements of one leaf: `vmap` chooses so between the operands of a branch."""
    first = cases[0]
    exact = len(first.degrees) == 1 and all(o.exact for o in first.origins.values())
    return (
        exact
        and len(first.origins) == 1
        and all((x.degrees, x.origins) == (first.degrees, first.origins) for x in cases)
    )
