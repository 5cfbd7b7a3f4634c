"""Where the program reads an array from: elements of one leaf, moved and cast but not computed with.

The path from the leaf is found in the program, and its transpose is the path back: new values are written where
the program will read them, whatever the layout in which the leaf is stored.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._arrays import round_to
from jaxinit._reading import FOREIGN, Analysis, Origin, overlap, rearrangement
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class LeafArray:
    """A leaf, or a part of one, as the program sees it.

    Attributes:
      leaf: index of the leaf.
      region: (start, stop) along each axis of the leaf.
      read: maps the leaf to the array that the program reads, except for casts; each element is one of the leaf's.
    """

    leaf: int
    region: tuple[tuple[int, int], ...]
    read: Callable[[Array], Array]

    def written(self, leaf: Array, values: Array) -> Array:
        """The leaf with these values written where the array is read from."""
        like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        shape, back = jax.eval_shape(self.read, like).shape, jax.linear_transpose(self.read, like)
        (new,), (meant,) = back(round_to(values.reshape(shape), leaf.dtype)), back(jnp.ones(shape, leaf.dtype))
        return jnp.where(meant != 0, new, leaf)

    def overlaps(self, other: "LeafArray") -> bool:
        """Whether two arrays share elements."""
        return self.leaf == other.leaf and overlap(self.region, other.region)


def leaf_array_of(analysis: Analysis, atom: ir.Atom, dims: tuple[int, ...]) -> LeafArray | None:
    """The array of elements of one leaf that a value consists of, along these of its dimensions, in this order.

    Along the others it must repeat itself. None if the value does not consist of single elements of one leaf.
    """
    origins = analysis.of(atom).origins
    producers = {out: equation for equation in analysis.program.equations for out in equation.outputs}
    path: list[ir.Equation] = []
    first = atom
    while isinstance(first, ir.Variable) and first in producers:
        path.append(producers[first])
        first = path[-1].inputs[0]
        if rearrangement(path[-1]) is None:
            return None
    if len(origins) != 1:
        return None
    ((leaf, origin),) = origins.items()
    if first is not analysis.program.inputs[leaf] or not _is_single(origin, dims):
        return None

    def read(x: Array) -> Array:
        for equation in reversed(path):
            if equation.primitive not in ir.IDENTITIES:
                (x,) = equation.bind(x, *(a.value for a in equation.inputs[1:] if isinstance(a, ir.Constant)))
        others = tuple(d for d in range(x.ndim) if d not in dims)
        x = jax.lax.slice(x, [0] * x.ndim, [1 if d in others else n for d, n in enumerate(x.shape)])
        return jnp.transpose(jnp.squeeze(x, others), [sorted(dims).index(d) for d in dims])

    return LeafArray(leaf, origin.region, read)


def _is_single(origin: Origin, dims: tuple[int, ...]) -> bool:
    """Whether the value has each element of the region exactly once along these dimensions."""
    return all((f.axis != FOREIGN) == (d in dims) for d, factors in enumerate(origin.dims) for f in factors)
