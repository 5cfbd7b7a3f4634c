"""The types that appear in signatures in this package."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Array: TypeAlias = jax.Array
"""A JAX array or tracer."""

Shape: TypeAlias = Sequence[int | np.integer]
"""Sizes of the axes: a tuple or list of Python or NumPy integers."""

Axis: TypeAlias = int | Sequence[int]
"""One axis or several; negative ones are counted from the last."""

DTypeLike: TypeAlias = Any
"""A dtype, its scalar class, its name, or None for the default float."""

Scalar: TypeAlias = float | jax.Array
"""A number, or a JAX scalar (also a tracer, so that a study can vmap over it)."""

OutSharding: TypeAlias = NamedSharding | PartitionSpec | None
"""Where the result should live; None leaves it to JAX."""


class Split(NamedTuple):
    """A model as parameters and a function of them; a tuple, so that it unpacks.

    Attributes:
      params: the pytree of its parameters.
      apply_fn: the model as a function of parameters and a batch.
      restore: turns new parameters into what the framework keeps: variables for Linen; for NNX the model, in place.
    """

    params: Any
    apply_fn: Callable[[Any, Any], Any]
    restore: Callable[[Any], Any]
