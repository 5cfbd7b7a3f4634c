"""Partitioned parameters: an initializer that names the axes of its weights, for Linen."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxinit._initializers._base import draw_with, initializer
from jaxinit._initializers._combinators import Combinator
from jaxinit._typing import Array, DTypeLike, OutSharding, Shape


class Partitioning(Combinator):
    """The base of wrappers that name the axes of another initializer's weights, in terms of a framework."""

    boxes = True

    names: tuple[Any, ...]

    def _check(self) -> None:
        super()._check()
        object.__setattr__(self, "names", _canonical_names(self.names))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return draw_with(self.init, key, shape, dtype)


@initializer
class with_partitioning(Partitioning):
    """Puts another initializer's weights into a Linen box that names their axes.

    Does what `flax.linen.with_partitioning` does and stays a value, so that a module that holds it is a stable static
    argument. The names are those of the final kernel, (embed, heads, head_dim) for attention, also where Flax draws a
    flattened kernel and reshapes it. For NNX use `jaxinit.nnx.with_partitioning`.

    Args:
      init: an initializer, of this package or any function (key, shape, dtype) -> Array.
      names: one mesh or logical axis name for each axis of the kernel, None where it is not split.
      mesh: the mesh that the names refer to; by default the current one when the parameter is unboxed.

    Returns:
      An initializer that returns a `flax.linen.Partitioned`.

    Raises:
      TypeError: init is not an initializer, or names is not a sequence of names.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> init = jaxinit.with_partitioning(jaxinit.he_normal(), (None, "model"))
      >>> init(jax.random.key(0), (8, 4)).names
      (None, 'model')

    Reference: the Flax guide to partitioned parameters; google/flax#3892.
    """

    init: Callable[..., Array]
    names: tuple[Any, ...]
    mesh: jax.sharding.Mesh | None = None

    def __call__(  # type: ignore[override]
        self, key: Array, shape: Shape, dtype: DTypeLike = None, out_sharding: OutSharding = None
    ) -> Any:
        from jaxinit._initializers._partitioned_box import PartitionedBox  # imports Flax

        value = super().__call__(key, shape, dtype, out_sharding)
        return PartitionedBox(value, self.names, mesh=self.mesh)


def _canonical_names(names: Any) -> tuple[Any, ...]:
    """Names as nested tuples.

    Raises:
      TypeError: an entry is not a name, None, or sequence of names.
    """
    if isinstance(names, str) or not isinstance(names, (tuple, list)):
        raise TypeError(f"names must be a sequence with one name or None for each axis, got {names!r}")
    entries = tuple(tuple(name) if isinstance(name, (tuple, list)) else name for name in names)
    for entry in entries:
        if not all(isinstance(name, str) for name in (entry if isinstance(entry, tuple) else (entry,)) if name):
            raise TypeError(f"names must hold names of axes, None, or tuples of names, got {names!r}")
    return entries
