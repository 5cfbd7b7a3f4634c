"""Elementwise products: their factors, and whether they scale a normalised value or a residual branch.

A value is normalised if it is multiplied, or divided, by a function of statistics of itself: sums over some axes of a
value that both are computed from, without a layer in between.
"""

import dataclasses
import heapq
import math
from collections.abc import Iterable, Iterator

import numpy as np

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, programs_of

_MOVES = (
    ir.reshape_p,
    ir.transpose_p,
    ir.squeeze_p,
    ir.broadcast_p,
    ir.slice_p,
    ir.rev_p,
    ir.tile_p,
    *ir.IDENTITIES,
)
_REDUCTIONS = ir.family("reduce_sum", "reduce_max", "reduce_window_sum", "psum")
_CUTS = (ir.slice_p, ir.split_p, ir.unstack_p)
_JOINS = (ir.stack_p, ir.concatenate_p)
_pow_p = ir.primitive("pow")


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of several values, in whatever order the program multiplies and divides them.

    Attributes:
      factors: the values; of a quotient, divisors too.
      results: the outputs of its equations that something else reads.
    """

    factors: tuple[ir.Atom, ...]
    results: tuple[ir.Atom, ...]


class Products:
    """The products of a program.

    Args:
      flow: of the whole program.
    """

    def __init__(self, flow: Flow):
        self.flow = flow
        uses = flow.analysis.uses.values()
        self.layers = {e for use in uses for e in (use.equation, *(entry.equation for entry in use.entries))}
        self.readers: dict[ir.Atom, list[ir.Equation]] = {}
        self.order: dict[ir.Atom, int] = {}
        number = 0
        for program in programs_of(flow.analysis.program):
            for equation in program.equations:
                number += 1
                self.order.update(dict.fromkeys(equation.outputs, number))
                for atom in dict.fromkeys(equation.inputs):
                    self.readers.setdefault(atom, []).append(equation)

    def onwards(self, value: ir.Atom) -> Iterator[ir.Equation]:
        """The equations that read a value, directly or through functions of one number."""
        queue, seen = [value], set()
        while queue:
            for _, equation in self.moved(queue.pop()):
                if equation in seen:
                    continue
                seen.add(equation)
                yield equation
                data = [x for x in equation.inputs if self.flow.is_data(x)]
                if len(data) == 1 and equation.primitive in ir.ELEMENTWISE:
                    queue.extend(equation.outputs)

    def multiplies(self, equation: ir.Equation | None) -> bool:
        """Whether an equation multiplies or divides element by element."""
        if equation is None or equation in self.layers:
            return False
        if equation.primitive is ir.dot_general_p:
            (contracted, _), (left, right) = equation.params["dimension_numbers"]
            ranks = [len(atom.shape) for atom in equation.inputs]
            return not contracted and (len(left) == ranks[0] or len(right) == ranks[1])
        return equation.primitive in (ir.mul_p, ir.div_p)

    def unmoved(self, atom: ir.Atom) -> ir.Atom:
        """The value before its elements were moved, copied or cut."""
        while True:
            equation = self.flow.producer.get(atom)
            if equation is None:
                sources = self.flow.sources(atom)
                if len(sources) != 1:
                    return atom
                (atom,) = sources
            elif equation.primitive in _MOVES:
                atom = equation.inputs[0]
            else:
                return atom

    def moved(self, atom: ir.Atom) -> Iterator[tuple[ir.Atom, ir.Equation]]:
        """The equations that read a value, directly or after moves, with what they read."""
        for equation in self.readers.get(atom, ()):
            if equation.primitive in _MOVES:
                yield from self.moved(equation.outputs[0])
            else:
                yield atom, equation

    def of(self, equation: ir.Equation) -> Product:
        """The product that an equation is part of."""
        factors: dict[ir.Atom, None] = {}
        results: dict[ir.Atom, None] = {}
        # Further factors of the product belong to it; other uses of its factors do not.
        seen, queue = {equation}, [(equation, True)]
        while queue:
            current, onwards = queue.pop()
            for atom in map(self.unmoved, current.inputs):
                maker = self.flow.producer.get(atom)
                if maker is None or not self.multiplies(maker):
                    factors[atom] = None
                elif maker not in seen:
                    seen.add(maker)
                    queue.append((maker, False))
            for _, reader in self.moved(current.outputs[0]) if onwards else ():
                if not self.multiplies(reader):
                    results[current.outputs[0]] = None
                elif reader not in seen:
                    seen.add(reader)
                    queue.append((reader, True))
        return Product(tuple(factors), tuple(results))

    def is_normalised(self, product: Product, equation: ir.Equation) -> bool:
        """Whether a factor of a product is a statistic of another factor, and not of the equation's result."""
        data = [x for x in product.factors if self.flow.is_data(x)]
        return any(self._is_statistic(x, data, equation.outputs[0]) for x in data)

    def normalises_itself(self, atom: ir.Atom) -> bool:
        """Whether a function of parameters is divided by statistics of itself."""
        maker = self.flow.producer.get(self.unmoved(atom))
        if maker is None or not self.multiplies(maker):
            return False
        factors = list(self.of(maker).factors)
        return any(self._is_statistic(x, factors, None) for x in factors)

    def _is_statistic(self, value: ir.Atom, factors: list[ir.Atom], excluded: ir.Atom | None) -> bool:
        value = self._unspread(value)
        size = math.prod(value.shape)
        others = [x for x in factors if math.prod(x.shape) > size]
        if not others:
            return False
        reduced = self._reduced(value)
        if excluded is not None and any(self.is_computed_from(x, excluded) for x in reduced):
            return False
        return bool(reduced) and self.meet(reduced, others)

    def _unspread(self, value: ir.Atom) -> ir.Atom:
        """What a value is an elementwise function of, before it was spread over more elements."""
        while True:
            value = self.unmoved(value)
            equation = self.flow.producer.get(value)
            if equation is None or equation in self.layers or equation.primitive not in ir.ELEMENTWISE:
                return value
            data = [x for x in equation.inputs if self.flow.is_data(x)]
            inputs = data or [x for x in equation.inputs if isinstance(x, ir.Variable)]
            if len(inputs) != 1:
                return value
            (value,) = inputs

    def _reduced(self, value: ir.Atom) -> list[ir.Atom]:
        """The data that a value is a sum over, if it is computed from nothing else of that size.

        Several statistics may be computed as one array and cut apart, with functions of one number in between.
        """
        size, seen = math.prod(value.shape), set()
        found: list[ir.Atom] = []
        queue = [(value, False)]
        while queue:
            atom, cut = queue.pop()
            equation = self.flow.producer.get(atom)
            if equation is None or (equation, cut) in seen or equation in self.layers or ir.subprograms(equation):
                continue
            seen.add((equation, cut))
            inputs = [x for x in equation.inputs if isinstance(x, ir.Variable)]
            if equation.primitive in (*_REDUCTIONS, ir.dot_general_p):
                found.extend(inputs)
            elif not cut and all(math.prod(x.shape) <= size for x in inputs):
                queue.extend((x, False) for x in inputs)
            elif equation.primitive in _CUTS or (cut and (len(inputs) == 1 or equation.primitive in _JOINS)):
                queue.extend((x, True) for x in inputs)
        return found

    def meet(self, left: Iterable[ir.Atom], right: Iterable[ir.Atom]) -> bool:
        """Whether values on both sides are computed from one value, without a layer in between."""
        sides: dict[ir.Atom, int] = {}
        heap: list[tuple[int, int, ir.Atom]] = []

        def visit(atom: ir.Atom, side: int) -> None:
            if isinstance(atom, ir.Variable) and sides.get(atom, 0) | side != sides.get(atom, 0):
                sides[atom] = sides.get(atom, 0) | side
                heapq.heappush(heap, (-self.order.get(atom, 0), id(atom), atom))

        for side, atoms in enumerate((left, right)):
            for atom in atoms:
                visit(atom, 1 << side)
        while heap:
            *_, atom = heapq.heappop(heap)
            if sides[atom] == 3:
                return True
            equation = self.flow.producer.get(atom)
            if equation is not None and equation not in self.layers and not ir.subprograms(equation):
                for x in equation.inputs:
                    visit(x, sides[atom])
        return False

    def is_computed_from(self, value: ir.Atom, source: ir.Atom) -> bool:
        """Whether a value is computed from another one of the same program."""
        first, seen, queue = self.order.get(source, 0), set(), [value]
        while queue:
            atom = queue.pop()
            if atom is source:
                return True
            equation = self.flow.producer.get(atom)
            if equation is not None and atom not in seen and self.order[atom] > first:
                seen.add(atom)
                queue.extend(equation.inputs)
        return False

    def is_residual(self, product: Product) -> bool:
        """Whether a product, apart from masks and offsets, is added to a value that it is computed from."""
        return any(self._is_added_to_source(x) for x in product.results)

    def _is_added_to_source(self, value: ir.Atom) -> bool:
        for equation in self.onwards(value):
            if equation.primitive in (ir.add_p, ir.add_any_p) and all(map(self.flow.is_data, equation.inputs)):
                sources = map(self.unmoved_here, equation.inputs)
                if any(x is not value and self.is_computed_from(value, x) for x in sources):
                    return True
        return False

    def unmoved_here(self, atom: ir.Atom) -> ir.Atom:
        """As `unmoved`, within the program, and without cuts."""
        while (equation := self.flow.producer.get(atom)) is not None and equation.primitive in _MOVES:
            if equation.primitive is ir.slice_p:
                break
            atom = equation.inputs[0]
        return atom

    def is_under_root(self, atom: ir.Atom, leaf: int) -> bool:
        """Whether a function of parameters takes a root of a leaf, as of a variance."""
        seen: set[ir.Atom] = set()
        queue = [atom]
        while queue:
            atom = queue.pop()
            if atom in seen or not depends_on(self.flow, atom, leaf):
                continue
            seen.add(atom)
            equation = self.flow.producer.get(atom)
            if equation is not None and _is_root(equation):
                return True
            queue.extend(self.flow.sources(atom))
        return False


def _is_root(equation: ir.Equation) -> bool:
    if equation.primitive is _pow_p:
        exponent = equation.inputs[1]
        return (
            isinstance(exponent, ir.Constant) and ir.is_known(exponent) and bool(np.all(np.abs(exponent.value) == 0.5))
        )
    return equation.primitive in (ir.sqrt_p, ir.rsqrt_p)


def depends_on(flow: Flow, atom: ir.Atom, leaf: int) -> bool:
    """Whether a function of parameters depends on a leaf."""
    found = flow.analysis.of(atom)
    return not found.data and any(leaf in part.degrees for part in found.parts)
