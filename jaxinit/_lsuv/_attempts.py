"""Scales by repeated evaluation: for weights that are used more than once, and for the classical algorithm.

Each function accepts the flat inputs of a traced program and returns the state of every weight, and how many attempts
it took.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._lsuv._acceleration import accelerated, no_memory
from jaxinit._lsuv._moments import NOT_CONVERGED, NOT_HELD, NOT_REACHED, nothing, solve, std, zeros_of
from jaxinit._lsuv._passes import Problem, States, as_arrays, limited_states, pooled_of
from jaxinit._lsuv._visitor import ScaleState
from jaxinit._reading import Weight, stacked_size
from jaxinit._typing import Array


def refined(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Weight, Array]]:
    """Evaluates until the pooled output of every shared weight is at its target; the others follow in each evaluation.

    The first use of a shared weight decides its scale in the first evaluation, which keeps reused blocks from
    exploding; after that its pooled moments do.
    """
    shared = problem.shared & problem.selected
    evaluation = problem.evaluation(shared)
    bounded = limited_states(problem, evaluation, values)

    def evaluate(given: States) -> States:
        return as_arrays(evaluation.run(values, bounded | dict(given))[1])

    shapes = jax.eval_shape(evaluate, {})
    start = {u: zeros_of(shapes[u])._replace(known=jnp.zeros(shapes[u].known.shape, bool)) for u in shared}
    start = {u: s._replace(limits=bounded[u].limits) if u in bounded else s for u, s in start.items()}

    return _refined(problem, evaluate, start, shapes)


def _refined(
    problem: Problem,
    evaluate: Callable[[States], States],
    start: States,
    shapes: States,
) -> tuple[States, dict[Weight, Array]]:
    """Evaluates until the pooled outputs of all weights in `start` are at their targets, all corrected together."""
    order = sorted(start)
    sizes = [math.prod(shapes[u].scale.shape) for u in order]

    def attempt(carry: Any) -> Any:
        given, memory, _, count, _ = carry
        states = evaluate({u: s._replace(pooled=nothing(pooled_of(s))) for u, s in given.items()})
        wanted, done = [], jnp.asarray(True)
        for weight in order:
            correction, reached = _correction(problem, weight, states[weight])
            wanted.append(correction.reshape(-1))
            done &= jnp.all(reached)
        memory, steps = accelerated(memory, jnp.concatenate(wanted))
        following, first = {}, 0
        for weight, size in zip(order, sizes, strict=True):
            state = states[weight]
            scale = state.scale * jnp.exp(steps[first : first + size].reshape(state.scale.shape))
            if state.limits is not None:
                scale = jnp.where(state.limits.hold(scale), scale, state.scale)
            following[weight] = state._replace(scale=scale)
            first += size
        return following, memory, states, count + 1, done

    def unfinished(carry: Any) -> Array:
        *_, count, done = carry
        return (count < problem.max_attempts) & ~done

    zero = jnp.zeros((), jnp.int32)
    _, _, states, count, _ = lax.while_loop(
        unfinished, attempt, (start, no_memory(sum(sizes)), zeros_of(shapes), zero, jnp.asarray(False))
    )
    for weight in order:
        after = std(pooled_of(states[weight]))
        flags = _flags(problem, weight, states[weight])
        missed = ~_within(problem, weight, after) & (weight in problem.selected)
        flags |= jnp.where(missed & (flags == 0), NOT_CONVERGED, 0)
        states[weight] = states[weight]._replace(after=after, flags=flags)
    return states, dict.fromkeys(states, count)


def _correction(problem: Problem, weight: Weight, state: ScaleState) -> tuple[Array, Array]:
    """The log of the ratio that would bring a weight to its target; whether it is there already or cannot get there."""
    pooled = pooled_of(state)
    ratio, flags = solve(pooled, problem.targets[weight])
    if weight not in problem.selected:
        return jnp.zeros_like(ratio), jnp.ones(ratio.shape, bool)
    reached = _within(problem, weight, std(pooled)) | (flags != 0)
    log_ratio = jnp.where(flags != 0, 0, jnp.log(ratio))
    if state.limits is not None:
        held = state.limits.hold(state.scale * ratio)
        log_ratio, reached = jnp.where(held, log_ratio, 0), reached | ~held
    return log_ratio, reached


def layer_by_layer(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Weight, Array]]:
    """The classical algorithm: a scan over layers, and for each layer a loop of evaluations until it is at its target.

    If layers share weights, all scales are then corrected together.
    """
    weights = problem.analysis.weights
    evaluation = problem.evaluation(frozenset(weights))
    bounded = limited_states(problem, evaluation, values)

    def evaluate(given: States) -> States:
        return as_arrays(evaluation.run(values, bounded | dict(given))[1])

    shapes = jax.eval_shape(evaluate, {})
    start = {}
    for weight in weights:
        state = zeros_of(shapes[weight])
        start[weight] = state._replace(
            known=jnp.ones(shapes[weight].known.shape, bool),
            scale=jnp.ones_like(state.scale),
            limits=bounded[weight].limits if weight in bounded else None,
        )
    groups, count = _groups(problem, weights)

    def layer(carry: Any, group: Array) -> Any:
        masks = {u: _aligned(groups[u] == group, start[u].scale) for u in weights}

        def attempt(inner: Any) -> Any:
            given, steps, tries, _ = inner
            states = evaluate({u: s._replace(pooled=nothing(pooled_of(s))) for u, s in given.items()})
            following, done = {}, jnp.asarray(True)
            for weight in weights:
                mask, state, before = masks[weight], states[weight], given[weight]
                steps[weight], reached = _step(problem, weight, state, steps[weight])
                done &= jnp.all(reached | ~mask)
                now = std(pooled_of(state))
                following[weight] = before._replace(
                    scale=jnp.where(mask, before.scale * jnp.exp(steps[weight].log_ratio), before.scale),
                    before=jnp.where(mask & (tries == 0), now, before.before),
                    # The step after the last layer changes nothing, and measures the outputs with all scales.
                    after=jnp.where(group == count, now, before.after),
                    flags=jnp.where(group == count, _flags(problem, weight, state), before.flags),
                    shift=state.shift,
                )
            return following, steps, tries + 1, done

        def unfinished(inner: Any) -> Array:
            *_, tries, done = inner
            return (tries < problem.max_attempts) & ~done

        steps = {u: _no_step(shapes[u]) for u in weights}
        given, _, tries, _ = lax.while_loop(
            unfinished, attempt, (carry, steps, jnp.zeros((), jnp.int32), jnp.asarray(False))
        )
        return given, tries

    states, tries = lax.scan(layer, start, jnp.arange(count + 1))
    attempts = {u: tries[groups[u]] for u in weights}
    if problem.shared & problem.selected:
        # Scaling later layers has changed the inputs of the earlier uses of a weight.
        states, more = _refined(problem, evaluate, states, shapes)
        return states, {u: attempts[u] + more[u] for u in weights}
    for weight in weights:
        missed = ~_within(problem, weight, states[weight].after) & (weight in problem.selected)
        flags = states[weight].flags | jnp.where(missed & (states[weight].flags == 0), NOT_CONVERGED, 0)
        states[weight] = states[weight]._replace(flags=flags)
    return states, attempts


def _groups(problem: Problem, weights: Sequence[Weight]) -> tuple[dict[Weight, Array], int]:
    """The number of each layer in execution order: one for a weight, or one for each of its slices in a scan."""
    numbers: dict[Weight, Array] = {}
    scans = dict(_scans_around(problem.analysis.program, ()))
    count, i = 0, 0
    while i < len(weights):
        size = stacked_size(weights[i])
        together = [weights[i]]
        # Weights that one scan runs over alternate, slice by slice.
        for following in weights[i + 1 :]:
            one = scans[following.uses[0].finish] == scans[weights[i].uses[0].finish]
            if size == 1 or stacked_size(following) != size or not one:
                break
            together.append(following)
        for j, weight in enumerate(together):
            numbers[weight] = jnp.asarray(count + j + len(together) * weight.order)
        count += size * len(together)
        i += len(together)
    return numbers, count


def _scans_around(
    program: ir.Program, around: tuple[ir.Scan, ...]
) -> Iterator[tuple[ir.Equation, tuple[ir.Scan, ...]]]:
    """Every equation of a program, with the scans that contain it."""
    for equation in program.equations:
        yield equation, around
        for inner in ir.subprograms(equation):
            yield from _scans_around(inner, (*around, equation) if isinstance(equation, ir.Scan) else around)


def _aligned(mask: Array, like: Array) -> Array:
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim)), like.shape)


class _Step(NamedTuple):
    """The last correction of a scale, from which the next one is computed."""

    log_ratio: Array
    log_std: Array


def _no_step(shapes: ScaleState) -> _Step:
    zeros = jnp.zeros(shapes.scale.shape, jnp.float32)
    return _Step(zeros, zeros)


def _step(problem: Problem, weight: Weight, state: ScaleState, last: _Step) -> tuple[_Step, Array]:
    """The correction that brings a weight to its target, and whether it is already there (or cannot get there).

    A weight that is used k times in a row changes its pooled output by up to the k-th power of the correction. The
    power observed at the last correction is therefore undone in the next: the secant method on a log-log scale.
    """
    pooled = pooled_of(state)
    ratio, flags = solve(pooled, problem.targets[weight])
    found = std(pooled)
    reached = _within(problem, weight, found) | (flags != 0)
    if weight not in problem.selected:
        reached = jnp.ones_like(reached)
    log_std = jnp.log(jnp.maximum(found, jnp.finfo(jnp.float32).tiny))
    seen = (log_std - last.log_std) / jnp.where(last.log_ratio == 0, 1, last.log_ratio)
    power = jnp.where(last.log_ratio == 0, 1, jnp.clip(seen, 1, 64))
    log_ratio = jnp.where(reached, 0, jnp.log(ratio) / power)
    if state.limits is not None:
        held = state.limits.hold(state.scale * jnp.exp(log_ratio))
        log_ratio, reached = jnp.where(held, log_ratio, 0), reached | ~held
    return _Step(log_ratio, log_std), reached


def _flags(problem: Problem, weight: Weight, state: ScaleState) -> Array:
    """Why a weight misses its target; empty if a further scale would correct it."""
    pooled = pooled_of(state)
    ratio, flags = solve(pooled, problem.targets[weight])
    if state.limits is not None:
        missed = ~_within(problem, weight, std(pooled)) & ~state.limits.hold(state.scale * ratio)
        flags = jnp.where(missed & (flags == 0) & (weight in problem.selected), NOT_HELD, flags)
    return jnp.where(_aligned(pooled.size == 0, flags), NOT_REACHED, flags)


def _within(problem: Problem, weight: Weight, found: Array) -> Array:
    target = problem.targets[weight]
    return jnp.abs(found - target) <= problem.tolerance * target
