"""Values of a program as samples of a few of their elements.

Along each dimension two elements represent all: their joint distribution is that of any two. So a value of shape (8,
32, 64) becomes an array of (samples, 2, 2, 2), and elementwise functions, products and sums act on it as on the value.
If a value does not vary along a dimension, one element is enough. Dimensions that a reshape has joined keep their
factors, so that they can be split again.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._streams import COUNT, Streams
from jaxinit._typing import Array

ALIKE = 1 / 64
"""For data of which only the shape is known, the part of its second moment that two elements share; for real data, such
as text and images, it is seldom less."""
_MOST = 1 << 20
"""How many elements of a large array the mean square is computed from."""
CHANCE = 1
"""The mark of known numbers, which are sampled at random positions, and of mixtures: all of them may be the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of elements of a value.

    Attributes:
      values: samples (one if all are equal), then one axis for each factor of each dimension, of length 1 or 2.
      factors: for each dimension the sizes that it is the product of; none for dimensions of size 1.
      marks: of the random numbers that it is computed from, as bits.
      known: whether all primitives that computed the value are understood.
    """

    values: np.ndarray
    factors: tuple[tuple[int, ...], ...]
    marks: int = 0
    known: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(math.prod(f) for f in self.factors)

    def axes(self, dimension: int) -> range:
        """The axes of the samples that belong to a dimension of the value."""
        first = 1 + sum(map(len, self.factors[:dimension]))
        return range(first, first + len(self.factors[dimension]))

    def joined(self, dimension: int) -> "Samples":
        """The same with one factor along a dimension: elements that differ along it differ in each of its factors."""
        axes = self.axes(dimension)
        if len(axes) < 2:
            return self
        lengths = [self.values.shape[a] for a in axes]
        before = (slice(None),) * axes[0]
        chosen = [self.values[(*before, *(min(i, n - 1) for n in lengths))] for i in range(max(lengths))]
        return self.with_dimension(dimension, np.stack(chosen, axes[0]), (math.prod(self.factors[dimension]),))

    def with_dimension(self, dimension: int, values: np.ndarray, factors: tuple[int, ...]) -> "Samples":
        """Other samples, with other factors along one dimension."""
        found = (*self.factors[:dimension], factors, *self.factors[dimension + 1 :])
        return dataclasses.replace(self, values=values, factors=found)

    def second_moment(self) -> float:
        """The mean square of an element."""
        return float(np.mean(np.abs(self.values) ** 2))

    def mean(self) -> float:
        """The mean of an element."""
        return float(np.mean(self.values.real))

    def with_second_moment(self, wanted: float) -> "Samples":
        """The same, scaled so that elements have this second moment."""
        found = self.second_moment()
        if not 0 < found < math.inf or not 0 < wanted < math.inf:
            return self
        return dataclasses.replace(self, values=self.values * math.sqrt(wanted / found))


def constant(number: Any, shape: Sequence[int] = ()) -> Samples:
    """A value of which all elements are one number."""
    factors = tuple((n,) if n != 1 else () for n in shape)
    return Samples(np.full((1,) * (1 + sum(map(len, factors))), number), factors)


def random(streams: Streams, shape: Sequence[int], *, alike: float = 0.0, known: bool = True) -> Samples:
    """Standard normal elements, any two of which share a part of their variance."""
    factors = tuple((n,) if n != 1 else () for n in shape)
    lengths = [2] * sum(map(len, factors))
    values = streams.normals(*lengths)
    if alike:
        common = streams.normals(*[1] * len(lengths))
        values = np.sqrt(alike) * common + np.sqrt(1 - alike) * values
    return Samples(values, factors, streams.mark(), known).with_second_moment(1.0)


def normal_samples(shape: Sequence[int], stddev: float) -> Samples:
    """Elements of a leaf that is small on purpose; alone they count as unknown, so nothing compensates for them."""
    drawn = random(Streams(len(shape) + 1), shape, known=False)
    return dataclasses.replace(drawn, values=drawn.values * stddev, marks=CHANCE)


def of_array(array: np.ndarray) -> Samples:
    """Elements of an array of known numbers at random positions, which are the same for arrays that are combined."""
    if is_one_number(array):
        return constant(array.reshape(-1)[0].astype(_plain(array.dtype)) if array.size else 0.0, array.shape)
    factors = tuple((n,) if n != 1 else () for n in array.shape)
    long = [d for d, n in enumerate(array.shape) if n > 1]
    index = []
    for d, n in enumerate(array.shape):
        lengths = [2 if a == d else 1 for a in long]
        places = _places(n, array.ndim - d) if n > 1 else np.zeros((1, 1), int)
        index.append(places.reshape(len(places), *lengths))
    found = Samples(array[tuple(index)].astype(_plain(array.dtype)), factors, CHANCE)
    if not np.issubdtype(array.dtype, np.inexact):
        return found
    return found.with_second_moment(mean_square(array))


def mean_square(array: np.ndarray) -> float:
    """The mean square of the elements of an array, or, if it is large, of some spread over all of it."""
    flat = array.reshape(-1)
    some = flat[:: max(flat.size // _MOST, 1)]
    return float(np.mean(np.abs(some).astype(np.float64) ** 2))


def is_array(leaf: Any) -> bool:
    """Whether a leaf has numbers that can be looked at."""
    return isinstance(leaf, np.ndarray | np.generic | float | int | Array) and not ir.is_traced(leaf)


def is_one_number(array: np.ndarray) -> bool:
    """Whether all elements of an array are equal."""
    flat = array.reshape(-1)
    few = flat[: min(flat.size, 64)]
    return flat.size < 2 or bool((few == few[0]).all() and (flat == flat[0]).all())


def numbers(value: Any) -> np.ndarray:
    """An array in NumPy, with narrow formats widened."""
    found = np.asarray(value)
    return found if found.dtype.kind in "biufc" else found.astype(np.float64)


def of_constant(atom: ir.Constant) -> Samples | None:
    """A constant of a program; None if its elements are not available."""
    if not ir.is_known(atom):
        return None
    return of_array(numbers(atom.value))


def _plain(dtype: Any) -> Any:
    """The dtype in which numbers are computed here."""
    kind = np.dtype(dtype).kind
    return np.float64 if kind == "f" else np.complex128 if kind == "c" else dtype


def _places(size: int, axis: int) -> np.ndarray:
    """Two different positions along an axis of some size, the same for all arrays with such an axis in this place."""
    drawn = np.random.default_rng([size, axis])
    first = drawn.permutation(np.arange(COUNT) * size // COUNT)
    return np.stack([first, (first + drawn.integers(1, size, COUNT)) % size], 1)


def aligned(inputs: Sequence[Samples]) -> tuple[list[np.ndarray], tuple[tuple[int, ...], ...]]:
    """The operands of an elementwise function, with axes that agree, and the factors of the result."""
    rank = max(len(x.factors) for x in inputs)
    whole = [x for x in inputs if len(x.factors) == rank]
    for d in range(rank):
        if len({x.factors[d] for x in whole if x.factors[d]}) > 1:
            inputs = [x.joined(d) if len(x.factors) == rank else x for x in inputs]
            whole = [x for x in inputs if len(x.factors) == rank]
    factors = tuple(max((x.factors[d] for x in whole), key=len) for d in range(rank))
    arrays = []
    for x in inputs:
        lengths = [1] * sum(map(len, factors))
        if len(x.factors) == rank:
            pairs = zip(range(rank), factors, strict=True)
            lengths = [n for d, f in pairs for n in ([x.values.shape[a] for a in x.axes(d)] or [1] * len(f))]
        arrays.append(x.values.reshape(len(x.values), *lengths))
    return arrays, factors


def rolled(values: np.ndarray, times: int) -> np.ndarray:
    """Samples in another order: elements that are independent of the given ones and have the same distribution."""
    return np.roll(values, 389 * times, 0) if times else values
