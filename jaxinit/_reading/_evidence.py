"""Evidence for the role of a leaf: every equation in which data meets it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, programs_of
from jaxinit._reading._layers import Use
from jaxinit._reading._origin import FOREIGN
from jaxinit._reading._products import Product, Products, depends_on
from jaxinit._reading._reach import leaves_of_outputs
from jaxinit._reading._residual import Skip


@dataclasses.dataclass(frozen=True)
class LeafRole:
    """The role of a leaf in the program.

    Attributes:
      name: "kernel" (of a layer whose scale cannot be set), "bias" of a layer, "gate bias", "scale", "multiplier" of a
        residual branch by one number, "shortcut" that multiplies what a branch is added to, "offset", "position",
        "token", "embedding" that layers use as data, "several", or one of `KEPT`.
      reason: the evidence, in words.
      start: the value at which the leaf has no effect, if there is one.
      use: the layer whose bias it is.
      slices: for a leaf whose slices have roles of their own, "several", these roles: (start, stop) along each axis,
        and the role.
    """

    name: str
    reason: str
    start: float | None = None
    use: Use | None = None
    slices: "tuple[tuple[tuple[tuple[int, int], ...], LeafRole], ...]" = ()


class Reader(NamedTuple):
    """An equation in which data meets a leaf, the position of the leaf's value among its inputs, and its degree."""

    leaf: int
    equation: ir.Equation
    position: int
    degree: float | None

    @property
    def atom(self) -> ir.Atom:
        return self.equation.inputs[self.position]


class Evidence:
    """The evidence that rules use.

    Attributes:
      uses: leaf → where data meets it.
      bias_of: an equation that adds a bias → its layer.
      sums: the weights that are sums.
      variances: leaves whose roots go into a product with data.
      taken_as_data: leaves that layers use as data, at most moved or added to one another.
    """

    def __init__(self, flow: Flow, skips: Sequence[Skip], shapes: Sequence[tuple[int, ...]]):
        self.flow, self.skips, self.shapes = flow, skips, shapes
        self.analysis, self.products = flow.analysis, Products(flow)
        self.program = self.analysis.program
        uses = list(self.analysis.uses.values())
        self.use_of = {(entry.equation, entry.weight): use for use in uses for entry in use.entries}
        self.bias_of = {bias.equation: use for use in uses for bias in use.biases}
        self.sums = [weight for weight in self.analysis.weights if weight.terms]
        self.readers: dict[int, list[Reader]] = {}
        self.carries: set[ir.Atom] = set()
        self.walked: set[ir.Atom] = set()
        for program in programs_of(self.program):
            for equation in program.equations:
                self._enter(equation)
        self.reached = leaves_of_outputs(self.analysis, len(shapes))
        self.trained = leaves_of_outputs(self.analysis, len(shapes), frozen=True)
        self.taken_as_data = self._taken_as_data()
        self.opaque = dict(reversed(self.analysis.opaque))
        found = [u for readers in self.readers.values() for u in readers if self.products.multiplies(u.equation)]
        self.variances = {reader.leaf for reader in found if self.products.is_under_root(reader.atom, reader.leaf)}

    def _enter(self, equation: ir.Equation) -> None:
        match equation:
            case ir.Scan():
                first, last = equation.num_consts, equation.num_consts + equation.num_carry
                self.carries.update(equation.body.inputs[first:last])
                self.walked.update(equation.body.inputs[last:])
            case ir.While():
                self.carries.update(equation.body.inputs[equation.body_consts :])
        if ir.subprograms(equation) or not any(self.flow.is_data(x) for x in equation.inputs):
            return
        for i, atom in enumerate(equation.inputs):
            found = self.analysis.of(atom)
            if not found.data:
                for part in found.parts:
                    for leaf, degree in part.degrees.items():
                        self.readers.setdefault(leaf, []).append(Reader(leaf, equation, i, degree))

    def _taken_as_data(self) -> frozenset[int]:
        inputs = {v: i for i, v in enumerate(self.program.inputs[: len(self.shapes)])}
        found: set[int] = set()
        queue, seen = list(self.analysis.as_data), set()
        while queue:
            atom = self.products.unmoved(queue.pop())
            if atom in seen:
                continue
            seen.add(atom)
            if isinstance(atom, ir.Variable) and atom in inputs:
                found.add(inputs[atom])
            maker = self.flow.producer.get(atom)
            if maker is not None and maker.primitive in (ir.add_p, ir.add_any_p):
                queue.extend(maker.inputs)
        return frozenset(found)

    def is_weight(self, reader: Reader) -> bool:
        """Whether it reads the leaf as a layer's weight."""
        use = self.use_of.get((reader.equation, reader.position))
        return (
            use is not None
            and reader.degree == 1
            and any(reader.leaf in component.weight.regions for component in use.components)
        )

    def multiplier(self, leaf: int) -> str | None:
        """Whether a leaf multiplies a branch or what it is added to, as one number."""
        if any(leaf == skip.multiplier for skip in self.skips):
            return "multiplier"
        return "shortcut" if any(leaf == skip.shortcut for skip in self.skips) else None

    def met_shape(self, reader: Reader) -> tuple[int, ...]:
        """The shape of a leaf as the program meets it: without axes that loops run over."""
        origin = self.analysis.of(reader.atom).origins.get(reader.leaf)
        if origin is not None:
            return tuple(f.size for dim in origin.dims for f in dim if f.axis != FOREIGN)
        queue: list[ir.Atom] = [reader.atom]
        seen: set[ir.Atom] = set()
        while queue:
            atom = queue.pop()
            if atom in self.walked:
                return atom.shape
            if atom not in seen and depends_on(self.flow, atom, reader.leaf):
                seen.add(atom)
                queue.extend(self.flow.sources(atom))
        return self.shapes[reader.leaf]

    def is_number(self, reader: Reader, product: Product) -> bool:
        """Whether all channels of data meet the same element of a leaf."""
        if math.prod(self.met_shape(reader)) > 1:
            return False
        data = [x for x in product.factors if self.flow.is_data(x)]
        return 1 not in max(data, key=lambda x: math.prod(x.shape)).shape[1:]


def is_of_integers(flow: Flow, atom: ir.Atom, leaves: int) -> bool:
    """Whether integer parameters, cast to floating-point numbers, go into a function of parameters."""
    inputs = set(flow.analysis.program.inputs[:leaves])
    queue: list[tuple[ir.Atom, bool]] = [(atom, False)]
    seen: set[tuple[ir.Atom, bool]] = set()
    while queue:
        entry = queue.pop()
        atom, cast = entry
        if entry in seen or not isinstance(atom, ir.Variable):
            continue
        seen.add(entry)
        if cast and atom in inputs and not ir.is_floating(atom):
            return True
        equation = flow.producer.get(atom)
        if equation is None:
            queue.extend((x, cast) for x in flow.sources(atom))
        elif equation.primitive is ir.gather_p and not cast:
            table, indices, *_ = equation.inputs
            queue.extend([(table, cast), (indices, isinstance(table, ir.Constant))])
        elif not ir.subprograms(equation):
            turned = cast or (
                equation.primitive is ir.convert_p and not ir.is_floating(equation.inputs[0]) and ir.is_floating(atom)
            )
            queue.extend((x, turned) for x in equation.inputs)
    return False
