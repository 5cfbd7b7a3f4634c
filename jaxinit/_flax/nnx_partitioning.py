"""Initializers whose weights carry the names of their axes, as NNX variables do."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jaxinit._initializers import Partitioning, initializer
from jaxinit._typing import Array, DTypeLike, OutSharding, Shape


@initializer
class nnx_with_partitioning(Partitioning):
    """Wraps an initializer so that its weights carry the names of their axes, as metadata of an NNX variable.

    Does what `flax.nnx.with_partitioning` does and stays a value, so that the graph definition of a layer that holds it
    compares equal when the layer is built again. Use it as `jaxinit.nnx.with_partitioning`.

    Args:
      init: an initializer, of this package or any function (key, shape, dtype) -> Array.
      names: one mesh or logical axis name for each axis of the kernel, None where it is not split.
      mesh: the mesh that the names refer to; by default the current one.

    Returns:
      An initializer that returns a `flax.nnx.VariableMetadata`, which `nnx.Param` accepts.

    Raises:
      TypeError: init is not an initializer, or names is not a sequence of names.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> init = jaxinit.nnx.with_partitioning(jaxinit.he_normal(), (None, "model"))
      >>> with jax.set_mesh(jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))):
      ...     layer = nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0))
      >>> layer.kernel.get_metadata()["out_sharding"]
      (None, 'model')

    Reference: the Flax guide to sharding NNX modules.
    """

    init: Callable[..., Array]
    names: tuple[Any, ...]
    mesh: Mesh | None = None

    def __call__(  # type: ignore[override]
        self, key: Array, shape: Shape, dtype: DTypeLike = None, out_sharding: OutSharding = None
    ) -> Any:
        value = super().__call__(key, shape, dtype, out_sharding)
        return nnx.with_partitioning(lambda: value, self.names, self.mesh)()


with_partitioning = nnx_with_partitioning
