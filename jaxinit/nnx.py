"""What NNX users need beyond the initializers, which every NNX layer takes as they are: methods and residual modules.

Whole-model methods take the model itself; those that change weights change them in place.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jaxinit import _diagnose, _lsuv, _reading, _schemes
from jaxinit._initializers import Partitioning, initializer
from jaxinit._modules.nnx import FixupResidual as FixupResidual
from jaxinit._modules.nnx import ScalarBias as ScalarBias
from jaxinit._modules.nnx import ScalarMultiplier as ScalarMultiplier
from jaxinit._modules.nnx import ScaledResidual as ScaledResidual
from jaxinit._typing import Array, DTypeLike, OutSharding, Shape


@initializer
class nnx_with_partitioning(Partitioning):
    """Another initializer's weights with the names of their axes, as metadata of an NNX variable.

    Does what `flax.nnx.with_partitioning` does and stays a value, so that the graph definition of a layer that holds it
    compares equal when the layer is built again. Use it as `jaxinit.nnx.with_partitioning`.

    Args:
      init: an initializer, of this package or any function (key, shape, dtype) -> Array.
      names: one mesh or logical axis name for each axis of the kernel, None where it is not split.
      mesh: the mesh of the names; by default the one that is set.

    Returns:
      An initializer that returns a `flax.nnx.VariableMetadata`, which `nnx.Param` takes.

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


def _split(model: nnx.Module, wrt: Any, kwargs: Mapping[str, Any] | None) -> tuple[Any, Callable[[Any, Any], Any]]:
    """The weights of a model, and the function of weights and batch that it is."""
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module, got {type(model).__name__}; for Linen see jaxinit.linen")
    graphdef, params, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]

    def apply_fn(params: Any, batch: Any) -> Any:
        # A copy: what the call changes (statistics, random counts) is thrown away with it.
        return nnx.merge(graphdef, params, rest, copy=True)(batch, **dict(kwargs or {}))  # type: ignore[operator]

    return params, apply_fn


def trace_layers(
    model: nnx.Module, batch: Any, *, wrt: Any = nnx.Param, kwargs: Mapping[str, Any] | None = None
) -> _reading.Layers:
    """`jaxinit.trace_layers` of an NNX model.

    Args:
      model: an NNX module; it is not changed.
      batch: its first argument, arrays or shapes.
      wrt: which variables are parameters, an NNX filter.
      kwargs: further keyword arguments of the model.

    Returns:
      The table of layers.

    Raises:
      TypeError: `model` is not an NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> [(layer.kind, layer.fan_in, layer.activation) for layer in jaxinit.nnx.trace_layers(model, jnp.ones((4, 3)))]
      [('dense', 3, <relu>), ('dense', 8, None)]
    """
    params, apply_fn = _split(model, wrt, kwargs)
    return _reading.trace_layers(params, apply_fn, batch)


def lsuv(
    model: nnx.Module, batch: Any, *, wrt: Any = nnx.Param, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> _lsuv.LsuvReport | None:
    """`jaxinit.lsuv` of an NNX model, whose weights are updated in place.

    Args:
      model: an NNX module. Statistics and random counts stay as they are.
      batch: its first argument.
      wrt: which variables are parameters, an NNX filter.
      kwargs: further keyword arguments of the model.
      options: of `jaxinit.lsuv`, such as `target` and `return_report`.

    Returns:
      None; the report with `return_report=True`.

    Raises:
      TypeError: `model` is not an NNX module.
      ValueError: as `jaxinit.lsuv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> jaxinit.nnx.lsuv(model, x)
      >>> round(float(jnp.std(model(x))), 3)
      1.0

    Reference: Mishkin & Matas, 2015, "All you need is a good init" (arXiv:1511.06422).
    """
    params, apply_fn = _split(model, wrt, kwargs)
    new, report = _lsuv.lsuv(params, apply_fn, batch, **(options | {"return_report": True}))
    nnx.update(model, new)
    return report if options.get("return_report") else None


def initialize(
    key: Any,
    model: nnx.Module,
    batch: Any,
    scheme: Any = "auto",
    *,
    wrt: Any = nnx.Param,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> _schemes.InitializeReport | None:
    """`jaxinit.initialize` of an NNX model, whose weights are replaced in place.

    Args:
      key: a JAX key.
      model: an NNX module. Statistics and random counts stay as they are.
      batch: its first argument, arrays or shapes.
      scheme: a name or a value of `jaxinit.schemes`.
      wrt: which variables are parameters, an NNX filter.
      kwargs: further keyword arguments of the model.
      options: of `jaxinit.initialize`: `overrides` and `return_report`.

    Returns:
      None; the report with `return_report=True`.

    Raises:
      TypeError: `model` is not an NNX module.
      ValueError: as `jaxinit.initialize`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> report = jaxinit.nnx.initialize(jax.random.key(0), model, jnp.ones((4, 3)), return_report=True)
      >>> [row.reason for row in report.rows if row.role == "dense"]
      ['inputs of mean square 1', 'inputs of mean square 0.5']
    """
    params, apply_fn = _split(model, wrt, kwargs)
    new, report = _schemes.initialize(key, params, apply_fn, batch, scheme, **(options | {"return_report": True}))
    nnx.update(model, new)
    return report if options.get("return_report") else None


def diagnose(
    model: nnx.Module, batch: Any, *, wrt: Any = nnx.Param, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> _diagnose.DiagnoseReport:
    """`jaxinit.diagnose` of an NNX model.

    Args:
      model: an NNX module; it is not changed.
      batch: its first argument.
      wrt: which variables are parameters, an NNX filter.
      kwargs: further keyword arguments of the model.
      options: of `jaxinit.diagnose`, such as `loss_fn`.

    Returns:
      The report.

    Raises:
      TypeError: `model` is not an NNX module.
      ValueError: as `jaxinit.diagnose`.

    Example:
      >>> import jax
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> jaxinit.nnx.diagnose(model, jax.random.normal(jax.random.key(0), (32, 3))).healthy
      True
    """
    params, apply_fn = _split(model, wrt, kwargs)
    return _diagnose.diagnose(params, apply_fn, batch, **options)
