"""How deep each layer is: how many layers data pass through before it, and in which tower.

The order of execution is not depth: two towers come one after the other, and a scanned stack has a row for each slice.
A layer is one deeper than the deepest layer that its input is computed from. A tower is a layer that is not computed
from another one, with all layers that follow it on the deepest path.

For each layer, the layers directly before it on the paths from the data are also known.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow
from jaxinit._reading._layers import Use, Weight
from jaxinit._reading._normalizations import normalizations

_KEPT = 4
"""How many layers before a value are kept, the first and the deepest: a residual stream comes from all of them."""


class Before(NamedTuple):
    """A layer that a value comes from.

    Attributes:
      layers: how many layers are before it.
      use: the layer.
      turn: for a slice, the iteration of the loop that it belonged to; inside the loop counted from the current
        iteration, None for the last one.
      normalized: whether a normalization is in between.
    """

    layers: int
    use: Use
    turn: int | None = 0
    normalized: bool = False


class Depth(NamedTuple):
    """The position of a layer in a program.

    Attributes:
      layers: how many layers are before it.
      tower: the number of the tower, −1 before the first layer.
      before: the layers directly before, the deepest first.
      joins: whether the layer's output goes into a value with more layers directly before it than are kept.
    """

    layers: int
    tower: int
    before: tuple[Before, ...] = ()
    joins: bool = False


_NOWHERE = Depth(0, -1)


@dataclasses.dataclass(frozen=True)
class _Found:
    """The depth of a use, and what changes from step to step of the scans around it.

    Attributes:
      depth: in the first step.
      steps: by how much each step of each scan adds to the depth, outermost first.
      later: the layers directly before it in all other steps.
    """

    depth: Depth
    steps: tuple[int, ...] = ()
    later: tuple[Before, ...] = ()


def depths(flow: Flow) -> dict[Weight, list[Depth]]:
    """For each weight the depth of its first use, one for each slice of its stack."""
    program = flow.analysis.program
    found: dict[Use, _Found] = {}
    walk = _Depths(flow)
    walk.through(program, [_NOWHERE] * len(program.inputs), found)
    joins = {weight: not walk.forgotten.isdisjoint(weight.uses) for weight in flow.analysis.weights}
    return {
        weight: [depth._replace(joins=joins[weight]) for depth in _of_slices(weight, found[weight.uses[0]])]
        for weight in flow.analysis.weights
    }


def _of_slices(weight: Weight, found: _Found) -> Iterator[Depth]:
    sizes, steps = [factor.size for factor in weight.stack], list(found.steps)
    while len(steps) > len(sizes):
        steps.remove(min(steps))  # the weight is not stacked along all scans around it
    for at in itertools.product(*map(range, sizes)):
        turn, added = int(weight.order[at]), 0
        for size, step in zip(reversed(sizes), reversed(steps), strict=False):
            turn, index = divmod(turn, size)
            added += index * step
        before = found.later if weight.order[at] > 0 else found.depth.before
        turns = (b._replace(turn=_turn(b, int(weight.order[at]))) for b in before)
        yield found.depth._replace(layers=found.depth.layers + added, before=tuple(turns))


def _turn(before: Before, turn: int) -> int:
    """The iteration of a layer before one whose iteration this is."""
    count = math.prod(f.size for f in before.use.components[0].weight.stack)
    return count - 1 if before.turn is None else min(max(turn + before.turn, 0), count - 1)


def _moved(depth: Depth, uses: Mapping[Use, object], turn: int | None) -> Depth:
    """The same, with the layers of this iteration assigned to another one."""
    before = tuple(b._replace(turn=turn) if b.use in uses and b.turn == 0 else b for b in depth.before)
    return depth._replace(before=before)


class _Depths:
    """A walk in execution order that computes the depth of every value.

    Attributes:
      spread: values that hold each number for many positions.
      forgotten: layers directly before some value that are not kept, because there are too many.
    """

    def __init__(self, flow: Flow):
        self.flow = flow
        self.towers = itertools.count()
        self.roots: dict[Use, int] = {}
        self.normalizing = frozenset(normalizations(flow.analysis))
        self.spread: set[ir.Atom] = set()
        self.forgotten: set[Use] = set()

    def joined(self, depths: Iterable[Depth], ahead: Sequence[Depth] = ()) -> Depth:
        """The depth of a value that is computed from several, some of which are ahead of the others."""
        some = list(depths)
        if len(some) < 2:
            return some[0] if some else _NOWHERE
        deepest = max(ahead or some, key=lambda depth: depth.layers)
        if all(depth.before == deepest.before for depth in some):
            return deepest
        before = sorted(dict.fromkeys(b for depth in some for b in depth.before), key=lambda b: -b.layers)
        self.forgotten.update(b.use for b in before[_KEPT - 1 : -1])
        return deepest._replace(before=tuple(before[: _KEPT - 1] + before[_KEPT - 1 :][-1:]))

    def _of_equation(self, equation: ir.Equation, known: Mapping[ir.Atom, Depth]) -> Depth:
        data = [atom for atom in equation.inputs if self.flow.is_data(atom)]
        size = math.prod(equation.outputs[0].shape)
        wide = [atom for atom in data if atom not in self.spread and math.prod(atom.shape) >= size]
        if data and not wide and (equation.primitive is ir.broadcast_p or equation.primitive in ir.ELEMENTWISE):
            self.spread.update(equation.outputs)
        ahead = [known.get(atom, _NOWHERE) for atom in wide] if equation.primitive in ir.ELEMENTWISE else []
        if all(depth.tower < 0 for depth in ahead):
            ahead = []  # nothing but the batch itself
        depth = self.joined((known.get(atom, _NOWHERE) for atom in data), ahead)
        if equation in self.normalizing:
            depth = depth._replace(before=tuple(dict.fromkeys(b._replace(normalized=True) for b in depth.before)))
        return depth

    def through(self, program: ir.Program, inputs: Sequence[Depth], found: dict[Use, _Found]) -> list[Depth]:
        """The depths of a program's outputs; those of its uses are added to `found`."""
        known: dict[ir.Atom, Depth] = dict(zip(program.inputs, inputs, strict=True))

        for equation in program.equations:
            outer = [known.get(atom, _NOWHERE) for atom in equation.inputs]
            match equation:
                case ir.Scan():
                    depths = self._scan(equation, outer, found)
                case ir.Switch():
                    branches = [self.through(branch, outer[1:], found) for branch in equation.branches]
                    depths = [self.joined(ways) for ways in zip(*branches, strict=True)]
                case ir.While():
                    depths = self.through(equation.body, outer[equation.condition_consts :], found)
                case _:
                    depths = [self._of_equation(equation, known)] * len(equation.outputs)
            known.update(zip(equation.outputs, depths, strict=True))
            if equation in self.flow.analysis.uses:
                use = self.flow.analysis.uses[equation]
                depth = known.get(use.data, _NOWHERE)
                if depth.tower < 0:
                    depth = depth._replace(tower=self._root(use))
                found.setdefault(use, _Found(depth))
                known[equation.outputs[0]] = Depth(depth.layers + 1, depth.tower, (Before(depth.layers, use),))
        return [known.get(atom, _NOWHERE) for atom in program.outputs]

    def _scan(self, scan: ir.Scan, inputs: Sequence[Depth], found: dict[Use, _Found]) -> list[Depth]:
        """Two steps show what every other one adds, if the layers of the steps differ."""
        first: dict[Use, _Found] = {}
        second: dict[Use, _Found] = {}
        outputs = self.through(scan.body, inputs, first)
        carried = slice(scan.num_consts, scan.num_consts + scan.num_carry)
        again = list(inputs)
        again[carried] = [_moved(depth, first, -1) for depth in outputs[: scan.num_carry]]
        later = self.through(scan.body, again, second)
        stacked = any(component.weight.stack for use in first for component in use.components)
        for use, one in first.items():
            step = second[use].depth.layers - one.depth.layers if stacked else 0
            found.setdefault(use, _Found(one.depth, (step, *one.steps), one.later or second[use].depth.before))
        if not stacked:
            return [_moved(depth, first, None) for depth in outputs]
        return [
            _moved(b, first, None)._replace(layers=a.layers + (b.layers - a.layers) * max(scan.length - 1, 0))
            for a, b in zip(outputs, later, strict=True)
        ]

    def _root(self, use: Use) -> int:
        if use not in self.roots:
            self.roots[use] = next(self.towers)
        return self.roots[use]
