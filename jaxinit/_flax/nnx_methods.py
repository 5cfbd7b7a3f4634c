"""The whole-model methods for NNX models: they accept the model itself, and change weights in place where they do."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxinit import _diagnose, _lsuv, _reading, _schemes
from jaxinit._typing import Split


def split(
    model: nnx.Module, *, wrt: Any = nnx.Param, method: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> Split:
    """Splits an NNX model into `params, apply_fn, restore`, which every method of this package accepts.

    The other functions of this module call it with the same arguments. With it, `jaxinit.study`, `jaxinit.recommend`
    and functions of your own can handle a model, too.

    Args:
      model: an NNX module. It is not changed until `restore` is called.
      wrt: which variables are parameters, an NNX filter. All others are constants; changes that a call makes to them
        (statistics, random counts) are thrown away.
      method: the name of the method that is called, by default `__call__`.
      kwargs: further keyword arguments of the model, such as a mask; arrays among them are data.

    Returns:
      `(params, apply_fn, restore)`: an `nnx.State`, a function of such a state and the model's first argument, and a
      function that puts new parameters into the model, in place, and returns the model.

    Raises:
      TypeError: `model` is not an NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> params, apply_fn, restore = jaxinit.nnx.split(model)
      >>> apply_fn(params, jnp.ones((4, 3))).shape
      (4, 2)
      >>> restore(params) is model
      True
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module, got {type(model).__name__}; for Linen see jaxinit.linen")
    graphdef, params, rest = nnx.split(model, wrt, ...)  # type: ignore[misc]

    def apply_fn(params: Any, batch: Any) -> Any:
        # A copy: what the call changes (statistics, random counts) is thrown away with it.
        merged = nnx.merge(graphdef, params, rest, copy=True)
        function = getattr(merged, method or "__call__")
        return function(batch, **dict(kwargs or {}))

    def restore(params: Any) -> nnx.Module:
        nnx.update(model, params)
        return model

    return Split(params, apply_fn, restore)


def trace_layers(
    model: nnx.Module,
    batch: Any,
    *,
    wrt: Any = nnx.Param,
    method: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> _reading.Layers:
    """`jaxinit.trace_layers` of an NNX model.

    Args:
      model, wrt, method, kwargs: as for `jaxinit.nnx.split`; the model is not changed.
      batch: the model's first argument, arrays or shapes.

    Returns:
      The table of layers.

    Raises:
      TypeError: as `jaxinit.nnx.split`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> [(layer.kind, layer.fan_in, layer.activation) for layer in jaxinit.nnx.trace_layers(model, jnp.ones((4, 3)))]
      [('dense', 3, <relu>), ('dense', 8, None)]
    """
    params, apply_fn, _ = split(model, wrt=wrt, method=method, kwargs=kwargs)
    return _reading.trace_layers(params, apply_fn, batch)


def lsuv(
    model: nnx.Module,
    batch: Any,
    *,
    wrt: Any = nnx.Param,
    method: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> _lsuv.LsuvReport | None:
    """`jaxinit.lsuv` of an NNX model, whose weights are updated in place.

    Args:
      model, wrt, method, kwargs: as for `jaxinit.nnx.split`. Statistics and random counts stay as they are.
      batch: the model's first argument.
      options: of `jaxinit.lsuv`, such as `target` and `return_report`.

    Returns:
      None, or the report with `return_report=True`.

    Raises:
      TypeError, ValueError: as `jaxinit.nnx.split` and `jaxinit.lsuv`.

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
    params, apply_fn, restore = split(model, wrt=wrt, method=method, kwargs=kwargs)
    new, report = _lsuv.lsuv(params, apply_fn, batch, **(options | {"return_report": True}))
    restore(new)
    return report if options.get("return_report") else None


def initialize(
    key: Any,
    model: nnx.Module,
    batch: Any,
    scheme: Any = "auto",
    *,
    wrt: Any = nnx.Param,
    method: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> _schemes.InitializeReport | None:
    """`jaxinit.initialize` of an NNX model, whose weights are replaced in place.

    Args:
      key: a JAX key.
      model, wrt, method, kwargs: as for `jaxinit.nnx.split`. Statistics and random counts stay as they are.
      batch: the model's first argument, arrays or shapes.
      scheme: a name or a value of `jaxinit.schemes`.
      options: of `jaxinit.initialize`, such as `overrides` and `return_report`.

    Returns:
      None, or the report with `return_report=True`.

    Raises:
      TypeError, ValueError: as `jaxinit.nnx.split` and `jaxinit.initialize`.

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
    params, apply_fn, restore = split(model, wrt=wrt, method=method, kwargs=kwargs)
    new, report = _schemes.initialize(key, params, apply_fn, batch, scheme, **(options | {"return_report": True}))
    restore(new)
    return report if options.get("return_report") else None


def diagnose(
    model: nnx.Module,
    batch: Any,
    *,
    wrt: Any = nnx.Param,
    method: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> _diagnose.DiagnoseReport:
    """`jaxinit.diagnose` of an NNX model.

    Args:
      model, wrt, method, kwargs: as for `jaxinit.nnx.split`; the model is not changed.
      batch: the model's first argument.
      options: of `jaxinit.diagnose`, such as `loss_fn`.

    Returns:
      The report.

    Raises:
      TypeError, ValueError: as `jaxinit.nnx.split` and `jaxinit.diagnose`.

    Example:
      >>> import jax
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> jaxinit.nnx.diagnose(model, jax.random.normal(jax.random.key(0), (32, 3))).healthy
      True
    """
    params, apply_fn, _ = split(model, wrt=wrt, method=method, kwargs=kwargs)
    return _diagnose.diagnose(params, apply_fn, batch, **options)
