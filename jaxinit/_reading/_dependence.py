"""What a value depends on: on data or not, and how it grows with each leaf of the parameters.

A value that depends on no data is homogeneous of degree d in a leaf θ if multiplying θ by s > 0 multiplies the value by
sᵈ. Weights are the values of degree one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxinit import _program as ir
from jaxinit._reading import _one_hot
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._origin import Origin


@dataclasses.dataclass(frozen=True)
class Segments:
    """A concatenation of values with different leaves along one dimension."""

    dimension: int
    sizes: tuple[int, ...]
    parts: "tuple[Dependence, ...]"


@dataclasses.dataclass(frozen=True)
class Dependence:
    """What a value depends on.

    Attributes:
      data: whether it depends on the batch; degrees are then meaningless, and empty.
      degrees: leaf → degree of homogeneity, None if there is none; leaves that are not listed have no influence.
      origins: leaf → origin of the elements, where known.
      terms: for a sum of values with leaves of their own, such as re + i·im or W + A·B, the leaves of each term.
        Degrees then hold for leaves that are in all terms; for others only jointly, one of each term.
      segments: for a concatenation of different leaves, the parts; each leaf's degree in the whole is None.
      pattern: whether it is one-hot, or something from which such values are computed.
      zero: whether all elements are known to be zero, or not a number.
      mixed_in: for data, the leaves that data has chosen or multiplied to compute it, and their origins where known.
    """

    data: bool = False
    degrees: Mapping[int, float | None] = dataclasses.field(default_factory=dict)
    origins: Mapping[int, Origin] = dataclasses.field(default_factory=dict)
    terms: tuple[frozenset[int], ...] = ()
    segments: Segments | None = None
    pattern: Pattern = NONE
    zero: bool = False
    mixed_in: Mapping[int, Origin | None] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> "tuple[Dependence, ...]":
        """The segments, or the value itself."""
        return self.segments.parts if self.segments else (self,)

    def map(self, rearrange: Callable[[Origin], Origin | None]) -> "Dependence":
        """The same degrees, with other origins."""
        moved = {leaf: rearrange(origin) for leaf, origin in self.origins.items()}
        origins = {leaf: o for leaf, o in moved.items() if o is not None}
        return Dependence(degrees=self.degrees, origins=origins, terms=self.terms)

    def negated(self) -> "Dependence":
        """With the opposite sign."""
        return self if self.segments is not None else self.map(Origin.multiplied)

    def without_origins(self) -> "Dependence":
        """The same degrees, with the elements mixed."""
        return Dependence(degrees=self.degrees, terms=self.terms)

    def power(self, exponent: float) -> "Dependence":
        """The value raised to a power, element by element."""
        degrees = {leaf: None if d is None else d * exponent for leaf, d in self.degrees.items()}
        return Dependence(degrees=degrees, origins=multiplied(self.origins), terms=self.terms)

    def degree(self, leaf: int) -> float | None:
        """How the value grows with one leaf alone; 0 for a leaf that it does not depend on."""
        if any(leaf not in term for term in self.terms) and leaf in self.degrees:
            return None
        return self.degrees.get(leaf, 0.0)


INDEPENDENT = Dependence()
ZERO = Dependence(zero=True)
DATA = Dependence(data=True)


def of_constant(constant: ir.Constant) -> Dependence:
    """A value known when the function was traced."""
    if _is_zero(constant):
        return ZERO
    pattern = _one_hot.of_constant(constant)
    return INDEPENDENT if pattern is NONE else dataclasses.replace(INDEPENDENT, pattern=pattern)


def of_leaf(leaf: int, shape: Sequence[int]) -> Dependence:
    """A leaf of the parameters."""
    return Dependence(degrees={leaf: 1.0}, origins={leaf: Origin.of_leaf(leaf, shape)})


def joined(a: Dependence, b: Dependence) -> Dependence:
    """What holds for a value that is one or the other (a branch, a carry of a loop)."""
    if a == b:
        return a
    if a.data or b.data:
        return dataclasses.replace(DATA, mixed_in={k: o for k, o in a.mixed_in.items() if b.mixed_in.get(k, a) == o})
    both = shared([a, b])
    same = {leaf: o for leaf, o in a.origins.items() if b.origins.get(leaf) == o}
    return dataclasses.replace(both, origins=same)


def inhomogeneous(inputs: Sequence[Dependence]) -> Dependence:
    """A value for which no rule says how it grows."""
    degrees: dict[int, float | None] = {leaf: None for x in inputs for leaf, d in x.degrees.items() if d != 0}
    return Dependence(degrees=degrees | {leaf: 0.0 for x in inputs for leaf in x.degrees if leaf not in degrees})


def decided(x: Dependence, by: Dependence) -> Dependence:
    """A value chosen by another one, such as by a branch index: it grows with a leaf only if the choice does not."""
    if x.data or by.data:
        return dataclasses.replace(DATA, mixed_in=x.mixed_in)
    moving = {leaf: None for leaf, degree in by.degrees.items() if degree != 0}
    if not by.degrees:
        return x
    if x.segments and moving:
        return inhomogeneous([x, by])
    degrees = dict.fromkeys(by.degrees, 0.0) | dict(x.degrees) | moving
    return dataclasses.replace(
        x, degrees=degrees, origins={leaf: o for leaf, o in x.origins.items() if leaf not in moving}, zero=False
    )


def unstacked(x: Dependence) -> Dependence:
    """One slice of a scan's stacked input."""
    if x.mixed_in:
        return dataclasses.replace(DATA, mixed_in={leaf: o and o.unstacked() for leaf, o in x.mixed_in.items()})
    if x.data or not x.degrees:
        return dataclasses.replace(x, pattern=x.pattern.unstacked())
    if x.segments:
        return inhomogeneous([x])
    return x.map(Origin.unstacked)


def stacked(x: Dependence) -> Dependence:
    """All slices of a scan's stacked output."""
    return DATA if x.data else inhomogeneous([x])


def added(inputs: Sequence[Dependence]) -> Dependence:
    """A sum keeps the degree that all its terms share; terms with leaves of their own grow with these jointly."""
    if len(inputs) == 1:
        return inputs[0]
    alike = shared(inputs)
    if any(degree == 1 for degree in alike.degrees.values()) or not all(map(_is_term, inputs)):
        return alike
    terms = tuple(term for x in inputs for term in (x.terms or (frozenset(x.degrees),)))
    origins = {leaf: o for x in inputs for leaf, o in multiplied(x.origins).items()}
    if sum(map(len, terms)) > len(frozenset().union(*terms)):
        return alike
    return Dependence(degrees={leaf: 1.0 for term in terms for leaf in term}, origins=origins, terms=terms)


def together(parts: Sequence[Dependence]) -> Dependence:
    """Values side by side: if each is proportional to leaves of its own, or of its terms, they all grow together."""
    terms = [t for x in parts if _is_term(x) for t in (x.terms or (frozenset(x.degrees),))]
    alike = dict.fromkeys(terms)
    if not all(_is_term(x) or x.zero for x in parts) or any(
        a & b for i, a in enumerate(alike) for b in list(alike)[:i]
    ):
        return inhomogeneous(parts)
    if len(alike) == 1:
        return Dependence(degrees=dict.fromkeys(terms[0], 1.0))
    return Dependence(degrees=dict.fromkeys((leaf for t in alike for leaf in t), 1.0), terms=tuple(alike))


def _is_term(x: Dependence) -> bool:
    """Whether a value is proportional to each of its leaves, or each of its terms."""
    return bool(x.degrees) and x.segments is None and all(degree == 1 for degree in x.degrees.values())


def shared(inputs: Sequence[Dependence]) -> Dependence:
    """One of several values, or a function that grows as all of them do: it keeps the degrees that all share."""
    if len(inputs) == 1:
        return inputs[0]
    leaves = {leaf for x in inputs for leaf in x.degrees}
    degrees: dict[int, float | None] = {}
    for leaf in leaves:
        found = {x.degree(leaf) for x in inputs}
        degrees[leaf] = found.pop() if len(found) == 1 else None
    return Dependence(degrees=degrees)


def multiplied(origins: Mapping[int, Origin]) -> dict[int, Origin]:
    """Origins after multiplication by something else."""
    return {leaf: origin.multiplied() for leaf, origin in origins.items()}


def _is_zero(atom: ir.Constant) -> bool:
    """Whether all elements are zero, or not a number, as with a mean over nothing."""
    if isinstance(atom.value, int | float):
        return atom.value == 0 or atom.value != atom.value
    if not isinstance(atom.value, np.generic | np.ndarray) and not np.isscalar(atom.value):
        return False
    value = np.asarray(atom.value)
    return bool(np.all((value == 0) | (value != value)))
