"""What the analysis of a program finds: operations that are layers, and the parts of the parameters they use."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxinit import _program as ir
from jaxinit._reading._dependence import DATA, INDEPENDENT, Dependence
from jaxinit._reading._geometry import Geometry
from jaxinit._reading._origin import Factor, Origin


class Entry(NamedTuple):
    """An equation in which data meets a weight, and which of its inputs the weight is."""

    equation: ir.Equation
    weight: int

    @property
    def atom(self) -> ir.Atom:
        """The weight."""
        return self.equation.inputs[self.weight]

    @property
    def data(self) -> ir.Atom:
        """The data that it is applied to."""
        return self.equation.inputs[1 - self.weight]


@dataclasses.dataclass(eq=False, repr=False)
class Weight:
    """A part of a leaf that is scaled on its own, or with parts of other leaves that form one weight with it.

    Attributes:
      leaf: index of the leaf.
      region: (start, stop) along each axis of the leaf.
      members: the other leaves that are scaled alike, such as the imaginary parts of a weight, and their regions.
      stack: factors of the leaf that enclosing scans run over; the weight has a scale for each step.
      order: along these factors, the iteration of each slice.
      uses: the operations that use it, in execution order.
      refused: why it must keep its scale, or None.
      index: its number in order of first use; weights sort by it, so that they can be keys of a pytree.
    """

    leaf: int
    region: tuple[tuple[int, int], ...]
    stack: tuple[Factor, ...]
    order: np.ndarray
    uses: "list[Use]" = dataclasses.field(default_factory=list)
    refused: str | None = None
    index: int = 0
    members: dict[int, tuple[tuple[int, int], ...]] = dataclasses.field(default_factory=dict)

    @property
    def regions(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """Leaf → the part of it that belongs to the weight, for all leaves that are scaled together."""
        return {self.leaf: self.region, **self.members}

    def is_alike(self, leaf: int) -> bool:
        """Whether elements of the weight are elements of a leaf, or sums with some, such as with its imaginary part.

        This is false for factors of a term that is added to a weight.
        """
        factors = self.factors_with(leaf)
        if factors:
            return len(factors) == 1
        return self.sizes_in(self.leaf) == self.sizes_in(leaf)

    def sizes_in(self, leaf: int) -> list[int]:
        """The shape of the part of a leaf."""
        return [stop - start for start, stop in self.regions[leaf]]

    def factors_with(self, leaf: int) -> frozenset[int]:
        """The leaves of the term of the weight that a leaf is in, without those that are in all terms."""
        if not self.terms:
            return frozenset()
        common = frozenset.intersection(*self.terms)
        return next((term - common for term in self.terms if leaf in term - common), frozenset())

    @property
    def terms(self) -> tuple[frozenset[int], ...]:
        """Of a weight that is a sum, the leaves of each term."""
        if not self.uses:
            return ()
        return next(
            (component.dependence.terms for component in self.uses[0].components if component.weight is self), ()
        )

    def seen_in(self, leaf: int) -> "Weight":
        """The same weight as a part of another of its leaves."""
        regions = self.regions
        return dataclasses.replace(self, leaf=leaf, region=regions.pop(leaf), members=regions)

    @property
    def use_count(self) -> int:
        """How often one pass through the program uses it; for a stacked weight, each of its slices."""
        return sum(use.repeats for use in self.uses)

    @property
    def first_component(self) -> "Component":
        """Its share in the weight of its first use."""
        return next(component for component in self.uses[0].components if component.weight is self)

    def __lt__(self, other: "Weight") -> bool:
        return self.index < other.index


@dataclasses.dataclass(eq=False, repr=False)
class Component:
    """The share of one weight in what a use multiplies: all of it, or a segment of a concatenation.

    Attributes:
      weight: the part of the leaf.
      dependence: how the weight, or the segment, depends on the leaves.
      fan_out: connections out of a unit of its input.
      start, size: the segment along the concatenation; no size if there is none.
      ensemble: the factors of its leaf along which there are independent weights that meet the same data.
    """

    weight: Weight
    dependence: Dependence
    fan_out: int | float
    start: int = 0
    size: int | None = None
    ensemble: frozenset[Factor] = frozenset()

    @property
    def origin(self) -> Origin | None:
        """Where the elements come from, if known."""
        return self.dependence.origins.get(self.weight.leaf)


class Bias(NamedTuple):
    """A value that depends on no data and is added to a layer's output, or subtracted, and where.

    Attributes:
      value: a parameter, a function of parameters, or a constant.
      equation: the sum or difference.
      is_parameter: whether it depends on any leaf.
      sign: with which it enters the output of the layer, 1 or -1.
      moves: the rearrangements of the sum on its way to the output of the layer, in order.
      is_noise: whether it is computed from random numbers, which are not measured.
    """

    value: ir.Atom
    equation: ir.Equation
    is_parameter: bool = True
    sign: int = 1
    moves: tuple[ir.Equation, ...] = ()
    is_noise: bool = False


@dataclasses.dataclass(eq=False, repr=False)
class Use:
    """One use of a weight, or of several side by side: the operation between data and it, or a sum of such operations.

    Attributes:
      entries: where data meets the weight.
      equation: the equation whose output is linear in the weight: the operation, or the sum.
      lookup: where data picks the weight from a leaf, or None.
      geometry: the roles of the weight's dimensions.
      components: the weights that the weight consists of.
      finish: the equation whose output is the pre-activation: the operation itself, or the last addition of a bias. It
        is the output of the operation, rearranged and with either sign, plus the biases.
      biases: what is added to the output before anything else happens to it, in order.
      bias_dims: the dimensions of that output along which their sum varies, not counting noise.
      placed: dimension of the weight → dimension of the output of `finish`.
      segment_dim: the dimension of that output along which the parts are concatenated.
      sign: with which the operation's output enters that of `finish`.
      repeats: how often one pass through the program executes it for each of its weight's scales.
      makes: the fan-in of the weight that the output becomes in the next product, 1 if it does not become a weight.
    """

    entries: tuple[Entry, ...]
    equation: ir.Equation
    geometry: Geometry
    components: list[Component]
    finish: ir.Equation
    biases: "tuple[Bias, ...]"
    bias_dims: frozenset[int]
    placed: dict[int, int]
    segment_dim: int | None
    repeats: int
    lookup: Entry | None = None
    makes: int = 1
    sign: int = 1

    @property
    def bias(self) -> ir.Atom | None:
        """The first bias that depends on parameters, if there is one."""
        return next((bias.value for bias in self.biases if bias.is_parameter), None)

    @property
    def data(self) -> ir.Atom:
        """The data that the weight is applied to."""
        return self.entries[0].data

    @property
    def weight(self) -> ir.Atom:
        """The weight, as the first operation uses it."""
        return self.entries[0].atom


class Read(NamedTuple):
    """A place where data meets a leaf other than as the weight of a layer.

    Attributes:
      leaf: index of the leaf.
      origin: which elements, if known.
      degree: of homogeneity, None where there is none.
      position: how many uses come before it.
      stack: factors of the leaf that enclosing loops run over.
      primitive: what the data does with it.
    """

    leaf: int
    origin: Origin | None
    degree: float | None
    position: int
    stack: tuple[Factor, ...] = ()
    primitive: Any = None


@dataclasses.dataclass
class Analysis:
    """The results of the walk.

    Attributes:
      program: the program, whose first inputs are the leaves of the parameters.
      dependences: what each variable depends on.
      uses: the layers in execution order, by the equation that finishes each.
      weights: the parts of the parameters that are scaled on their own, in order of first use.
      opaque: leaves that are not the weight of a layer though data meets them as one, and why.
      reads: where else data meets a leaf.
      read_leaves: the leaves that an output depends on.
      as_data: constants, and functions of parameters, that layers use as data.
      noise: values that depend on random numbers, and on no data.
    """

    program: ir.Program
    dependences: dict[ir.Variable, Dependence]
    uses: dict[ir.Equation, Use]
    weights: list[Weight]
    opaque: list[tuple[int, str]]
    reads: list[Read]
    read_leaves: set[int]
    as_data: frozenset[ir.Atom] = frozenset()
    noise: frozenset[ir.Atom] = frozenset()

    def of(self, atom: ir.Atom) -> Dependence:
        """What a value depends on."""
        found = self.dependences.get(atom)  # type: ignore[arg-type]
        return found or (DATA if atom in self.as_data else INDEPENDENT)
