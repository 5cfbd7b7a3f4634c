"""`diagnose`: one forward and one backward pass over the traced program, measured at every layer, and a report."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._caches import kept_with_functions, weakly
from jaxinit._checks import check_finite, check_integer, check_key, check_values
from jaxinit._diagnose._report import DiagnoseReport
from jaxinit._measuring import Loss, measured
from jaxinit._stages import in_stages, waiting
from jaxinit._typing import Array


def diagnose(
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    *,
    loss_fn: Loss | None = None,
    key: Array | None = None,
    lanczos_steps: int = 2,
) -> DiagnoseReport:
    """Measures what initial weights do to signals and gradients, at every layer of any JAX function.

    One forward and one backward pass over the traced program, without hooks or module classes. Layers are those of
    `trace_layers`. Numbers of a layer that is used several times are means over its uses; a scanned stack has one row
    per slice.

    Args:
      params: pytree of arrays.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays.
      loss_fn: function of (apply_fn's output, batch) that returns a number. By default it is a random projection of the
        output, whose gradient does not depend on any particular task.
      key: a JAX key for that projection and for the Jacobian; `jax.random.key(0)` by default.
      lanczos_steps: how many products with the input–output Jacobian and with its transpose are used to find the ends
        of its spectrum. Two are enough to recognise an isometry, ten come closer to the condition number; 0 leaves the
        Jacobian out. The Jacobian is estimated from one sample in 64, and at least one, if the first axis of all inputs
        and outputs is that of samples. If samples interact, as in batch normalization, the whole batch is used.

    Returns:
      A `DiagnoseReport`: print it, or ask for its `verdict`, `findings()`, `summary()`, `to_dict()`. It is a pytree:
      `jax.vmap` over seeds returns one with an axis of seeds.

    Raises:
      ValueError: parameters or batch are not finite, the batch is empty, or `lanczos_steps` is negative.
      TypeError: `apply_fn` or `loss_fn` is not a function of two arguments, parameters or batch are shapes without
        values, or `lanczos_steps` is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> keys = jax.random.split(jax.random.key(0), 21)
      >>> params = [0.3 * jax.random.normal(key, (32, 32)) / 32**0.5 for key in keys[:20]]
      >>> def apply_fn(params, x):
      ...     for w in params:
      ...         x = jnp.tanh(x @ w)
      ...     return x
      >>> report = jaxinit.diagnose(params, apply_fn, jax.random.normal(keys[20], (128, 32)))
      >>> [finding.fault for finding in report.findings()]
      ['vanishing signal', 'vanishing gradient']
      >>> round(float(report.signal_growth), 1)
      0.3
    """
    check_integer("lanczos_steps", lanczos_steps, 0)
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(
            "loss_fn must be a function of (output of apply_fn, batch) that returns one number, or None for a random "
            f"projection of the output, got {loss_fn!r}"
        )
    key = jax.random.key(0) if key is None else check_key("diagnose", key, "as key=")
    check_values("diagnose(params, apply_fn, batch)", params, "params")
    check_values("diagnose(params, apply_fn, batch)", batch, "batch")
    if any(ir.is_traced(x) for x in jax.tree.leaves((params, batch, key))):
        return _report(params, batch, key, apply_fn=apply_fn, loss_fn=loss_fn, lanczos_steps=lanczos_steps)
    if any(jnp.size(x) == 0 for x in jax.tree.leaves(batch)):
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(f"diagnose needs a batch of at least one sample, got arrays of shapes {shapes}")
    check_finite("diagnose", params, "params")
    check_finite("diagnose", batch, "batch")
    with waiting("diagnose"):
        return _compiled(apply_fn, loss_fn, lanczos_steps)(params, batch, key)


@kept_with_functions(16)
def _compiled(apply_fn: Any, loss_fn: Any, lanczos_steps: int) -> Callable[..., DiagnoseReport]:
    function, loss = weakly(apply_fn), weakly(loss_fn)

    @in_stages
    def run(params: Any, batch: Any, key: Array) -> DiagnoseReport:
        return _report(params, batch, key, apply_fn=function(), loss_fn=loss(), lanczos_steps=lanczos_steps)

    return run


def _report(params: Any, batch: Any, key: Array, **options: Any) -> DiagnoseReport:
    """The report; this runs while JAX traces, so that it makes programs rather than arrays."""
    with ir.uncollected():
        return DiagnoseReport(**vars(measured(params, batch, key, **options)))
