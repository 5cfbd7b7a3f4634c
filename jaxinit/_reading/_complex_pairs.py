"""Two weights that are the real and the imaginary part of one: a·w − b·v beside a·v + b·w.

The program multiplies complex numbers part by part. Each sum is linear in both weights together, and neither weight
can be scaled without the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._geometry import weight_operand
from jaxinit._reading._layers import Entry
from jaxinit._reading._origin import Factor
from jaxinit._reading._regions import Region
from jaxinit._reading._rules import rule_of

_Of: TypeAlias = Callable[[ir.Atom], Dependence]
_Consumers: TypeAlias = Mapping[ir.Atom, Sequence[ir.Equation | None]]

_Part: TypeAlias = tuple[int, tuple[tuple[int, int], ...], tuple[Factor, ...]]
"""A part of a leaf: its index, region and stack."""


def complex_pairs(equations: Sequence[ir.Equation], of: _Of, consumers: _Consumers) -> list[Region]:
    """Pairs of sums a·w ± b·v and a·v ± b·w: w and v are the parts of one complex weight."""
    producers: dict[ir.Atom, ir.Equation] = {e.outputs[0]: e for e in equations if e.outputs}
    sums: dict[frozenset[_Part], list[tuple[ir.Equation, tuple[Entry, ...], dict[_Part, object]]]] = {}
    for equation in equations:
        if equation.primitive not in (ir.add_p, ir.sub_p, ir.add_any_p):
            continue
        makers = [producers.get(atom) for atom in equation.inputs]
        first = _layer(makers[0], of, consumers, producers)
        second = None if first is None else _layer(makers[1], of, consumers, producers)
        if first is None or second is None:
            continue
        (one, w), (other, v) = first, second
        a, b = (_identity(entry.data, producers) for entry in (one, other))
        if w != v and a != b and one.atom.shape == other.atom.shape:
            sums.setdefault(frozenset({w, v}), []).append((equation, (one, other), {w: a, v: b}))
    result = []
    for weights, both in sums.items():
        if len(both) != 2:
            continue
        w, v = weights
        (_, _, here), (_, _, there) = both
        if there == {w: here[v], v: here[w]}:
            for end, entries, _ in both:
                dimensions = _dimensions_at(end, entries[0].equation, producers)
                result.append(Region(entries, end, dimensions, frozenset(), joint=True))
    return result


def _goes_through(equation: ir.Equation) -> bool:
    """Whether an equation returns all elements of a value, moved or with the other sign."""
    moves = rule_of(equation).move(equation) is not None and bool(rule_of(equation).dimensions(equation))
    return equation.primitive is ir.neg_p or (moves and len(equation.inputs) == 1)


def _dimensions_at(end: ir.Equation, product: ir.Equation, producers: Mapping[ir.Atom, ir.Equation]) -> dict[int, int]:
    """Dimension of a product → dimension of the sum that it goes into, moved and with either sign."""
    chain: list[ir.Equation] = []
    equation = producers[end.inputs[0]]
    while equation is not product:
        chain.append(equation)
        equation = producers[equation.inputs[0]]
    dimensions = {d: d for d in range(len(product.outputs[0].shape))}
    for equation in reversed(chain):
        if equation.primitive is not ir.neg_p:
            moved = rule_of(equation).dimensions(equation)
            dimensions = {d: moved[p] for d, p in dimensions.items() if p in moved}
    return dimensions


def _layer(
    equation: ir.Equation | None, of: _Of, consumers: _Consumers, producers: Mapping[ir.Atom, ir.Equation]
) -> tuple[Entry, _Part] | None:
    """A product of data with a weight that only one equation reads, and which part of a leaf the weight is."""
    while equation is not None and len(equation.outputs) == 1 and len(consumers.get(equation.outputs[0], [])) == 1:
        if equation.primitive in (ir.dot_general_p, ir.conv_p) or not _goes_through(equation):
            break
        equation = producers.get(equation.inputs[0])
    if equation is None or equation.primitive not in (ir.dot_general_p, ir.conv_p):
        return None
    found = weight_operand(equation, [of(atom) for atom in equation.inputs])
    if found is None or len(consumers.get(equation.outputs[0], [])) != 1:
        return None
    entry = Entry(equation, found[0])
    value = of(entry.atom)
    leaf = next((leaf for leaf in value.degrees if value.degree(leaf) == 1), None)
    origin = value.origins.get(leaf) if leaf is not None else None
    return (entry, (leaf, origin.region, origin.stack)) if leaf is not None and origin is not None else None


def _identity(atom: ir.Atom, producers: Mapping[ir.Atom, ir.Equation]) -> object:
    """An object that is equal for two values that are the same elements, moved in the same way."""
    equation = producers.get(atom)
    if equation is None or not rule_of(equation).rearranges:
        return atom
    return equation.primitive, str(equation.params), tuple(_identity(x, producers) for x in equation.inputs)
