"""Keys: what counts as a JAX random key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._typing import Array


def check_key(caller: object, key: Any) -> Array:
    """`key`, if it is one typed or raw key.

    Raises:
      TypeError: it is something else: a seed, an array of keys, None.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim == 0:
                return key  # type: ignore[return-value]
            raise TypeError(
                f"{caller} takes one key, got an array of keys of shape {key.shape}; use jax.vmap over the keys"
            )
        if key.dtype == np.uint32 and key.ndim == 1 and key.size > 1:
            return jnp.asarray(key)
    received = f"{key.dtype}{list(key.shape)}" if isinstance(key, (jax.Array, np.ndarray)) else repr(key)
    raise TypeError(f"{caller} takes a key such as jax.random.key(0) as its first argument, got {received}")
