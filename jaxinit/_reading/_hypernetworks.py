"""Layers whose output is itself a weight: `x @ reshape(h @ v)`, the weights that a hypernetwork makes from data.

What follows such a layer contracts some of its output features with other data and keeps others as features of its
own. Each output of that product sums over the features contracted, so the fan-in of the weight v counts both sums, as
in Chang, Flokas & Lipson 2020, "Principled weight initialization for hypernetworks". Where all features are
contracted, as in the scores of attention, the output is not a weight but a vector like the other.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from jaxinit import _program as ir
from jaxinit._reading._origin import Origin
from jaxinit._reading._rules import rule_of


def fan_in_made(
    output: ir.Variable, features: Collection[int], consumers: Mapping[ir.Atom, Sequence[ir.Equation | None]]
) -> int:
    """The fan-in of the weight that a layer's output is for what follows; 1 if it is not a weight.

    Args:
      output: of the layer, bias included.
      features: its dimensions that are output features of the layer.
      consumers: the equations that read each value; None stands for the outputs of the program.
    """
    found: set[int] = set()
    queue: list[tuple[ir.Atom, Origin]] = [(output, Origin.of_leaf(0, output.shape))]
    while queue:
        atom, origin = queue.pop()
        for equation in consumers.get(atom, []):
            move = None if equation is None else rule_of(equation).move(equation)
            moved = None if move is None else move(origin)
            if equation is not None and moved is not None and equation.inputs[0] is atom:
                queue.append((equation.outputs[0], moved))
            else:
                found.add(1 if equation is None else _contracted(equation, atom, origin, features))
    return found.pop() if len(found) == 1 else 1


def _contracted(equation: ir.Equation, atom: ir.Atom, origin: Origin, features: Collection[int]) -> int:
    """How many of the features a product contracts, if it keeps others of them as features of its output."""
    if equation.primitive is not ir.dot_general_p or equation.inputs.count(atom) != 1:
        return 1
    side = equation.inputs.index(atom)
    contracted, batched = (dims[side] for dims in equation.params["dimension_numbers"])
    free = [d for d in range(len(atom.shape)) if d not in (*contracted, *batched)]
    summed = [f for d in contracted for f in origin.dims[d]]
    kept = [f for d in free for f in origin.dims[d]]
    if not summed or any(f.axis not in features for f in summed) or not any(f.axis in features for f in kept):
        return 1
    return math.prod(f.size for f in summed)
