"""One forward and one backward pass over the traced program, with measurements at every layer."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._arrays import with_automatic_axes
from jaxinit._checks import calling
from jaxinit._evaluate import measure, stacked
from jaxinit._measuring._beside_layers import watches
from jaxinit._measuring._jacobian import spectrum, taken
from jaxinit._measuring._measurements import Measurements, fitting, unread
from jaxinit._measuring._overflow_safe import rms
from jaxinit._measuring._probe import ProbeState, empty, probe
from jaxinit._measuring._rows import all_rows
from jaxinit._measuring._units import equal_units, leaning, variety
from jaxinit._reading import Traced, Weight, layers_of, part_of, per_slice, stacked_size, trace, view
from jaxinit._stages import are_made, hosted
from jaxinit._typing import Array

_APART = 0x6A61786E
"""A number that nobody else is likely to fold into a key."""

Loss = Callable[[Any, Any], Array]


def measured(
    params: Any,
    batch: Any,
    key: Array,
    *,
    apply_fn: Callable[[Any, Any], Any],
    loss_fn: Loss | None,
    lanczos_steps: int,
) -> Measurements:
    """The results of one forward and one backward pass for every layer."""
    traced = trace(params, apply_fn, batch)
    table = layers_of(traced)
    layers = dict(zip(traced.analysis.weights, table, strict=True))
    states, gradients, finite = _passes(traced, apply_fn, params, batch, key, loss_fn)
    columns: dict[str, list[Array]] = {}
    of_weight: dict[Any, Callable[..., dict[str, Array]]] = {}
    for weight in layers:
        look: Callable[..., dict[str, Array]] = functools.partial(_of_weight, weight)
        if not are_made():
            look = of_weight.setdefault((weight.region, weight.stack, view(weight)), jax.jit(look))
        gradient = () if gradients is None else (gradients[1][weight.leaf],)
        for name, values in look(traced.leaves[weight.leaf], *gradient).items():
            columns.setdefault(name, []).append(values)
    found = None
    if lanczos_steps and gradients is not None:
        # If the batch was drawn from the same key, random signs from that key would be those of the batch.
        found = spectrum(apply_fn, params, batch, jax.random.fold_in(key, _APART), lanczos_steps, taken(traced))
    joined: dict[str, Any] = {name: jnp.concatenate(parts) for name, parts in columns.items()}
    weights = list(layers)
    if weights:
        joined |= _columns(jax.tree.map(lambda *parts: _rows(parts, weights), *(states[weight] for weight in weights)))
        if gradients is not None:
            of_probes = _rows([gradients[0][weight] for weight in weights], weights)
            joined |= _gradient_columns(of_probes, joined["gradient_norm"], joined["weight_norm"])
    for name in (*_columns(empty()), "weight_norm", "leaning"):
        joined.setdefault(name, jnp.zeros(0, jnp.float32))
    for name in ("gradient_std", "gradient_norm", "update_ratio", "gradient_samples"):
        joined.setdefault(name, None)
    equal = None
    if _VARIETIES[0] in joined:
        varieties = [joined.pop(name) for name in _VARIETIES]
        equal = equal_units(joined["weight_norm"], joined["gradient_norm"], *varieties)
    return Measurements(
        rows=all_rows(traced, layers),
        unread=unread(traced, table),
        fitting=fitting(traced),
        finite_output=finite,
        equal_units=equal,
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
) -> tuple[dict[Weight, ProbeState], tuple[dict[Weight, Array], list[Array | None]] | None, Array]:
    """The states of all layers; the gradients at probes and leaves, if any; whether the outputs are finite."""
    analysis = traced.analysis
    watched = watches(traced)
    data = jax.tree.leaves(batch)
    leaves = [jnp.asarray(x) for x in traced.leaves]
    floating = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]
    stacks = {weight.stack: weight for weight in analysis.weights}
    nothing = {stack: stacked(empty(), weight) for stack, weight in stacks.items()}
    begin = {weight: nothing[weight.stack] for weight in analysis.weights}
    structure = jax.tree.structure(jax.eval_shape(apply_fn, params, batch))

    # Lists, since JAX writes out the path of each argument and result.
    def forward(chosen: Sequence[Array], probes: Sequence[Array]) -> tuple[Array, tuple[list[ProbeState], Array]]:
        values = list(leaves)
        for i, x in zip(floating, chosen, strict=True):
            values[i] = x
        start = {weight: state._replace(probe=own) for (weight, state), own in zip(begin.items(), probes, strict=True)}
        outputs, states = measure(analysis, [*values, *data], empty(), probe, start=start, watched=watched)
        output = jax.tree.unflatten(structure, outputs)
        if loss_fn is None:
            loss = _projected(output, batch, key)
        else:
            with calling("loss_fn", loss_fn, "output", "batch"):
                loss = loss_fn(output, batch)
        finite = jnp.all(jnp.array([_all_finite(lax.stop_gradient(y)) for y in outputs if _is_inexact(y)]))
        return _number(loss), ([states[weight] for weight in begin], finite)

    chosen, probes = [leaves[i] for i in floating], [state.probe for state in begin.values()]
    if any(isinstance(e, ir.While) for e in ir.equations_of(analysis.program)):
        states, finite = forward(chosen, probes)[1]
        return dict(zip(begin, states, strict=True)), None, finite
    run = forward if are_made() else ir.repeated(forward, chosen, probes)
    (of_leaves, of_probes), (states, finite) = jax.grad(run, argnums=(0, 1), has_aux=True)(chosen, probes)
    by_leaf: list[Array | None] = [None] * len(leaves)
    for i, gradient in zip(floating, of_leaves, strict=True):
        by_leaf[i] = gradient
    return dict(zip(begin, states, strict=True)), (dict(zip(begin, of_probes, strict=True)), by_leaf), finite


@hosted()
def _all_finite(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x))


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def _number(loss: Any) -> Array:
    """The loss, if it is one number."""
    if len(jax.tree.leaves(loss)) != 1 or jnp.shape(jax.tree.leaves(loss)[0]) != ():
        shapes = jax.tree.map(jnp.shape, loss)
        raise ValueError(
            f"loss_fn must be a function of (output of apply_fn, batch) that returns one number, got shape {shapes}"
        )
    return jnp.real(jnp.asarray(jax.tree.leaves(loss)[0])).astype(jnp.float32)


def _projected(output: Any, batch: Any, key: Array) -> Array:
    """A random projection of the output, with unit variance if the output has unit variance."""
    parts = [y for y in jax.tree.leaves(output) if _is_inexact(y)]
    keys = jax.random.split(key, max(len(parts), 1))
    size = max(sum(y.size for y in parts), 1)
    total = jnp.zeros((), jnp.float32)
    for y, own in zip(parts, keys, strict=False):
        total = total + jnp.sum(jnp.real(y).astype(jnp.float32) * jax.random.normal(own, y.shape, jnp.float32))
    return total / size**0.5


def _columns(state: ProbeState) -> dict[str, Array]:
    m, met = state.measured, state.activity.means()
    uses = jnp.maximum(m.uses, 1)
    total, count = state.attention[..., 0], state.attention[..., 1]
    return {
        "pre_mean": m.mean / uses,
        "pre_std": m.std / uses,
        "post_mean": met["mean"],
        "post_std": met["std"],
        "dead": met["dead"],
        "surely_dead": met["surely"],
        "saturated": met["saturated"],
        "similarity": met["similarity"],
        "effective_rank": met["rank"],
        "attention_peak": total / jnp.maximum(count, 1),
        "input_size": _mean(*jnp.moveaxis(state.taken, -1, 0)),
        "product_size": m.size / uses,
        "branch_share": jnp.sqrt(_mean(*jnp.moveaxis(state.branch, -1, 0))),
    }


def _mean(total: Array, count: Array) -> Array:
    """The function that is 1 everywhere."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 1)


def _of_weight(weight: Weight, leaf: Any, *gradient: Any) -> dict[str, Array]:
    """What is known of a weight by itself, and by the gradient at its leaf, slice after slice."""
    found = {"weight_norm": _norm(_slices(leaf, weight)), "leaning": _leaning(leaf, weight)}
    for own in gradient:
        found |= {"gradient_norm": _norm(_slices(own, weight)), **_varieties(weight, leaf, own)}
    return {name: values.reshape(-1) for name, values in found.items()}


_VARIETIES = ("weights over units", "gradients over units", "gradients over inputs")


def _varieties(weight: Weight, value: Any, gradient: Array | None) -> dict[str, Array]:
    unknown = jnp.ones(stacked_size(weight), jnp.float32)

    def of(x: Any) -> tuple[Array, Array]:
        found = None if x is None else with_automatic_axes(lambda x: variety(x, weight), jnp.asarray(x))
        return found or (unknown, unknown)

    (own, _), gradients = of(value), of(gradient)
    return dict(zip(_VARIETIES, (own, *gradients), strict=True))


def _leaning(value: Any, weight: Weight) -> Array:
    found = with_automatic_axes(lambda x: leaning(x, weight), jnp.asarray(value))
    return jnp.ones(stacked_size(weight), jnp.float32) if found is None else found


def _gradient_columns(of_probes: Array, gradient_norm: Array, weight_norm: Array) -> dict[str, Array]:
    total, uses, samples = jnp.moveaxis(of_probes, -1, 0)
    return {
        "gradient_std": total / jnp.maximum(uses, 1),
        "gradient_samples": samples,
        "update_ratio": gradient_norm / jnp.where(weight_norm > 0, weight_norm, 1),
    }


def _rows(parts: Sequence[Array], weights: Sequence[Weight]) -> Array:
    """Facts about weights, slice by slice, along one axis; those without slices are joined."""
    found: list[Array] = []
    pairs = zip(parts, weights, strict=True)
    for is_stack, group in itertools.groupby(pairs, key=lambda pair: bool(pair[1].stack)):
        if is_stack:
            found += [x.reshape(-1, *x.shape[len(weight.stack) :]) for x, weight in group]
        else:
            found.append(jnp.stack([x for x, _ in group]))
    return found[0] if len(found) == 1 else jnp.concatenate(found)


def _slices(leaf: Any, weight: Weight) -> Array:
    """A weight's part of its leaf or of the gradient there, one row for each slice of a stack."""
    found: Array = with_automatic_axes(lambda x: per_slice(part_of(x, weight), weight), jnp.asarray(leaf))
    return found


def _norm(x: Array) -> Array:
    """Along the last axis."""
    return rms(x, (x.ndim - 1,)) * x.shape[-1] ** 0.5
