"""Keys: what counts as a JAX random key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks._values import shown
from jaxinit._typing import Array


def is_typed_key(x: Any) -> bool:
    """Whether it is a typed key (`jax.random.key`), or an array of them."""
    return isinstance(x, jax.Array) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def is_raw_key(x: Any) -> bool:
    """Whether it may be a raw key (`jax.random.PRNGKey`), the numbers of one."""
    return isinstance(x, (jax.Array, np.ndarray)) and x.dtype == np.uint32 and x.ndim == 1 and x.size > 1


def check_key(caller: object, key: Any, place: str = "as its first argument") -> Array:
    """`key`, if it is one typed or raw key.

    Raises:
      TypeError: it is something else: a seed, an array of keys, None.
    """
    if is_typed_key(key):
        if key.ndim == 0:
            return key
        raise TypeError(
            f"{caller} takes one key, got an array of keys of shape {key.shape}; use jax.vmap over the keys"
        )
    if is_raw_key(key):
        return jnp.asarray(key)
    raise TypeError(f"{caller} takes a key such as jax.random.key(0) {place}, got {shown(key)}")
