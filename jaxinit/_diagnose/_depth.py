"""How deep each layer lies: how many layers data go through before it, and in which tower.

The order of execution is no depth: two towers come one after the other, and of a scanned stack each layer has a row a
slice. A layer lies one deeper than the deepest layer that its input is computed from. A tower is a layer that is
computed from none, with all layers that come after it on the deepest way.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow
from jaxinit._reading._units import Site, Unit


class Depth(NamedTuple):
    """A place in a program.

    Attributes:
      layers: how many layers lie before.
      tower: the number of the tower, −1 before the first layer.
    """

    layers: int
    tower: int


_NOWHERE = Depth(0, -1)


@dataclasses.dataclass(frozen=True)
class _Found:
    """The depth of a site, and by how much each step of the scans around it adds to it, outermost first."""

    depth: Depth
    steps: tuple[int, ...] = ()


def depths(flow: Flow) -> dict[Unit, list[Depth]]:
    """For each unit the depth of its first use, one a slice of its stack."""
    program = flow.analysis.program
    found: dict[Site, _Found] = {}
    _Walk(flow).through(program, [_NOWHERE] * len(program.inputs), found)
    return {unit: list(_of_slices(unit, found[unit.sites[0]])) for unit in flow.analysis.units}


def _of_slices(unit: Unit, found: _Found) -> Iterator[Depth]:
    sizes, steps = [factor.size for factor in unit.stack], list(found.steps)
    while len(steps) > len(sizes):
        steps.remove(min(steps))  # the unit is not stacked along all scans around it
    for at in itertools.product(*map(range, sizes)):
        turn, added = int(unit.order[at]), 0
        for size, step in zip(reversed(sizes), reversed(steps), strict=False):
            turn, place = divmod(turn, size)
            added += place * step
        yield found.depth._replace(layers=found.depth.layers + added)


class _Walk:
    """A walk in execution order that knows of every value the depth it comes from."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.towers = itertools.count()
        self.roots: dict[Site, int] = {}

    def through(self, program: ir.Program, inputs: Sequence[Depth], found: dict[Site, _Found]) -> list[Depth]:
        """The depths of a program's outputs; those of its sites are added to `found`."""
        known: dict[ir.Atom, Depth] = dict(zip(program.inputs, inputs, strict=True))

        def deepest(atoms: Iterable[ir.Atom]) -> Depth:
            data = [known.get(atom, _NOWHERE) for atom in atoms if self.flow.is_data(atom)]
            return max(data, key=lambda depth: depth.layers, default=_NOWHERE)

        for equation in program.equations:
            outer = [known.get(atom, _NOWHERE) for atom in equation.inputs]
            match equation:
                case ir.Scan():
                    depths = self._scan(equation, outer, found)
                case ir.Switch():
                    branches = [self.through(branch, outer[1:], found) for branch in equation.branches]
                    depths = [max(ways, key=lambda depth: depth.layers) for ways in zip(*branches, strict=True)]
                case ir.While():
                    depths = self.through(equation.body, outer[equation.condition_consts :], found)
                case _:
                    depths = [deepest(equation.inputs)] * len(equation.outputs)
            known.update(zip(equation.outputs, depths, strict=True))
            if equation in self.flow.analysis.sites:
                site = self.flow.analysis.sites[equation]
                depth = deepest([site.data])
                if depth.tower < 0:
                    depth = depth._replace(tower=self._root(site))
                found.setdefault(site, _Found(depth))
                known[equation.outputs[0]] = depth._replace(layers=depth.layers + 1)
        return [known.get(atom, _NOWHERE) for atom in program.outputs]

    def _scan(self, scan: ir.Scan, inputs: Sequence[Depth], found: dict[Site, _Found]) -> list[Depth]:
        """Two steps tell what every other one adds, where the layers of each step are others."""
        first: dict[Site, _Found] = {}
        second: dict[Site, _Found] = {}
        outputs = self.through(scan.body, inputs, first)
        carried = slice(scan.num_consts, scan.num_consts + scan.num_carry)
        again = list(inputs)
        again[carried] = outputs[: scan.num_carry]
        later = self.through(scan.body, again, second)
        stacked = any(part.unit.stack for site in first for part in site.parts)
        for site, one in first.items():
            step = second[site].depth.layers - one.depth.layers if stacked else 0
            found.setdefault(site, _Found(one.depth, (step, *one.steps)))
        if not stacked:
            return outputs
        return [
            b._replace(layers=a.layers + (b.layers - a.layers) * max(scan.length - 1, 0))
            for a, b in zip(outputs, later, strict=True)
        ]

    def _root(self, site: Site) -> int:
        if site not in self.roots:
            self.roots[site] = next(self.towers)
        return self.roots[site]
