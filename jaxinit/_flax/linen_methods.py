"""The whole-model methods for Linen modules, without a lambda for collections and arguments."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from jaxinit import _diagnose, _lsuv, _reading, _schemes
from jaxinit._checks import shown
from jaxinit._typing import Split


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`module.apply` with all but the parameters and the batch filled in; equal ones share a compiled program.

    Collections other than "params" (statistics, masks) are constants here: none of their leaves is a weight.
    """

    module: nn.Module
    mutable: Any
    method: Callable[..., Any] | str | None
    arguments: tuple[tuple[str, Any], ...]
    rngs: Mapping[str, Any] | None
    collections: Mapping[str, Any] | None

    def __call__(self, params: Any, batch: Any) -> Any:
        return self.module.apply(
            {**(self.collections or {}), **params},
            batch,
            rngs=None if self.rngs is None else dict(self.rngs),
            mutable=self.mutable,
            method=self.method,
            **dict(self.arguments),
        )


def split(
    module: nn.Module,
    variables: Any,
    *,
    rngs: Mapping[str, Any] | None = None,
    mutable: Any = False,
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Split:
    """Splits a Linen module into `params, apply_fn, restore`, which every method of this package accepts.

    The other functions of this module call it with the same arguments. With it, `jaxinit.study`, `jaxinit.recommend`
    and functions of your own can handle a module, too.

    Args:
      module: a Linen module.
      variables: its variables, with a collection "params". Shapes are enough where no values are needed
        (`jax.eval_shape(module.init, key, x)`). Other collections are constants, and `restore` returns them unchanged.
      rngs: random keys by name, as for `module.apply`.
      mutable: collections that the call changes, as for `module.apply`. The changes are thrown away, but the function
        returns a pair, as `module.apply` does.
      method: which method of the module is called, by default `__call__`.
      kwargs: further keyword arguments of the module, such as {"train": True} or a mask; arrays among them are data.

    Returns:
      `(params, apply_fn, restore)`: {"params": ...}, a function of such parameters and the module's first argument, and
      a function that turns new parameters into variables.

    Raises:
      TypeError: `module` is not a Linen module.
      ValueError: there is no collection "params", or another one holds shapes.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((4, 3))
      >>> params, apply_fn, restore = jaxinit.linen.split(model, model.init(jax.random.key(0), x))
      >>> apply_fn(params, x).shape
      (4, 2)
      >>> sorted(restore(params)["params"])
      ['layers_0', 'layers_2']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {type(module).__name__}; for NNX see jaxinit.nnx")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "variables must be those of module.init, with a collection 'params', got "
            f"{sorted(variables) if isinstance(variables, Mapping) else shown(variables)}; write {{'params': params}}"
        )
    mutable = tuple(mutable) if isinstance(mutable, list) else mutable
    others = {name: collection for name, collection in variables.items() if name != "params"}
    for name, collection in others.items():
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(collection)):
            raise ValueError(
                f"the collection {name!r} holds shapes, but collections other than 'params' are constants and need "
                f"values: pass those of module.init, or leave {name!r} out and name it in `mutable`, so that the "
                "module makes them"
            )
    arguments = tuple(sorted((kwargs or {}).items()))
    apply_fn = _Apply(module, mutable, method, arguments, rngs or None, others or None)
    return Split({"params": variables["params"]}, apply_fn, lambda params: {**variables, **params})


def trace_layers(
    module: nn.Module,
    variables: Any,
    batch: Any,
    *,
    rngs: Mapping[str, Any] | None = None,
    mutable: Any = False,
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> _reading.Layers:
    """`jaxinit.trace_layers` of a Linen module.

    Args:
      module, variables, rngs, mutable, method, kwargs: as for `jaxinit.linen.split`.
      batch: the module's first argument; shapes are enough.

    Returns:
      The table of layers.

    Raises:
      TypeError, ValueError: as `jaxinit.linen.split`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.BatchNorm(use_running_average=False), nn.Dense(2)])
      >>> variables = model.init(jax.random.key(0), jnp.ones((4, 3)))
      >>> layers = jaxinit.linen.trace_layers(model, variables, jnp.ones((4, 3)), mutable=["batch_stats"])
      >>> [(layer.path, layer.activation) for layer in layers]
      [('params/layers_0/kernel', <relu>), ('params/layers_3/kernel', None)]
    """
    params, apply_fn, _ = split(module, variables, rngs=rngs, mutable=mutable, method=method, kwargs=kwargs)
    return _reading.trace_layers(params, apply_fn, batch)


def lsuv(
    module: nn.Module,
    variables: Any,
    batch: Any,
    *,
    rngs: Mapping[str, Any] | None = None,
    mutable: Any = False,
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """`jaxinit.lsuv` of a Linen module.

    Args:
      module, variables, rngs, mutable, method, kwargs: as for `jaxinit.linen.split`.
      batch: the module's first argument.
      options: of `jaxinit.lsuv`, such as `target` and `return_report`.

    Returns:
      The new variables; with `return_report=True` a pair with the report.

    Raises:
      TypeError, ValueError: as `jaxinit.linen.split` and `jaxinit.lsuv`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.BatchNorm(use_running_average=False), nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(1), (32, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> variables = jaxinit.linen.lsuv(model, variables, x, mutable=["batch_stats"])
      >>> logits, _ = model.apply(variables, x, mutable=["batch_stats"])
      >>> round(float(jnp.std(logits)), 3)
      1.0

    Reference: Mishkin & Matas, 2015, "All you need is a good init" (arXiv:1511.06422).
    """
    params, apply_fn, restore = split(module, variables, rngs=rngs, mutable=mutable, method=method, kwargs=kwargs)
    new, report = _lsuv.lsuv(params, apply_fn, batch, **(options | {"return_report": True}))
    return (restore(new), report) if options.get("return_report") else restore(new)


def initialize(
    key: Any,
    module: nn.Module,
    variables: Any,
    batch: Any,
    scheme: Any = "auto",
    *,
    rngs: Mapping[str, Any] | None = None,
    mutable: Any = False,
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """`jaxinit.initialize` of a Linen module.

    Args:
      key: a JAX key.
      module, variables, rngs, mutable, method, kwargs: as for `jaxinit.linen.split`.
      batch: the module's first argument, arrays or shapes.
      scheme: a name or a value of `jaxinit.schemes`.
      options: of `jaxinit.initialize`, such as `overrides` and `return_report`.

    Returns:
      The new variables; with `return_report=True` a pair with the report.

    Raises:
      TypeError, ValueError: as `jaxinit.linen.split` and `jaxinit.initialize`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
      >>> key, x = jax.random.key(0), jnp.ones((4, 3))
      >>> shapes = jax.eval_shape(model.init, {"params": key, "dropout": key}, x)
      >>> params = jaxinit.linen.initialize(key, model, shapes, x, rngs={"dropout": key})
      >>> params["params"]["layers_0"]["kernel"].shape
      (3, 8)
    """
    params, apply_fn, restore = split(module, variables, rngs=rngs, mutable=mutable, method=method, kwargs=kwargs)
    new, report = _schemes.initialize(key, params, apply_fn, batch, scheme, **(options | {"return_report": True}))
    return (restore(new), report) if options.get("return_report") else restore(new)


def diagnose(
    module: nn.Module,
    variables: Any,
    batch: Any,
    *,
    rngs: Mapping[str, Any] | None = None,
    mutable: Any = False,
    method: Callable[..., Any] | str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> _diagnose.DiagnoseReport:
    """`jaxinit.diagnose` of a Linen module.

    Args:
      module, variables, rngs, mutable, method, kwargs: as for `jaxinit.linen.split`. With `mutable` the loss gets what
        `module.apply` returns, a pair.
      batch: the module's first argument.
      options: of `jaxinit.diagnose`, such as `loss_fn`.

    Returns:
      The report.

    Raises:
      TypeError, ValueError: as `jaxinit.linen.split` and `jaxinit.diagnose`.

    Example:
      >>> import flax.linen as nn, jax
      >>> import jaxinit.linen
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.BatchNorm(use_running_average=False), nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(1), (32, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> jaxinit.linen.diagnose(model, variables, x, mutable=["batch_stats"]).healthy
      True
    """
    params, apply_fn, _ = split(module, variables, rngs=rngs, mutable=mutable, method=method, kwargs=kwargs)
    return _diagnose.diagnose(params, apply_fn, batch, **options)
