"""Which values are one-hot: a comparison of numbers with a range, t[..., None] == arange(n), and along which dimension.

A product that contracts that dimension is a lookup of rows. If it is merged with other dimensions, like the squares of
a board before a dense layer, it no longer is: several entries of the merged dimension are hot at once.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxinit import _program as ir


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How the entries of a value are related.

    Attributes:
      counts: the dimension along which it is a range of integers, equal along all others, or None.
      hot: the dimension along which at most one entry is not zero, or None.
      repeats: the dimensions along which it repeats itself.
    """

    counts: int | None = None
    hot: int | None = None
    repeats: frozenset[int] = frozenset()

    def unstacked(self) -> "Pattern":
        """The pattern of one slice along the first dimension."""
        return self.moved({d + 1: d for d in range(max(self._dims, default=0))})

    def moved(self, dimensions: Mapping[int, int]) -> "Pattern":
        """The pattern after its dimensions have been mapped by `dimensions`, or dropped."""
        counts, hot = (None if d is None else dimensions.get(d) for d in (self.counts, self.hot))
        return Pattern(counts, hot, frozenset(dimensions[d] for d in self.repeats if d in dimensions))

    @property
    def _dims(self) -> set[int]:
        return {d for d in (self.counts, self.hot, *self.repeats) if d is not None}


NONE = Pattern()


def of_constant(constant: ir.Constant) -> Pattern:
    """The pattern of a value known when the function was traced."""
    if not constant.shape:
        return NONE
    sizes = [(n, d) for d, n in enumerate(constant.shape) if n > 1]
    if len(sizes) != 1 or not ir.is_known(constant) or not ir.is_integer(constant):
        return NONE
    ((size, dim),) = sizes
    numbers = np.asarray(constant.value).reshape(-1).astype(np.int64)
    return Pattern(counts=dim) if np.array_equal(numbers, numbers[0] + np.arange(size)) else NONE
