"""Low-rank additions to a layer, written beside it: x @ W + c · (x @ A) @ B, as adapters of frozen models have.

Both products use the same data, there are only constants between A and B, and the rank is smaller than the numbers of
inputs and outputs. Hu et al., 2021, "LoRA" (arXiv:2106.09685).
"""

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, programs_of
from jaxinit._reading._layers import Use
from jaxinit._reading._rules import rule_of


def low_rank_pairs(flow: Flow) -> list[tuple[Use, Use]]:
    """The two layers of each low-rank addition to another layer, in order of execution."""
    return _LowRankPairs(flow).pairs()


class _LowRankPairs:
    def __init__(self, flow: Flow):
        self.flow = flow
        self.uses = list(flow.analysis.uses.values())
        self.made_by = {use.finish.outputs[0]: use for use in self.uses}
        self.readers: dict[ir.Atom, list[ir.Equation]] = {}
        for program in programs_of(flow.analysis.program):
            for equation in program.equations:
                for atom in dict.fromkeys(equation.inputs):
                    self.readers.setdefault(atom, []).append(equation)

    def pairs(self) -> list[tuple[Use, Use]]:
        found = []
        for second in self.uses:
            first = self._layer(second.data) if _is_product(second) else None
            if first is None or not _is_product(first):
                continue
            rank = first.geometry.fan_out
            other = self._added_to(second)
            if other is None or not rank < min(first.geometry.fan_in, second.geometry.fan_out):
                continue
            if other is not first and self._root(other.data) is self._root(first.data):
                found.append((first, second))
        return found

    def _layer(self, atom: ir.Atom) -> Use | None:
        """The layer whose output a value is, moved, multiplied by numbers, or with something added to it."""
        while atom not in self.made_by:
            equation = self.flow.producer.get(atom)
            following = None if equation is None else self._carried(equation)
            if following is None:
                return None
            atom = following
        return self.made_by[atom]

    def _carried(self, equation: ir.Equation) -> ir.Atom | None:
        """The one operand with data of an equation that is linear in it."""
        data = [x for x in equation.inputs if self.flow.is_data(x)]
        rule = rule_of(equation)
        if len(data) != 1 or not (rule.elementwise or rule.rearranges):
            return None
        return data[0] if rule.is_linear_in([x is data[0] for x in equation.inputs]) else None

    def _added_to(self, use: Use) -> Use | None:
        """The layer to whose output that of another one is added."""
        (atom,) = use.finish.outputs
        while len(readers := self.readers.get(atom, [])) == 1:
            (equation,) = readers
            if equation.primitive in (ir.add_p, ir.add_any_p) and all(map(self.flow.is_data, equation.inputs)):
                return next((self._layer(x) for x in equation.inputs if x is not atom), None)
            if self._carried(equation) is not atom or len(equation.outputs) != 1:
                return None
            (atom,) = equation.outputs
        return None

    def _root(self, atom: ir.Atom) -> ir.Atom:
        """What a value was before it was moved or cast."""
        while (equation := self.flow.producer.get(atom)) is not None and rule_of(equation).rearranges:
            atom = equation.inputs[0]
        return atom


def _is_product(use: Use) -> bool:
    return len(use.entries) == 1 and not use.biases and use.geometry.kind in ("dense", "einsum")
