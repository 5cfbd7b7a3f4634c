"""LSUV (layer-sequential unit-variance initialization, Mishkin & Matas 2015) for any JAX function.

A layer is linear in its weight, so the scale that gives its output unit variance is known once the output is. Later
layers then see the scaled output. One evaluation of the program therefore does what the classical algorithm does
with two evaluations per layer.
"""

import dataclasses
import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxinit._caches import kept_with_functions, weakly
from jaxinit._checks import check_finite, check_flag, check_values
from jaxinit._lsuv._apply import with_orthonormal, with_scales
from jaxinit._lsuv._attempts import layer_by_layer, refined
from jaxinit._lsuv._centre import centres
from jaxinit._lsuv._limits import limits_of
from jaxinit._lsuv._moments import NOT_REPRODUCIBLE
from jaxinit._lsuv._options import (
    SKIPPED,
    Options,
    Target,
    Where,
    canonical_target,
    canonical_where,
    caveat,
    recurrent_weights,
    selected_weights,
    target_remark,
    weight_targets,
)
from jaxinit._lsuv._passes import Problem, States, fused, measured
from jaxinit._lsuv._report import LsuvReport
from jaxinit._lsuv._visitor import ScaleState
from jaxinit._program import is_traced
from jaxinit._reading import (
    Factor,
    Traced,
    Weight,
    in_order_of_leaf,
    scale_factors,
    trace,
    unvisited,
    weight_name,
)
from jaxinit._stages import in_stages, waiting
from jaxinit._typing import Array


def lsuv(
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    *,
    target: Target = 1.0,
    orthonormalize: bool = True,
    method: Literal["auto", "fused", "scan"] = "auto",
    tolerance: float = 1e-2,
    max_attempts: int = 10,
    where: Where = None,
    statistic: Literal["layer", "channel"] = "layer",
    center: bool = False,
    verify: bool = False,
    return_report: bool = False,
) -> Any:
    r"""Scales the weights of any function so that the output of every layer has unit variance on a batch.

    Each layer's output s·u + b, bias included and pooled over batch and units, gets the standard deviation `target`:

    .. math:: s = \min \{ s > 0 : \mathrm{Var}(s u + b) = \text{target}^2 \}

    Layers are found in the program (see `trace_layers`) and scaled in execution order. Later layers see scaled
    outputs, so one evaluation does all layers; a block that a `scan` repeats is scaled inside that scan.

    Args:
      params: pytree of arrays, never mutated.
      apply_fn: function of (params, batch). Its output does not matter, except that layers on which no output depends
        are not computed. For a Linen module pass `module.apply`, or see `jaxinit.linen.lsuv` and `jaxinit.nnx.lsuv`.
        Outside `jit` it is compiled once and kept, as by `jax.jit`: values that it closes over are those of the first
        call.
      batch: pytree of arrays; more samples give steadier statistics.
      target: standard deviation of every layer; or one for each layer in execution order; or a mapping from path
        patterns to numbers, of which the first match counts; layers without a match get 1. If a layer's
        output is the weight of another product, as in hypernetworks, the target is that of this product.
      orthonormalize: first replace each weight by its own orthonormal factor in its (fan-in, fan-out) layout,
        as `jaxinit.orthonormalize` does. Lookup tables are only scaled, and a matrix of zeros, such as a readout or a
        branch that is meant to start at zero, stays zero. Weights that are sharded over devices are gathered for it; if
        they are too large for one device, pass False, with which they stay where they are.
      method: "fused" is one evaluation, in which the first use of a weight decides. "scan" is the classical algorithm:
        a scan over layers, each evaluated until it is within the tolerance, statistics pooled over all uses of the
        weight. "auto" is "fused", repeated until weights that are used more than once are within the tolerance.
      tolerance: relative deviation from the target at which repetition ends.
      max_attempts: the maximum number of repetitions.
      where: which layers to scale: a predicate on `Layer`, or one or more path patterns as in `fnmatch`
        ("*/kernel"). The others are measured and left unchanged. By default all are scaled except kernels on the state
        that a recurrence carries from one step of the data to the next: if orthonormal, they preserve the state, and
        scaling their product to unit variance would make it grow or fade. They are made orthonormal, keep scale one,
        and are named in the report. If only some rows of a kernel meet the state, this holds for the whole kernel.
      statistic: "layer" pools all units; "channel" gives every output channel its own scale (Krähenbühl et al. 2015; of
        weight-normalised layers, the initialization of Salimans & Kingma 2016).
      center: also move each bias so that every unit has mean zero on the batch; the report names layers whose bias is
        not moved, such as those that are used more than once. Off by default: centring unit by unit makes deep plain
        ReLU nets untrainable.
      verify: evaluate once more with the new parameters, refine once, and report the result of that evaluation.
        Very deep chaotic nets amplify rounding; the report names layers that miss the tolerance for that reason.
      return_report: also return an `LsuvReport`.

    Returns:
      The new parameters, of the same structure and dtypes; with `return_report=True` a pair with the report.

    Raises:
      TypeError: `apply_fn` is not a function of two arguments, an option has the wrong type, or a leaf of the
        parameters or the batch is not an array, or is a shape without values.
      ValueError: an option is unknown, a pattern matches no layer, `where` chooses none, `target` has the wrong length
        or is not positive, or, outside `jit`, the parameters or the batch are not finite.

    Layers whose output does not vary are not scaled and are named in the report; so are weights that
    the program uses in ways that no single scale keeps consistent. If no layer is found that could be
    scaled, a `UserWarning` says why.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = [jax.random.normal(key, (32, 32)) for key in keys[:2]]
      >>> def apply_fn(params, x):
      ...     for w in params:
      ...         x = jnp.tanh(x @ w)
      ...     return x
      >>> x = jax.random.normal(keys[2], (256, 32))
      >>> new, report = jaxinit.lsuv(params, apply_fn, x, return_report=True)
      >>> round(float(jnp.std(x @ new[0])), 3), round(float(jnp.std(jnp.tanh(x @ new[0]) @ new[1])), 3)
      (1.0, 1.0)

    Reference: Mishkin & Matas, 2015, "All you need is a good init" (arXiv:1511.06422).
    """
    check_flag("return_report", return_report)
    patterns, targets = canonical_target(target)
    options = Options(
        method,
        orthonormalize,
        tolerance,
        max_attempts,
        canonical_where(where),
        statistic,
        center,
        verify,
        patterns,
    )
    check_values("lsuv(params, apply_fn, batch)", params, "params")
    check_values("lsuv(params, apply_fn, batch)", batch, "batch")
    if any(is_traced(x) for x in jax.tree.leaves((params, batch, targets))):
        run: Callable[..., Any] = functools.partial(_lsuv, apply_fn=apply_fn, options=options)
    else:
        check_finite("lsuv", params, "params")
        check_finite("lsuv", batch, "batch")
        run = _compiled(apply_fn, options.where, dataclasses.replace(options, where=None))
    with waiting("lsuv"):
        new, report = run(params, batch, targets)
    if all(note.startswith(SKIPPED) for note in report.notes):
        warnings.warn(f"lsuv leaves all parameters unchanged: {_reason(params, report)}", UserWarning, stacklevel=2)
    return (new, report) if return_report else new


def _reason(params: Any, report: LsuvReport) -> str:
    """Why no layer of a program is scaled."""
    if report.paths:
        return "; ".join(f"{path}: {note}" for path, note in zip(report.paths, report.notes, strict=True))
    if not any(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(params)):
        return "params holds no floating-point numbers"
    if report.unvisited:
        return "; ".join(f"{path}: {reason}" for path, reason in report.unvisited)
    return (
        "apply_fn has no product, convolution or lookup of data with a weight on which its output depends; "
        "jaxinit.trace_layers(params, apply_fn, batch) shows what it does with the parameters"
    )


@kept_with_functions(16)
def _compiled(apply_fn: Callable[[Any, Any], Any], where: Any, others: Options) -> Callable[..., Any]:
    function, selection = weakly(apply_fn), weakly(where)

    @in_stages
    def run(params: Any, batch: Any, targets: Any) -> tuple[Any, LsuvReport]:
        options = dataclasses.replace(others, where=selection())
        return _lsuv(params, batch, targets, apply_fn=function(), options=options)

    return run


def _lsuv(
    params: Any, batch: Any, targets: Any, *, apply_fn: Callable[[Any, Any], Any], options: Options
) -> tuple[Any, LsuvReport]:
    traced = trace(params, apply_fn, batch)
    weights = traced.analysis.weights
    chosen, notes = selected_weights(traced, options.where)
    recurrent = recurrent_weights(traced) if options.where is None else {}
    kept = {weight: reason for weight, reason in recurrent.items() if weight in chosen}
    selected = chosen - kept.keys()
    centred, not_centred = centres(traced, selected) if options.center else ({}, {})
    problem = Problem(
        traced.analysis,
        factors={u: scale_factors(traced.analysis, u, options.statistic == "channel") for u in weights},
        centres=centred,
        targets=dict(zip(weights, weight_targets(traced, options.target_patterns, targets), strict=True)),
        selected=selected,
        tolerance=options.tolerance,
        max_attempts=operator.index(options.max_attempts),
    )
    for weight in selected:
        shared = f"shared by {weight.use_count} uses" if weight in problem.shared else ""
        remarks = (not_centred.get(weight), caveat(traced, weight, options), shared, target_remark(weight))
        notes[weight] = "; ".join(remark for remark in remarks if remark)

    for weight, reason in kept.items():
        notes[weight] = reason if options.orthonormalize else f"{SKIPPED}: {reason}"

    leaves = list(traced.leaves)
    if options.orthonormalize:
        leaves = with_orthonormal(leaves, sorted(chosen))
    data = jax.tree.leaves(batch)
    states, attempts = _scales(problem, options.method, leaves, data)
    leaves = with_scales(leaves, problem, states)
    if options.verify:
        leaves, states, attempts = _verified(problem, options.method, leaves, data, states, attempts)
    new = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return new, _report(traced, notes, problem, states, attempts)


def _scales(
    problem: Problem, method: str, leaves: Sequence[Any], data: Sequence[Any]
) -> tuple[States, dict[Weight, Array]]:
    values = [*leaves, *data]
    limits = limits_of(sorted(problem.selected), problem.factors, leaves)
    problem = dataclasses.replace(problem, limits=limits)
    if method == "scan":
        return layer_by_layer(problem, values)
    if method == "auto" and problem.shared & problem.selected:
        return refined(problem, values)
    return fused(problem, values)


def _verified(
    problem: Problem,
    method: str,
    leaves: Sequence[Any],
    data: Sequence[Any],
    states: States,
    attempts: dict[Weight, Array],
) -> tuple[list[Any], States, dict[Weight, Array]]:
    """Refines once from the new leaves, and measures the outputs in a separate evaluation."""
    second, more = _scales(problem, method, leaves, data)
    leaves = with_scales(leaves, problem, second)
    after = measured(problem, [*leaves, *data])
    result = {}
    for weight, state in states.items():
        target = problem.targets[weight]
        missed = (jnp.abs(after[weight] - target) > problem.tolerance * target) & (weight in problem.selected)
        flags = state.flags | jnp.where(missed & (state.flags == 0), NOT_REPRODUCIBLE, 0)
        result[weight] = state._replace(after=after[weight], scale=state.scale * second[weight].scale, flags=flags)
    return leaves, result, {weight: attempts[weight] + more[weight] for weight in states}


def _in_order_of_leaf(state: ScaleState, factors: Sequence[Factor]) -> ScaleState:
    """What is reported for a weight, in the order of slices and channels in its leaf."""
    if not any(f.flipped for f in factors):
        return state
    before, after, scale, flags = (
        in_order_of_leaf(x, factors) for x in (state.before, state.after, state.scale, state.flags)
    )
    return state._replace(before=before, after=after, scale=scale, flags=flags)


def _report(
    traced: Traced, notes: Mapping[Weight, str], problem: Problem, states: States, attempts: Mapping[Weight, Array]
) -> LsuvReport:
    weights = problem.analysis.weights
    found = [_in_order_of_leaf(states[weight], [*weight.stack, *problem.factors[weight]]) for weight in weights]
    return LsuvReport(
        paths=tuple(weight_name(traced.paths, weight, traced.shapes) for weight in weights),
        notes=tuple(notes[weight] for weight in weights),
        before=tuple(s.before for s in found),
        after=tuple(s.after for s in found),
        target=tuple(problem.targets[weight] for weight in weights),
        scale=tuple(s.scale for s in found),
        attempts=tuple(jnp.asarray(attempts[weight]) for weight in weights),
        flags=tuple(s.flags for s in found),
        unvisited=tuple((entry.path, entry.reason) for entry in unvisited(traced)),
    )
