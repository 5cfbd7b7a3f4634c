"""Layers whose output is itself a weight: `x @ reshape(h @ v)`, the weights that a hypernetwork makes from data.

The next product contracts some output features of such a layer with other data and keeps others as features of its
own. Each output of that product sums over the features contracted, so the fan-in of the weight v counts both sums, as
in Chang, Flokas & Lipson 2020, "Principled weight initialization for hypernetworks". If all features are
contracted, as in the scores of attention, or if the other data are the output of a layer too, like keys that
several queries share, the output is not a weight but a vector like the other. If the other data sum to one,
as those of a softmax do, the product is a mean of outputs, such as of experts, and adds no inputs.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._origin import Origin, overlap
from jaxinit._reading._rules import cuts, rule_of


class Around(NamedTuple):
    """The program around a layer.

    Attributes:
      consumers: the equations that read each value; None stands for the outputs of the program.
      producers: the equation that computes each value.
      of: what a value depends on.
    """

    consumers: Mapping[ir.Atom, Sequence[ir.Equation | None]]
    producers: Mapping[ir.Atom, ir.Equation]
    of: Callable[[ir.Atom], Dependence]


def fan_in_made(output: ir.Variable, features: Collection[int], around: Around) -> int:
    """The fan-in of the weight that a layer's output becomes in the next product; 1 if it does not become one.

    If parts of the output become weights of different fan-ins, or weights and biases, the largest counts.

    Args:
      output: of the layer, bias included.
      features: its dimensions that are output features of the layer.
      around: the program that holds the layer.
    """
    found: dict[tuple[tuple[int, int], ...], set[int]] = {}
    queue: list[tuple[ir.Atom, Origin]] = [(output, Origin.of_leaf(0, output.shape))]
    while queue:
        atom, origin = queue.pop()
        for equation in around.consumers.get(atom, []):
            moved = [] if equation is None else _moved(equation, atom, origin, around)
            if moved:
                queue.extend(moved)
            else:
                count = 1 if equation is None else _contracted(equation, atom, origin, features, around)
                found.setdefault(origin.region, set()).add(count)
    apart = not any(overlap(a, b) for i, a in enumerate(found) for b in list(found)[:i])
    return max(map(max, found.values())) if found and apart and all(len(x) == 1 for x in found.values()) else 1


def _moved(equation: ir.Equation, atom: ir.Atom, origin: Origin, around: Around) -> list[tuple[ir.Atom, Origin]]:
    """The outputs of an equation that moves or cuts a value, or multiplies it by what does not depend on data."""
    if equation.inputs[0] is atom:
        parts = cuts(equation)
        moves = [rule_of(equation).move(equation)] if parts is None else parts
        after = [(v, move and move(origin)) for v, move in zip(equation.outputs, moves, strict=False)]
        if all(o is not None for _, o in after):
            return [(v, o) for v, o in after if o is not None]
    others = [x for x in equation.inputs if x is not atom]
    scales = equation.primitive in (ir.mul_p, ir.neg_p) or (equation.primitive is ir.div_p and others)
    if not scales or len(others) == len(equation.inputs) or any(around.of(x).data for x in others):
        return []
    (output,) = equation.outputs
    return [(output, origin)] if output.shape == atom.shape and equation.inputs.count(atom) == 1 else []


def _contracted(equation: ir.Equation, atom: ir.Atom, origin: Origin, features: Collection[int], around: Around) -> int:
    """How many of the features a product contracts, if it keeps others of them as features of its output."""
    if equation.inputs.count(atom) != 1 or equation.primitive not in (ir.dot_general_p, ir.mul_p):
        return 1
    side = equation.inputs.index(atom)
    other = equation.inputs[1 - side]
    if equation.primitive is ir.mul_p:
        (output,) = equation.outputs
        readers = around.consumers.get(output, [])
        if len(readers) != 1 or readers[0] is None or readers[0].primitive is not ir.reduce_sum_p:
            return 1
        contracted = tuple(readers[0].params["axes"])
        maker = around.producers.get(other)
        spread = set() if maker is None or maker.primitive is not ir.broadcast_p else _copied(maker)
        free = [d for d in range(len(atom.shape)) if d not in contracted and d in spread]
    else:
        contracted, batched = (dims[side] for dims in equation.params["dimension_numbers"])
        free = [d for d in range(len(atom.shape)) if d not in (*contracted, *batched)]
    summed = [f for d in contracted for f in origin.dims[d]]
    kept = [f for d in free for f in origin.dims[d]]
    if not summed or any(f.axis not in features for f in summed) or not any(f.axis in features for f in kept):
        return 1
    if not around.of(other).data or layer_of(other, around) is not None or _are_shares(other, around):
        return 1
    return math.prod(f.size for f in summed)


def _copied(broadcast: ir.Equation) -> set[int]:
    """The dimensions along which a broadcast repeats its operand."""
    kept = set(rule_of(broadcast).dimensions(broadcast).values())
    return {d for d in range(len(broadcast.outputs[0].shape)) if d not in kept}


def _are_shares(atom: ir.Atom, around: Around) -> bool:
    """Whether a value is divided by its own sum, as in a softmax; after that some entries may be left out."""
    division = _before_moves(atom, around)
    if division is None or division.primitive is not ir.div_p:
        return False
    divided, divisor = division.inputs
    total = _before_moves(divisor, around)
    return total is not None and total.primitive is ir.reduce_sum_p and total.inputs[0] is divided


def _before_moves(atom: ir.Atom, around: Around) -> ir.Equation | None:
    """The equation that computes a value which is then only moved, or kept in some positions and replaced in others."""
    while (equation := around.producers.get(atom)) is not None:
        cases = equation.inputs[1:] if equation.primitive is ir.select_p else equation.inputs
        data = [x for x in cases if around.of(x).data]
        if len(data) != 1 or not (rule_of(equation).rearranges or equation.primitive is ir.select_p):
            return equation
        (atom,) = data
    return None


def layer_of(atom: ir.Atom, around: Around) -> ir.Equation | None:
    """The product whose elements are combined linearly to compute a value: a layer's, or one of two data values.

    The output of a layer may be moved, scaled and rotated; a sum of several outputs does not count.
    """
    found: set[ir.Equation | None] = set()
    seen: set[ir.Atom] = set()
    queue = [atom]
    while queue and len(found) <= 1:
        atom = queue.pop()
        if atom in seen:
            continue
        seen.add(atom)
        equation = around.producers.get(atom)
        data = [] if equation is None else [x for x in equation.inputs if around.of(x).data]
        if equation is None or equation.primitive in (ir.dot_general_p, ir.conv_p):
            known = equation is not None and (len(data) > 1 or _has_weight(equation, around))
            found.add(equation if known else None)
        elif data and (
            rule_of(equation).rearranges or rule_of(equation).is_linear_in([x in data for x in equation.inputs])
        ):
            queue.extend(data)
        else:
            found.add(None)
    return found.pop() if len(found) == 1 else None


def _has_weight(equation: ir.Equation, around: Around) -> bool:
    return any(1 in around.of(x).degrees.values() for x in equation.inputs)
