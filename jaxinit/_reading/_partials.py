"""Values that are linear in one leaf, followed from products with data through sums: the partial results of regions."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._layers import Entry
from jaxinit._reading._origin import FOREIGN, Origin
from jaxinit._reading._rules import rule_of

Of: TypeAlias = Callable[[ir.Atom], Dependence]
"""What a value depends on."""


@dataclasses.dataclass(frozen=True)
class Partial:
    """A value that is linear in a leaf through these entries; `end` summed over its elements, None if nothing did."""

    entries: tuple[Entry, ...]
    origins: tuple[Origin | None, ...]
    dimensions: Mapping[int, int]
    summed: frozenset[int] = frozenset()
    end: ir.Equation | None = None


def entry_of(equation: ir.Equation, of: Of) -> tuple[int, Partial] | None:
    """A product of data with a weight that contracts nothing."""
    if not multiplies(equation):
        return None
    for i, atom in enumerate(equation.inputs):
        value = of(atom)
        other = of(equation.inputs[1 - i])
        if value.data or not other.data or math.prod(atom.shape) <= 1:
            continue
        leaf = carrier(value)
        if leaf is not None:
            rank, entry = len(equation.outputs[0].shape), Entry(equation, i)
            return leaf, Partial((entry,), (origin_of(entry, value, leaf),), {d: d for d in range(rank)})
    return None


def carrier(value: Dependence) -> int | None:
    """A leaf that a value is proportional to; for a concatenation of several, a number that represents all."""
    found = [next((leaf for leaf in part.degrees if part.degree(leaf) == 1), None) for part in value.parts]
    if value.segments is None or None in found:
        return found[0] if value.segments is None else None
    return -1 - min(leaf for leaf in found if leaf is not None)


def multiplies(equation: ir.Equation) -> bool:
    """Whether an equation multiplies element by element, including products that contract nothing."""
    return equation.primitive is ir.mul_p or is_outer(equation)


def is_outer(equation: ir.Equation) -> bool:
    """Whether an equation is a product of two values that contracts no dimension."""
    return equation.primitive is ir.dot_general_p and not equation.params["dimension_numbers"][0][0]


def kept_dimensions(equation: ir.Equation, operand: int) -> dict[int, int]:
    """Dimension of an operand of a product → dimension of the product."""
    rank = len(equation.inputs[operand].shape)
    if equation.primitive is not ir.dot_general_p:
        return {d: d for d in range(rank)}
    (_, batched) = equation.params["dimension_numbers"]
    own = batched[operand]
    free = [d for d in range(rank) if d not in own]
    first = len(own) + (len(equation.inputs[0].shape) - len(batched[0]) if operand == 1 else 0)
    return {d: i for i, d in enumerate(own)} | {d: first + i for i, d in enumerate(free)}


def origin_of(entry: Entry, value: Dependence, leaf: int) -> Origin | None:
    """Where the elements of a product's weight come from, along the dimensions of the product."""
    origin, dimensions = value.origins.get(leaf), kept_dimensions(entry.equation, entry.weight)
    shape = entry.equation.outputs[0].shape
    return None if origin is None else origin.broadcast(shape, [dimensions[d] for d in range(len(dimensions))])


def carried_on(equation: ir.Equation, operands: Sequence[Partial | None], of: Of) -> Partial | None:
    """The results for values that are linear in one leaf; None if the output is not linear, or in more than these."""
    rule = rule_of(equation)
    carriers = [x for x in operands if x is not None]
    others = [atom for atom, x in zip(equation.inputs, operands, strict=True) if x is None]
    if len(equation.outputs) != 1 or not rule.is_linear_in([x is not None for x in operands]):
        return None
    if rule.linear == "each" and (any(of(atom).data for atom in others) or not rule.elementwise):
        return None
    if rule.linear in ("all", "cases") and any(not of(a).zero for a in others[rule.linear == "cases" :]):
        return None
    if len(carriers) > 1:
        return _joined(equation, carriers) if rule.elementwise and rule.linear == "all" else None
    (one,) = carriers
    if equation.primitive is ir.reduce_sum_p:
        axes = set(equation.params["axes"])
        left = {d: p - sum(a < p for a in axes) for d, p in one.dimensions.items() if p not in axes}
        summed = frozenset(d for d, p in one.dimensions.items() if p in axes)
        varied = any(_varies(one, d, of) for d in summed) or _has_one_input(one, summed, of)
        end = equation if varied else one.end
        return dataclasses.replace(one, dimensions=left, summed=one.summed | summed, end=end)
    if rule.elementwise:
        return one
    if not rule.rearranges:
        return None
    moved = rule.dimensions(equation)
    return dataclasses.replace(one, dimensions={d: moved[p] for d, p in one.dimensions.items() if p in moved})


def _joined(equation: ir.Equation, carriers: Sequence[Partial]) -> Partial | None:
    """A sum of products with different parts of a leaf."""
    if sum(x.end is None for x in carriers) == 0:
        return None  # layers of their own
    first = carriers[0]
    if any(x.dimensions != first.dimensions or x.summed != first.summed for x in carriers):
        return None
    origins = tuple(o for x in carriers for o in x.origins)
    known = [o for o in origins if o is not None]
    apart = len(known) == len(origins) and len({(o.region, o.stack) for o in known}) == len(origins)
    if not apart:
        return dataclasses.replace(
            first, entries=tuple(e for x in carriers for e in x.entries), origins=origins, end=None
        )
    return dataclasses.replace(
        first, entries=tuple(e for x in carriers for e in x.entries), origins=origins, end=equation
    )


def _varies(partial: Partial, dimension: int, of: Of) -> bool:
    """Whether the weight has different elements along a dimension of the product."""
    entry = partial.entries[0]
    return differs(entry.equation, entry.weight, dimension, of, partial.origins[0])


def _has_one_input(partial: Partial, summed: Iterable[int], of: Of) -> bool:
    """Whether a sum runs over the only input of a layer, whose outputs the weight adds as a dimension."""
    (equation, operand), (origin, *_) = partial.entries[0], partial.origins
    shape = equation.outputs[0].shape
    if any(shape[d] > 1 for d in summed):
        return False
    made = [d for d, n in enumerate(shape) if n > 1 and not differs(equation, 1 - operand, d, of, None)]
    return any(differs(equation, operand, d, of, origin) for d in made)


def differs(equation: ir.Equation, operand: int, dimension: int, of: Of, origin: Origin | None) -> bool:
    """Whether an operand of a product differs along a dimension of the product, as far as it is known."""
    if origin is not None:
        return any(f.axis != FOREIGN for f in origin.dims[dimension])
    own = next((d for d, kept in kept_dimensions(equation, operand).items() if kept == dimension), None)
    atom = equation.inputs[operand]
    return own is not None and atom.shape[own] > 1 and own not in of(atom).pattern.repeats
