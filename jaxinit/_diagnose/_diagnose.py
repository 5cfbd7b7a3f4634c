"""`diagnose`: one pass forward and one back over the traced program, measuring at every layer."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_finite, check_integer
from jaxinit._diagnose._jacobian import spectrum
from jaxinit._diagnose._probe import FLAT, Probe, ProbeState, empty, rms
from jaxinit._diagnose._report import DiagnoseReport, Row
from jaxinit._eager import outside_traces
from jaxinit._keys import check_key
from jaxinit._layers import Layer
from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._evaluate import Evaluation
from jaxinit._layers._following import TracedActivation
from jaxinit._layers._trace import Traced, layers_of, trace
from jaxinit._layers._units import Unit
from jaxinit._layers._views import part_of, per_slice
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array

Loss = Callable[[Any, Any], Array]


def diagnose(
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    *,
    loss_fn: Loss | None = None,
    key: Array | None = None,
    lanczos_steps: int = 2,
) -> DiagnoseReport:
    """Measures what a start does to signals and gradients, at every layer of any JAX function.

    One forward and one backward pass over the traced program; no hooks, no module classes. Layers are those of
    `trace_layers`; a layer that is used several times has the mean over its uses, a scanned stack has one row a slice.

    Args:
      params: pytree of arrays.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays.
      loss_fn: function of (apply_fn's output, batch) that gives a number; by default a random projection of the output,
        whose gradient is that of no task in particular.
      key: a JAX key for that projection and for the Jacobian; `jax.random.key(0)` by default.
      lanczos_steps: how many products with the input–output Jacobian and with its transpose look for the ends of its
        spectrum; two tell isometry from the rest, ten come closer to the condition number; 0 leaves the Jacobian out.
        It is looked at for one sample in 64, and for one at least, if samples lie along the first axis of all inputs
        and outputs; where samples meet, as in batch normalization, it is that of these as a batch of their own.

    Returns:
      A `DiagnoseReport`: print it, or ask for its `verdict`, `findings()`, `summary()`, `to_dict()`. It is a pytree:
      `jax.vmap` over seeds gives one with an axis of seeds.

    Raises:
      ValueError: parameters or batch are not finite, the batch is empty, or `lanczos_steps` is negative.
      TypeError: `apply_fn` is not callable, or `lanczos_steps` is no integer.

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
    key = jax.random.key(0) if key is None else check_key("diagnose", key)
    if any(ir.is_traced(x) for x in jax.tree.leaves((params, batch, key))):
        return _diagnose(params, batch, key, apply_fn=apply_fn, loss_fn=loss_fn, lanczos_steps=lanczos_steps)
    if any(jnp.size(x) == 0 for x in jax.tree.leaves(batch)):
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(f"diagnose needs a batch of one sample or more, got arrays of shapes {shapes}")
    check_finite("diagnose", params, "params")
    check_finite("diagnose", batch, "batch")
    return _compiled(apply_fn, loss_fn, lanczos_steps)(params, batch, key)


def _compiled(apply_fn: Any, loss_fn: Any, lanczos_steps: int) -> Callable[..., DiagnoseReport]:
    try:
        return _cached(apply_fn, loss_fn, lanczos_steps)
    except TypeError:  # something unhashable: no cache, same result
        return jax.jit(functools.partial(_diagnose, apply_fn=apply_fn, loss_fn=loss_fn, lanczos_steps=lanczos_steps))


@functools.lru_cache(maxsize=16)
def _cached(apply_fn: Any, loss_fn: Any, lanczos_steps: int) -> Callable[..., DiagnoseReport]:
    return jax.jit(functools.partial(_diagnose, apply_fn=apply_fn, loss_fn=loss_fn, lanczos_steps=lanczos_steps))


def _diagnose(
    params: Any,
    batch: Any,
    key: Array,
    *,
    apply_fn: Callable[[Any, Any], Any],
    loss_fn: Loss | None,
    lanczos_steps: int,
) -> DiagnoseReport:
    traced = trace(params, apply_fn, batch)
    layers = dict(zip(traced.analysis.units, layers_of(traced), strict=True))
    known = {unit: _activation(layer) for unit, layer in layers.items()}
    states, gradients, finite = _passes(traced, apply_fn, params, batch, key, loss_fn, known)
    rows: list[Row] = []
    columns: dict[str, list[Array]] = {}
    for unit, layer in layers.items():
        rows.extend(_rows(unit, layer, known[unit]))
        measured = _columns(states[unit]) | {"weight_norm": _norm(_slices(traced.leaves[unit.leaf], unit))}
        if gradients is not None:
            measured |= _gradient_columns(unit, *gradients, measured["weight_norm"])
        for name, values in measured.items():
            columns.setdefault(name, []).append(values.reshape(-1))
    found = None
    if lanczos_steps and gradients is not None:
        found = spectrum(apply_fn, params, batch, jax.random.fold_in(key, 1), lanczos_steps)
    joined: dict[str, Any] = {name: jnp.concatenate(parts) for name, parts in columns.items()}
    for name in ("pre_mean", "pre_std", "post_mean", "post_std", "dead", "saturated", "similarity", "effective_rank"):
        joined.setdefault(name, jnp.zeros(0))
    joined.setdefault("weight_norm", jnp.zeros(0))
    for name in ("gradient_std", "gradient_norm", "update_ratio", "gradient_samples"):
        joined.setdefault(name, None)
    return DiagnoseReport(
        rows=tuple(rows),
        finite_output=finite,
        jacobian_mean_square=None if found is None else found.mean_square,
        jacobian_condition=None if found is None else found.condition,
        **joined,
    )


def _passes(
    traced: Traced,
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    key: Array,
    loss_fn: Loss | None,
    known: Mapping[Unit, tuple[TracedActivation, float] | None],
) -> tuple[dict[Unit, ProbeState], tuple[dict[Unit, Array], list[Array | None]] | None, Array]:
    """The states of all layers; the gradients at probes and leaves, if any; whether the outputs are finite."""
    analysis = traced.analysis
    evaluation = Evaluation(analysis, Probe(known), dict.fromkeys(analysis.units, ()), differentiable=True)
    data = jax.tree.leaves(batch)
    leaves = [jnp.asarray(x) for x in traced.leaves]
    floating = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]
    begin = {unit: _stacked(empty(), unit) for unit in analysis.units}
    structure = jax.tree.structure(jax.eval_shape(apply_fn, params, batch))

    def forward(
        chosen: Sequence[Array], probes: dict[Unit, Array]
    ) -> tuple[Array, tuple[dict[Unit, ProbeState], Array]]:
        values = list(leaves)
        for i, x in zip(floating, chosen, strict=True):
            values[i] = x
        start = {unit: begin[unit]._replace(probe=probe) for unit, probe in probes.items()}
        outputs, states = evaluation.run([*values, *data], start)
        loss = (loss_fn or functools.partial(_projected, key=key))(jax.tree.unflatten(structure, outputs), batch)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(y)) for y in outputs if _is_inexact(y)]))
        return _number(loss), (states, finite)

    chosen, probes = [leaves[i] for i in floating], {unit: state.probe for unit, state in begin.items()}
    if any(isinstance(e, ir.While) for e in ir.equations_of(analysis.program)):
        states, finite = forward(chosen, probes)[1]
        return states, None, finite
    (of_leaves, of_probes), (states, finite) = jax.grad(forward, argnums=(0, 1), has_aux=True)(chosen, probes)
    by_leaf: list[Array | None] = [None] * len(leaves)
    for i, gradient in zip(floating, of_leaves, strict=True):
        by_leaf[i] = gradient
    return states, (of_probes, by_leaf), finite


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def _number(loss: Any) -> Array:
    """The loss, if it is one number."""
    if len(jax.tree.leaves(loss)) != 1 or jnp.shape(jax.tree.leaves(loss)[0]) != ():
        shapes = jax.tree.map(jnp.shape, loss)
        raise ValueError(
            f"loss_fn is a function of (output of apply_fn, batch) and must return one number, got shape {shapes}"
        )
    return jnp.real(jnp.asarray(jax.tree.leaves(loss)[0])).astype(jnp.float32)


def _projected(output: Any, batch: Any, key: Array) -> Array:
    """A random projection of the output, of unit variance where the output has it."""
    parts = [y for y in jax.tree.leaves(output) if _is_inexact(y)]
    keys = jax.random.split(key, max(len(parts), 1))
    size = max(sum(y.size for y in parts), 1)
    total = jnp.zeros(())
    for y, own in zip(parts, keys, strict=False):
        total = total + jnp.sum(jnp.real(y).astype(jnp.float32) * jax.random.normal(own, y.shape))
    return total / size**0.5


def _stacked(state: ProbeState, unit: Unit) -> ProbeState:
    sizes = tuple(f.size for f in unit.stack)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, sizes + x.shape), state)


def _activation(layer: Layer) -> tuple[TracedActivation, float] | None:
    """The activation and its largest slope; None where it has none."""
    activation = layer.activation
    if activation is None:
        return None
    points = np.linspace(-6, 6, 241, dtype=np.float32)

    def steepest() -> float:
        x = jnp.asarray(points)
        return float(jnp.max(jnp.abs(jax.jvp(activation, (x,), (jnp.ones_like(x),))[1])))

    found = outside_traces(steepest)
    return (activation, found) if np.isfinite(found) and found > 0 else None


def _expected_saturation(known: tuple[TracedActivation, float] | None) -> float:
    """The share of standard normal numbers at which an activation has next to no slope."""
    if known is None:
        return 0.0
    activation, steepest = known
    points = np.linspace(-6, 6, 2401, dtype=np.float32)
    weights = np.exp(-(points**2) / 2)

    def share() -> float:
        x = jnp.asarray(points)
        flat = np.abs(np.asarray(jax.jvp(activation, (x,), (jnp.ones_like(x),))[1])) < FLAT * steepest
        return float((weights * flat).sum() / weights.sum())

    return outside_traces(share)


def _rows(unit: Unit, layer: Layer, known: tuple[TracedActivation, float] | None) -> list[Row]:
    sizes = [range(f.size) for f in unit.stack]
    names = [layer.name + "".join(f"[{i}]" for i in at) for at in itertools.product(*sizes)]
    name = layer.activation.name if layer.activation else None
    expected = _expected_saturation(known)
    return [Row(n, layer.kind, name, expected, layer.skip is not None, layer.role) for n in names]


def _columns(state: ProbeState) -> dict[str, Array]:
    m = state.measured
    uses = jnp.maximum(m.uses, 1)
    return {
        "pre_mean": m.pre_mean / uses,
        "pre_std": m.pre_std / uses,
        "post_mean": m.post_mean / uses,
        "post_std": m.post_std / uses,
        "dead": m.dead / uses,
        "saturated": m.saturated / uses,
        "similarity": m.similarity / uses,
        "effective_rank": m.rank / uses,
    }


def _gradient_columns(
    unit: Unit, of_probes: Mapping[Unit, Array], by_leaf: Sequence[Array | None], weight_norm: Array
) -> dict[str, Array]:
    total, uses, samples = jnp.moveaxis(of_probes[unit], -1, 0)
    gradient_norm = _norm(_slices(by_leaf[unit.leaf], unit))
    return {
        "gradient_std": total / jnp.maximum(uses, 1),
        "gradient_samples": samples,
        "gradient_norm": gradient_norm,
        "update_ratio": gradient_norm / jnp.where(weight_norm > 0, weight_norm, 1),
    }


def _slices(leaf: Any, unit: Unit) -> Array:
    """A unit's part of its leaf or of the gradient there, one row a slice of a stack."""
    found: Array = with_automatic_axes(lambda x: per_slice(part_of(x, unit), unit), jnp.asarray(leaf))
    return found


def _norm(x: Array) -> Array:
    """Along the last axis."""
    return rms(x, (x.ndim - 1,)) * x.shape[-1] ** 0.5
