"""The types that signatures in this package speak of."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Array: TypeAlias = jax.Array
"""A JAX array or tracer."""

Shape: TypeAlias = Sequence[int | np.integer]
"""Sizes of the axes: a tuple or list of Python or numpy integers."""

Axis: TypeAlias = int | Sequence[int]
"""One axis or several, negative ones counted from the last."""

DTypeLike: TypeAlias = Any
"""A dtype, its scalar class, its name, or None for the default float."""

Scalar: TypeAlias = float | jax.Array
"""A number, or a JAX scalar (also a tracer, so that a study can vmap over it)."""

OutSharding: TypeAlias = NamedSharding | PartitionSpec | None
"""Where the result shall live; None leaves it to JAX."""
