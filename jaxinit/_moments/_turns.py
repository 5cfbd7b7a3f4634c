"""The input of a layer in each turn of the loops around it, and so for each slice of a stacked weight."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._moments._layers import Incoming
from jaxinit._reading import Analysis, Use, Weight

Turn: TypeAlias = tuple[tuple[ir.Scan, int], ...]
"""The loops around a layer, outermost first, and which turn of each it is."""


class Turns:
    """The inputs of layers so far, while a program is walked through."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.now: list[tuple[ir.Scan, int]] = []
        self.found: dict[Use, list[tuple[Turn, Incoming]]] = {}
        self._walked: dict[ir.Scan, set[int]] = {}

    def add(self, use: Use, incoming: Incoming) -> None:
        """Records the input of a layer in the current turn."""
        self.found.setdefault(use, []).append((tuple(self.now), incoming))

    def by_weight(self) -> Mapping[Weight, Incoming]:
        """The input of each weight that was met, at its first use; of a stack at all uses with one fan-in."""
        result = {}
        for weight in self.analysis.weights:
            first, *others = weight.uses
            if first not in self.found:
                continue
            uses = [first]
            if weight.stack:
                uses += [u for u in others if u in self.found and u.geometry.fan_in == first.geometry.fan_in]
            met = [incoming for use in uses for _, incoming in self.found[use]]
            result[weight] = Incoming.mean(met, self._slices(weight, uses), multiplied=bool(weight.stack))
        return result

    def _slices(self, weight: Weight, uses: Sequence[Use]) -> tuple[Incoming, ...]:
        """The input for each slice of a stack, in the order of loops over it; empty if turns are not known."""
        count = math.prod(f.size for f in weight.stack)
        by_use = [self._by_slice(weight.leaf, use, count) for use in uses] if count > 1 else []
        if not by_use or not all(by_use):
            return ()
        return tuple(Incoming.mean([*itertools.chain(*own)], multiplied=True) for own in zip(*by_use, strict=True))

    def _by_slice(self, leaf: int, use: Use, count: int) -> list[list[Incoming]]:
        found: dict[tuple[int, ...], list[Incoming]] = {}
        loops: list[ir.Scan] = []
        for turn, incoming in self.found[use]:
            along = [(loop, step) for loop, step in turn if loop.length > 1 and leaf in self.walked(loop)]
            loops = [loop for loop, _ in along]
            found.setdefault(tuple(step for _, step in along), []).append(incoming)
        if math.prod(loop.length for loop in loops) != count:
            return []
        # Turns that were not simulated are like the last one that was.
        last = [max(steps) for steps in zip(*found, strict=True)]
        slices = itertools.product(*(range(loop.length)[:: -1 if loop.reverse else 1] for loop in loops))
        return [found.get(tuple(map(min, steps, last)), []) for steps in slices]

    def walked(self, loop: ir.Scan) -> set[int]:
        """The leaves that a loop runs over."""
        if loop not in self._walked:
            atoms = loop.inputs[loop.num_consts + loop.num_carry :]
            self._walked[loop] = {leaf for atom in atoms for leaf in self.analysis.of(atom).degrees}
        return self._walked[loop]
