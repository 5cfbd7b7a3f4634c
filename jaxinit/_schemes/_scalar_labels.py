"""Which parameters are scalars to the program: those that Fixup trains at a tenth of the learning rate."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit._reading import Origin, trace


def scalar_labels(params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any) -> Any:
    """Returns labels for `optax.partition`: "scalar" for parameters used as one number everywhere, else "other".

    The gradient of a scalar sums those of all the channels that it meets; in Fixup, scalars learn at a tenth of the
    rate of weights. A stack of scalars, one for each step of a `scan`, is one too, whatever its shape; the weight of a
    layer never is.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A pytree with the structure of `params`, whose leaves are the strings. An `nnx.Optimizer` needs it without its
      variables: `nnx.as_pure(labels)`.

    Raises:
      TypeError: `apply_fn` is not a function of two arguments.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import jaxinit.linen
      >>> block = jaxinit.linen.FixupResidual([nn.Dense(4, use_bias=False), nn.Dense(4, use_bias=False)], nn.relu)
      >>> x = jnp.ones((2, 4))
      >>> params = block.init(jax.random.key(0), x)
      >>> labels = jaxinit.scalar_labels(params, block.apply, x)
      >>> labels["params"]["multiplier"], labels["params"]["layers_0"]
      ({'scale': 'scalar'}, {'kernel': 'other'})
      >>> optimizer = optax.partition(
      ...     {"other": optax.sgd(0.1, momentum=0.9), "scalar": optax.sgd(0.01, momentum=0.9)}, labels
      ... )
      >>> state = optimizer.init(params)

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """
    traced = trace(params, apply_fn, batch)
    kernels = {weight.leaf for weight in traced.analysis.weights}
    seen: dict[int, list[Origin | None]] = {}
    for read in traced.analysis.reads:
        seen.setdefault(read.leaf, []).append(read.origin)
    labels = []
    for leaf, array in enumerate(traced.leaves):
        sizes = [_size(origin, math.prod(jnp.shape(array))) for origin in seen.get(leaf, [None])]
        labels.append("scalar" if leaf not in kernels and max(sizes) == 1 else "other")
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def _size(origin: Origin | None, whole: int) -> int:
    """How many elements of a leaf are read at once."""
    if origin is None:
        return whole
    steps = math.prod(factor.size for factor in origin.stack)
    return math.prod(stop - start for start, stop in origin.region) // steps
