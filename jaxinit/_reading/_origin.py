"""Where the elements of a rearranged weight come from: which leaf, which part of it, which axis along which dimension.

A dimension of a value is a product of factors, each a run of one axis of the leaf. Reshaping splits and joins factors,
transposing moves them, slicing narrows the region of the leaf that is left. If this is not enough to describe a
rearrangement, there is no origin.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

FOREIGN = -1
"""The axis of a factor that the leaf does not have: the value was broadcast along it."""


class Factor(NamedTuple):
    """`size` steps of `stride` elements along one axis of the leaf; `flipped` ones begin at its end."""

    axis: int
    size: int
    stride: int
    flipped: bool = False


@dataclasses.dataclass(frozen=True)
class Origin:
    """A value whose elements are elements of a leaf, possibly multiplied by something independent of it.

    Attributes:
      leaf: index of the leaf.
      region: (start, stop) along each axis of the leaf.
      dims: the factors of each dimension, outermost first.
      stack: factors that a surrounding `scan` has removed, outermost loop first.
      exact: whether the elements are the leaf's own, multiplied by nothing.
      picked: factors along which data has picked a position for each sample.
    """

    leaf: int
    region: tuple[tuple[int, int], ...]
    dims: tuple[tuple[Factor, ...], ...]
    stack: tuple[Factor, ...] = ()
    exact: bool = True
    picked: tuple[Factor, ...] = ()

    @classmethod
    def of_leaf(cls, leaf: int, shape: Sequence[int]) -> "Origin":
        """The leaf itself."""
        return cls(leaf, *_whole(tuple(shape)))

    def changed(self, **fields: Any) -> Self:
        """Like `dataclasses.replace`, but much faster: a program moves its weights often."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__, **fields)
        return found

    def multiplied(self) -> "Origin":
        """After multiplication by something else."""
        return self.changed(exact=False)

    def transposed(self, permutation: Sequence[int]) -> "Origin":
        """After `lax.transpose`."""
        return self.changed(dims=tuple(self.dims[d] for d in permutation))

    def reversed(self, dimensions: Sequence[int]) -> "Origin":
        """After `lax.rev`: a product of factors is reversed if each of them is."""
        dims = list(self.dims)
        for d in dimensions:
            dims[d] = tuple(f if f.axis == FOREIGN else f._replace(flipped=not f.flipped) for f in dims[d])
        return self.changed(dims=tuple(dims))

    def squeezed(self, dimensions: Sequence[int]) -> "Origin":
        """Without these dimensions of size 1."""
        return self.changed(dims=tuple(f for d, f in enumerate(self.dims) if d not in dimensions))

    def broadcast(self, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> "Origin":
        """After `lax.broadcast_in_dim`."""
        source = dict(zip(broadcast_dimensions, self.dims, strict=True))
        dims = tuple(source[d] if source.get(d) else _factors(FOREIGN, size) for d, size in enumerate(shape))
        return self.changed(dims=dims)

    def reshaped(self, shape: Sequence[int]) -> "Origin | None":
        """After `lax.reshape`; None if a new dimension cuts an axis unevenly."""
        dims = _reshaped(self.dims, tuple(shape))
        return None if dims is None else self.changed(dims=dims)

    def sliced(self, starts: Sequence[int], limits: Sequence[int], shape: Sequence[int]) -> "Origin | None":
        """After `lax.slice` with stride 1; None if the rest is not a contiguous region of the leaf."""
        region, dims = list(self.region), list(self.dims)
        for d, (start, limit, size) in enumerate(zip(starts, limits, shape, strict=True)):
            if limit - start == size:
                continue
            if len(dims[d]) != 1 or limit == start:
                return None
            (factor,) = dims[d]
            if factor.axis != FOREIGN:
                first, last = region[factor.axis]
                if factor.stride * factor.size != last - first:
                    return None
                begin, end = (size - limit, size - start) if factor.flipped else (start, limit)
                region[factor.axis] = (first + begin * factor.stride, first + end * factor.stride)
            dims[d] = (factor._replace(size=limit - start),) if limit - start != 1 else ()
        return self.changed(region=tuple(region), dims=tuple(dims))

    def picked_along(self, rows: Sequence[int], placed: Mapping[int, int], shape: Sequence[int]) -> "Origin":
        """After a lookup along the dimensions `rows`, of this shape, where `placed` maps the other dimensions."""
        kept = {place: self.dims[d] for d, place in placed.items()}
        dims = tuple(kept[d] if d in kept else _factors(FOREIGN, size) for d, size in enumerate(shape))
        return self.changed(dims=dims, picked=self.picked + tuple(f for d in rows for f in self.dims[d]))

    def unstacked(self) -> "Origin | None":
        """One slice along the first dimension, as the body of a `scan` sees it."""
        if any(f.axis == FOREIGN for f in self.dims[0]):
            return None
        return self.changed(dims=self.dims[1:], stack=self.stack + self.dims[0])


def overlap(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> bool:
    """Whether two regions of a leaf share elements."""
    return all(x[0] < y[1] and y[0] < x[1] for x, y in zip(a, b, strict=True))


def _factors(axis: int, size: int, stride: int = 1) -> tuple[Factor, ...]:
    return (Factor(axis, size, stride),) if size != 1 else ()


# Similar layers ask the same questions again and again.


@functools.lru_cache(maxsize=1024)
def _whole(shape: tuple[int, ...]) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[Factor, ...], ...]]:
    """The region and the factors of all of a leaf."""
    return tuple((0, size) for size in shape), tuple(_factors(axis, size) for axis, size in enumerate(shape))


@functools.lru_cache(maxsize=1024)
def _reshaped(dims: tuple[tuple[Factor, ...], ...], shape: tuple[int, ...]) -> tuple[tuple[Factor, ...], ...] | None:
    """The factors of a new shape; None if a new dimension cuts an axis unevenly."""
    remaining = [factor for dim in dims for factor in dim]
    if 0 in shape:
        return None
    found = []
    for size in shape:
        dim: list[Factor] = []
        while (needed := size // math.prod(f.size for f in dim)) > 1:
            if not remaining:
                return None
            factor = remaining.pop(0)
            if factor.size > needed:
                if factor.size % needed:
                    return None
                inner = factor.size // needed
                remaining.insert(0, factor._replace(size=inner))
                factor = factor._replace(size=needed, stride=factor.stride * inner)
            if needed % factor.size:
                return None
            dim.append(factor)
        found.append(tuple(dim))
    return tuple(found)
