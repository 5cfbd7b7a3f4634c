"""Low-rank additions to a layer, written beside it: x @ W + c · (x @ A) @ B, as adapters of frozen models have.

Both products use the same data, there are only constants between A and B, and the rank is smaller than the numbers of
inputs and outputs. Hu et al., 2021, "LoRA" (arXiv:2106.09685).
"""

import dataclasses
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, programs_of
from jaxinit._reading._layers import Entry, Use
from jaxinit._reading._rules import rule_of

_MOST_TERMS = 8
"""How many sums deep the layer beside an addition is looked for."""


class Step(NamedTuple):
    """One equation on the way of a value, which of its inputs the value is, and which of its outputs comes of it."""

    equation: ir.Equation
    operand: int
    output: int


@dataclasses.dataclass(frozen=True, eq=False)
class LowRankPair:
    """The layers of x @ W + c · (x @ A) @ B, and the steps between them, each way in order of execution.

    Attributes:
      base: the layer of W, or None for a product with something that is not read as a weight, such as with integers.
      base_leaves: the leaves that W is made of.
      first, second: the layers of A and B.
      data: x.
      to_base, to_first: from x to the products with W and A.
      between: from the product with A to that with B.
      beside, behind: from the products with W and B to the sum.
    """

    base: Use | None
    base_leaves: frozenset[int]
    first: Use
    second: Use
    data: ir.Atom
    to_base: tuple[Step, ...]
    to_first: tuple[Step, ...]
    between: tuple[Step, ...]
    beside: tuple[Step, ...]
    behind: tuple[Step, ...]


def low_rank_pairs(flow: Flow) -> list[LowRankPair]:
    """The low-rank additions to other layers, in order of execution."""
    return _LowRankPairs(flow).pairs()


class _LowRankPairs:
    def __init__(self, flow: Flow):
        self.flow = flow
        self.uses = list(flow.analysis.uses.values())
        self.made_by: dict[ir.Atom, Use] = {_start(use): use for use in self.uses}
        self.readers: dict[ir.Atom, list[ir.Equation]] = {}
        for program in programs_of(flow.analysis.program):
            for equation in program.equations:
                for atom in dict.fromkeys(equation.inputs):
                    self.readers.setdefault(atom, []).append(equation)

    def pairs(self) -> list[LowRankPair]:
        found = []
        for second in self.uses:
            if not _is_product(second):
                continue
            end, between = self._back(second.data)
            first = self.made_by.get(end)
            if first is None or not _is_product(first):
                continue
            data, to_first = self._root(first.data)
            added = self._added_to(second, data, first)
            if added is not None and first.geometry.fan_out < min(first.geometry.fan_in, second.geometry.fan_out):
                base, beside, behind = added
                use, leaves = self.made_by.get(base.equation.outputs[0]), self._leaves(base.atom)
                to_base = self._root(base.data)[1]
                found.append(LowRankPair(use, leaves, first, second, data, to_base, to_first, between, beside, behind))
        return found

    def _back(self, atom: ir.Atom) -> tuple[ir.Atom, tuple[Step, ...]]:
        """The layer's output that a value was before it was moved, multiplied, or something was added; and the steps.

        Where no layer is found, the value that more was done to.
        """
        steps: list[Step] = []
        while atom not in self.made_by and (equation := self.flow.producer.get(atom)) is not None:
            operand = self._carried(equation)
            if operand is None:
                break
            steps.append(Step(equation, operand, equation.outputs.index(atom)))  # type: ignore[arg-type]
            atom = equation.inputs[operand]
        return atom, tuple(reversed(steps))

    def _product(self, atom: ir.Atom) -> Entry | None:
        """The product that a value is the output of."""
        if atom in self.made_by:
            return self.made_by[atom].entries[0]
        equation = self.flow.producer.get(atom)
        if equation is None or equation.primitive is not ir.dot_general_p:
            return None
        fixed = [i for i, x in enumerate(equation.inputs) if not self.flow.is_data(x)]
        return Entry(equation, fixed[0]) if len(fixed) == 1 else None

    def _leaves(self, atom: ir.Atom) -> frozenset[int]:
        """The leaves that a value is computed from."""
        index = {v: i for i, v in enumerate(self.flow.analysis.program.inputs)}
        seen: set[ir.Atom] = set()
        queue = [atom]
        while queue:
            atom = queue.pop()
            if atom not in seen:
                seen.add(atom)
                queue.extend(self.flow.sources(atom))
        return frozenset(index[x] for x in seen if x in index)  # type: ignore[index]

    def _carried(self, equation: ir.Equation) -> int | None:
        """The one operand with data of an equation that is linear in it."""
        data = [i for i, x in enumerate(equation.inputs) if self.flow.is_data(x)]
        rule = rule_of(equation)
        if len(data) != 1 or not (rule.elementwise or rule.rearranges):
            return None
        return data[0] if rule.is_linear_in([i == data[0] for i in range(len(equation.inputs))]) else None

    def _added_to(self, use: Use, data: ir.Atom, but: Use) -> tuple[Entry, tuple[Step, ...], tuple[Step, ...]] | None:
        """The product of some data to which a layer's output is added, not that of `but`, and the steps to the sum."""
        atom: ir.Atom = _start(use)
        steps: list[Step] = []
        while len(readers := self.readers.get(atom, [])) == 1:
            (equation,) = readers
            if equation.primitive in ir.ADDITIONS and all(map(self.flow.is_data, equation.inputs)):
                own = equation.inputs.index(atom)
                found = self._summand(equation.inputs[1 - own], data, but)
                operand: int | None = own
                if found is not None:
                    return found[0], (*found[1], Step(equation, 1 - own, 0)), (*steps, Step(equation, own, 0))
            else:
                operand = self._carried(equation)
            if operand is None or len(equation.outputs) != 1:
                break
            steps.append(Step(equation, operand, 0))
            (atom,) = equation.outputs
        return None

    def _summand(
        self, atom: ir.Atom, data: ir.Atom, but: Use, terms: int = _MOST_TERMS
    ) -> tuple[Entry, tuple[Step, ...]] | None:
        """The product of some data that a value is, or is a sum with, as where there are several adapters."""
        end, steps = self._back(atom)
        product, equation = self._product(end), self.flow.producer.get(end)
        if product is not None:
            fits = self._root(product.data)[0] is data and product.equation is not but.entries[0].equation
            return (product, steps) if fits else None
        if equation is None or equation.primitive not in ir.ADDITIONS or terms == 0:
            return None
        for operand, summand in enumerate(equation.inputs):
            found = self._summand(summand, data, but, terms - 1) if self.flow.is_data(summand) else None
            if found is not None:
                return found[0], (*found[1], Step(equation, operand, 0), *steps)
        return None

    def _root(self, atom: ir.Atom) -> tuple[ir.Atom, tuple[Step, ...]]:
        """What a value was before it was moved or cast, and the steps since."""
        steps: list[Step] = []
        while (equation := self.flow.producer.get(atom)) is not None and rule_of(equation).rearranges:
            output = equation.outputs.index(atom)  # type: ignore[arg-type]
            # A barrier hands on several values.
            operand = output if len(equation.inputs) == len(equation.outputs) else 0
            steps.append(Step(equation, operand, output))
            atom = equation.inputs[operand]
        return atom, tuple(reversed(steps))


def _start(use: Use) -> ir.Variable:
    """The output of a layer before its bias, if it is one product; else its pre-activation."""
    return (use.entries[0].equation if is_one_product(use) else use.finish).outputs[0]


def is_one_product(use: Use) -> bool:
    """Whether a layer is one `dot_general`."""
    return len(use.entries) == 1 and use.entries[0].equation.primitive is ir.dot_general_p and use.lookup is None


def _is_product(use: Use) -> bool:
    return len(use.entries) == 1 and not use.biases and use.geometry.kind in ("dense", "einsum")
