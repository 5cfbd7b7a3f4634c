"""What closes a residual branch: the leaves that, if they are zero, make the branch add zero, found from its end.

From the sum, the value that is added is followed back through operations that map zero to zero: rearrangements, linear
operations, sums of such values, products with anything, and functions f with f(0) = 0. The first thing on the way that
can be zero closes the branch: a parameter that multiplies it (one number, a scale for each channel as in LayerScale, or
the gain of its last norm), a layer on other data that gates it, as in adaptive normalization, or its last layer. Terms
that are added on the way, such as the offset of a norm, must be zero too.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow
from jaxinit._reading._layers import Use
from jaxinit._reading._residual import Skip
from jaxinit._reading._rules import rule_of

_ZERO_AT_ZERO = ir.family(
    *("tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "erf", "erf_inv", "abs", "sign", "sqrt", "cbrt"),
    *("expm1", "log1p", "square", "ceil", "floor", "round", "reduce_max", "reduce_min", "cummax", "cummin", "sort"),
    *("bessel_i1e", "reduce_window_max", "reduce_window_min"),
)
"""Functions with f(0) = 0, of each number or of several together."""


Region: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) along each axis of a leaf."""


class Closing(NamedTuple):
    """What is zero in a closed branch.

    Attributes:
      parameters: factors of the branch, or terms that are added after them: leaves, and the regions of these, None
        for the whole leaf.
      layers: layers whose weight and bias are zero.
    """

    parameters: frozenset[tuple[int, Region | None]]
    layers: frozenset[Use]


_NOTHING = Closing(frozenset(), frozenset())


class _Closer:
    def __init__(self, flow: Flow, skip: Skip):
        self.flow, self.skip = flow, skip
        self.finishes = {use.finish.outputs[0]: use for use in flow.analysis.uses.values()}
        self.trunk = set(self._trunk())
        self._closed: dict[ir.Atom, Closing | None] = {}
        self._on_stream: dict[ir.Atom, bool] = {}

    def _trunk(self) -> Iterator[ir.Atom]:
        """What the branch is added to, and what that is computed from by operations without other data."""
        atom: ir.Atom | None = self.skip.stream
        while atom is not None:
            yield atom
            sources = [] if atom in self.finishes else self.flow.data_sources(atom)
            atom = sources[0] if len(sources) == 1 else None

    def closed(self, atom: ir.Atom) -> Closing | None:
        """What makes a value zero; None if nothing is known to."""
        if atom not in self._closed:
            self._closed[atom] = None  # nothing is known of a value that a loop computes from itself
            self._closed[atom] = self._found(atom)
        return self._closed[atom]

    def _found(self, atom: ir.Atom) -> Closing | None:
        if isinstance(atom, ir.Constant) or not self.flow.is_data(atom):
            return self._parameter(atom)
        use = self.finishes.get(atom)
        if use is not None:
            return _NOTHING._replace(layers=frozenset([use]))
        if atom in self.trunk:
            return None
        equation = self.flow.producer.get(atom)
        if equation is None or ir.subprograms(equation):
            sources = self.flow.sources(atom)
            return self.closed(sources[0]) if len(sources) == 1 else None
        if equation.primitive is ir.mul_p:
            return self._product(equation)
        if equation.primitive is ir.div_p:
            return self.closed(equation.inputs[0])
        if equation.primitive in (ir.max_p, ir.min_p):
            return self.all_closed(equation.inputs)
        if equation.primitive in _ZERO_AT_ZERO:
            return self.closed(equation.inputs[0])
        if equation.primitive is ir.integer_pow_p:
            return self.closed(equation.inputs[0]) if equation.params["y"] > 0 else None
        match rule_of(equation).linear:
            case "all":
                return self.all_closed(equation.inputs)
            case "cases":
                return self.all_closed(equation.inputs[1:])
            case "first":
                return self.closed(equation.inputs[0])
        if equation.primitive in ir.CONTRACTIONS:  # of data with data, such as attention's values and their weights
            return self._product(equation)
        return None

    def _parameter(self, atom: ir.Atom) -> Closing | None:
        """For a value without data: if it is of degree one in one leaf, it is zero if the leaf is."""
        dependence = self.flow.analysis.of(atom)
        if dependence.zero:
            return _NOTHING
        leaves = [leaf for leaf, degree in dependence.degrees.items() if degree != 0]
        if len(leaves) != 1 or dependence.degrees[leaves[0]] != 1:
            return None
        origin = dependence.origins.get(leaves[0])
        return _NOTHING._replace(parameters=frozenset([(leaves[0], None if origin is None else origin.region)]))

    def all_closed(self, atoms: Iterable[ir.Atom]) -> Closing | None:
        """What makes all of these values zero."""
        together = _NOTHING
        for atom in atoms:
            found = self.closed(atom)
            if found is None:
                return None
            together = Closing(together.parameters | found.parameters, together.layers | found.layers)
        return together

    def _product(self, equation: ir.Equation) -> Closing | None:
        """A parameter if there is one, else what gates the value from elsewhere, else the value's own source."""
        data = [a for a in equation.inputs if self.flow.is_data(a)]
        others = [a for a in equation.inputs if a not in data]
        parameters = [found for a in others if (found := self._parameter(a)) is not None and found.parameters]
        if parameters:
            return parameters[0]
        factors = [(self._is_on_stream(a), own) for a in data if (own := self.closed(a)) is not None]
        return min(factors, key=lambda x: (x[0], len(x[1].layers)))[1] if factors else None

    def _is_on_stream(self, atom: ir.Atom) -> bool:
        """Whether a value is computed from what the branch is added to."""
        if atom not in self._on_stream:
            self._on_stream[atom] = any(a is self.skip.stream for a in self.flow.upstream([atom], lambda _: False))
        return self._on_stream[atom]


def closing(flow: Flow, skip: Skip) -> Closing | None:
    """What closes the branch of a skip connection; None if nothing is known to."""
    return _Closer(flow, skip).all_closed(skip.added)
