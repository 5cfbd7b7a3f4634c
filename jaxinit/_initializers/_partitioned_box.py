"""The box in which a Linen parameter carries the names of its axes; the one file here that imports Flax.

Linen's attention and DenseGeneral call the initializer with a flattened, two-dimensional shape and then reshape the
boxed array. Flax's own box applies its names to the flat array, and fails under a mesh if the names are those of
the final kernel (google/flax#3892). This box leaves an array alone until its rank is that of the names.
"""

from typing import Any

import jax
from flax.core import meta


class PartitionedBox(meta.Partitioned[Any]):
    """`flax.linen.Partitioned` that tolerates an array that has yet to be reshaped."""

    def unbox(self, apply_constraint: bool = True) -> Any:
        """The array, constrained to its sharding once its rank is that of the names."""
        fits = jax.numpy.ndim(self.value) == len(self.names)
        return super().unbox(apply_constraint=apply_constraint and fits)
