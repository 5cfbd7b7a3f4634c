"""What closes a residual branch: the leaves that, if they are zero, make the branch add zero, found from its end.

From the sum, the value that is added is followed back through operations that map zero to zero: rearrangements, linear
operations, sums of such values, products with anything, and functions f with f(0) = 0. The first thing on the way that
can be zero closes the branch: a parameter that multiplies it (one number, a scale for each channel as in LayerScale, or
the gain of its last norm), a layer on other data that gates it, as in adaptive normalization, or its last layer. Terms
that are added on the way, such as the offset of a norm, must be zero too.

What is zero must be able to leave zero again, and must be nothing to the rest of the program. So functions whose slope
at zero is zero or infinite, such as ReLU and squares, cannot stand behind it, nor a norm, which would undo any size;
parameters that are not trained do not count; and neither do those that are used elsewhere.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow
from jaxinit._reading._layers import Use
from jaxinit._reading._normalizations import normalizations
from jaxinit._reading._residual import Skip
from jaxinit._reading._rules import rule_of

_SLOPED = ir.family(
    *("tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "erf", "erf_inv", "expm1", "log1p", "bessel_i1e"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "sort"),
)
"""Functions with f(0) = 0 and a finite slope there, of each number or of several together."""

Region: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) along each axis of a leaf."""


class Closing(NamedTuple):
    """What is zero in a closed branch.

    Attributes:
      parameters: factors of the branch, or terms that are added after them: leaves, and the regions of these, None
        for the whole leaf.
      layers: layers whose weight and bias are zero.
      at: the values that they make zero.
    """

    parameters: frozenset[tuple[int, Region | None]] = frozenset()
    layers: frozenset[Use] = frozenset()
    at: frozenset[ir.Atom] = frozenset()


_NOTHING = Closing()


class _Closer:
    def __init__(
        self,
        flow: Flow,
        skip: Skip,
        fixed: Set[int],
        normalizing: Set[ir.Equation],
        finishes: Mapping[ir.Atom, Use],
    ):
        self.flow, self.skip = flow, skip
        self.fixed = fixed
        self.normalizing = normalizing
        self.finishes = finishes
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
            if any(leaf in self.fixed for component in use.components for leaf in component.weight.regions):
                return None
            return Closing(layers=frozenset([use]), at=frozenset([atom]))
        if atom in self.trunk:
            return None
        equation = self.flow.producer.get(atom)
        if equation is None or ir.subprograms(equation):
            sources = self.flow.sources(atom)
            return self.closed(sources[0]) if len(sources) == 1 else None
        if equation.primitive is ir.mul_p:
            return self._product(equation)
        if equation.primitive is ir.div_p:
            return self._unless_undone(equation, equation.inputs[0])
        if equation.primitive in _SLOPED:
            return self.closed(equation.inputs[0])
        if equation.primitive in (ir.max_p, ir.min_p):  # with a number it is flat on one side of zero
            return self.all_closed(equation.inputs) if all(map(self.flow.is_data, equation.inputs)) else None
        match rule_of(equation).linear:
            case "all":
                return self.all_closed(equation.inputs)
            case "cases":
                return None if self._is_flat(equation) else self.all_closed(equation.inputs[1:])
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
        if len(leaves) != 1 or dependence.degrees[leaves[0]] != 1 or leaves[0] in self.fixed:
            return None
        origin = dependence.origins.get(leaves[0])
        return Closing(frozenset([(leaves[0], None if origin is None else origin.region)]))

    def all_closed(self, atoms: Iterable[ir.Atom]) -> Closing | None:
        """What makes all of these values zero."""
        together = _NOTHING
        for atom in atoms:
            found = self.closed(atom)
            if found is None:
                return None
            together = Closing(
                together.parameters | found.parameters, together.layers | found.layers, together.at | found.at
            )
        return together

    def _unless_undone(self, equation: ir.Equation, atom: ir.Atom) -> Closing | None:
        """What makes a factor zero, unless the other one divides by the size of what is zero, as a norm does."""
        found = self.closed(atom)
        if found is None or equation not in self.normalizing:
            return found
        others = [a for a in equation.inputs if a is not atom]
        return found if found.at.isdisjoint(self._upstream(*others)) else None

    def _is_flat(self, equation: ir.Equation) -> bool:
        """Whether a choice decides by a value itself between it and a constant, as ReLU may be written."""
        which, *cases = equation.inputs
        chosen = {a for a in cases if self.flow.is_data(a)}
        return len(chosen) < len(cases) and not chosen.isdisjoint(self._upstream(which))

    def _product(self, equation: ir.Equation) -> Closing | None:
        """A parameter if there is one, else what gates the value from elsewhere, else the value's own source."""
        data = [a for a in equation.inputs if self.flow.is_data(a)]
        others = [a for a in equation.inputs if a not in data]
        parameters = [found for a in others if (found := self._parameter(a)) is not None and found.parameters]
        if parameters:
            return parameters[0]._replace(at=frozenset(equation.outputs))
        factors = [(self._is_on_stream(a), own) for a in data if (own := self._unless_undone(equation, a)) is not None]
        return min(factors, key=lambda x: (x[0], len(x[1].layers)))[1] if factors else None

    def _upstream(self, *atoms: ir.Atom) -> set[ir.Atom]:
        """What values are computed from, not beyond what the branch is added to."""
        return set(self.flow.upstream(atoms, self.trunk.__contains__))

    def _is_on_stream(self, atom: ir.Atom) -> bool:
        """Whether a value is computed from what the branch is added to."""
        if atom not in self._on_stream:
            self._on_stream[atom] = self.skip.stream in self._upstream(atom)
        return self._on_stream[atom]


def closings(flow: Flow, skips: Sequence[Skip], fixed: Set[int]) -> list[Closing | None]:
    """What closes the branch of each skip connection; None if nothing is known to.

    Args:
      flow: what the values of the program are computed from.
      skips: its skip connections.
      fixed: the leaves that are not trained.
    """
    normalizing = frozenset(
        e for e in normalizations(flow.analysis) if all(flow.is_data(a) for a in e.inputs if isinstance(a, ir.Variable))
    )
    finishes: dict[ir.Atom, Use] = {use.finish.outputs[0]: use for use in flow.analysis.uses.values()}
    found = [_Closer(flow, skip, fixed, normalizing, finishes).all_closed(skip.added) for skip in skips]
    layers = {use for own in found if own is not None for use in own.layers}
    counts = Counter(leaf for own in found if own is not None for leaf, _ in own.parameters)
    return [own if own is not None and _is_alone(flow, own, layers, counts) else None for own in found]


def _is_alone(flow: Flow, own: Closing, layers: Set[Use], counts: Mapping[int, int]) -> bool:
    """Whether everything that is zero is zero only where it closes a branch."""
    weights = {component.weight for use in own.layers for component in use.components}
    if not all(use in layers for weight in weights for use in weight.uses):
        return False
    in_weights = {leaf for weight in flow.analysis.weights for leaf in weight.regions}
    reads = Counter(read.leaf for read in flow.analysis.reads)
    return all(leaf not in in_weights and reads[leaf] <= counts[leaf] for leaf, _ in own.parameters)
