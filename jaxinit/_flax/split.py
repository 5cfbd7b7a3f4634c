"""A module taken apart into what every method of this package takes, for any framework."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Split(NamedTuple):
    """A model as parameters and a function of them; a tuple, so that it unpacks.

    Attributes:
      params: the pytree of its parameters.
      apply_fn: the model as a function of parameters and a batch.
      restore: makes of new parameters what the framework keeps: variables for Linen; for NNX the model, in place.
    """

    params: Any
    apply_fn: Callable[[Any, Any], Any]
    restore: Callable[[Any], Any]
