"""Which values are one-hot: a comparison of numbers with a range, t[..., None] == arange(n), and along which dimension.

A product that contracts that dimension is a lookup of rows. Merged with other dimensions, as the places of a board are
in front of a dense layer, it is so no longer: several entries of the merged one are hot at a time.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxinit import _program as ir


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How the entries of a value are related; dimensions are its own.

    Attributes:
      counts: the dimension along which it is a range of integers, alike in all others, or None.
      hot: the dimension along which at most one entry is not zero, or None.
      repeats: the dimensions along which it repeats itself.
    """

    counts: int | None = None
    hot: int | None = None
    repeats: frozenset[int] = frozenset()

    def unstacked(self) -> "Pattern":
        """Of one slice along the first dimension."""
        return self.moved({d + 1: d for d in range(max(self._dims, default=0))})

    def moved(self, places: dict[int, int]) -> "Pattern":
        """After its dimensions have gone where `places` says, or nowhere."""
        counts, hot = (None if d is None else places.get(d) for d in (self.counts, self.hot))
        return Pattern(counts, hot, frozenset(places[d] for d in self.repeats if d in places))

    @property
    def _dims(self) -> set[int]:
        return {d for d in (self.counts, self.hot, *self.repeats) if d is not None}


NONE = Pattern()


def of_constant(constant: ir.Constant) -> Pattern:
    """Of a value known when the function was traced."""
    sizes = [(n, d) for d, n in enumerate(constant.shape) if n > 1]
    if len(sizes) != 1 or not ir.is_known(constant) or not np.issubdtype(constant.dtype, np.integer):
        return NONE
    ((size, dim),) = sizes
    numbers = np.asarray(constant.value).reshape(-1).astype(np.int64)
    return Pattern(counts=dim) if np.array_equal(numbers, numbers[0] + np.arange(size)) else NONE


def apply(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    """Of the output of an equation."""
    primitive, params = equation.primitive, equation.params
    if primitive is ir.iota_p:
        return Pattern(counts=params["dimension"])
    if primitive is ir.eq_p:
        for one, other in (inputs, inputs[::-1]):
            if one.counts is not None and one.counts in other.repeats:
                return Pattern(hot=one.counts)
    if primitive in ir.IDENTITIES:
        return inputs[0]
    if primitive is ir.add_p:
        return next((x for x, other in zip(inputs, equation.inputs[::-1], strict=True) if other.shape == ()), NONE)
    if primitive is ir.broadcast_p:
        places, shape = params["broadcast_dimensions"], equation.inputs[0].shape
        kept = {d: p for d, p in enumerate(places) if shape[d] == params["shape"][p]}
        repeats = frozenset(d for d in range(len(params["shape"])) if d not in kept.values())
        found = inputs[0].moved(kept)
        return dataclasses.replace(found, repeats=found.repeats | repeats)
    if inputs and inputs[0] != NONE:
        return inputs[0].moved(_places(equation))
    return NONE


def _places(equation: ir.Equation) -> dict[int, int]:
    """Where the dimensions of the first input go that an equation keeps whole."""
    primitive, params, shape = equation.primitive, equation.params, equation.inputs[0].shape
    if primitive is ir.transpose_p:
        return {d: p for p, d in enumerate(params["permutation"])}
    if primitive is ir.squeeze_p:
        gone = {d % len(shape) for d in params["dimensions"]}
        return {d: p for p, d in enumerate(d for d in range(len(shape)) if d not in gone)}
    if primitive is ir.reshape_p and params["dimensions"] is None:
        sizes = params["new_sizes"]
        after = {(math.prod(sizes[:p]), n): p for p, n in enumerate(sizes)}
        return {d: p for d, n in enumerate(shape) if (p := after.get((math.prod(shape[:d]), n))) is not None}
    return {}
