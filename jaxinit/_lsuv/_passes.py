"""The ways of finding the scales: one evaluation, repeated evaluation for shared weights, and layer by layer.

Each takes the flat inputs of a traced program and returns the state of every unit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._evaluate import Evaluation
from jaxinit._lsuv._acceleration import accelerated, no_memory
from jaxinit._lsuv._centre import Centre
from jaxinit._lsuv._limits import Limits
from jaxinit._lsuv._moments import NOT_CONVERGED, NOT_HELD, NOT_REACHED, Moments, nothing, solve, std, zeros_of
from jaxinit._lsuv._visitor import ScaleState, ScaleVisitor
from jaxinit._reading import Analysis, Factor, Unit, stacked_size
from jaxinit._typing import Array

States = dict[Unit, ScaleState]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be reached: see `ScaleVisitor` for the fields in common.

    Of units whose dtype does not hold every scale, `limits` says which it does.
    """

    analysis: Analysis
    factors: dict[Unit, tuple[Factor, ...]]
    centres: dict[Unit, Centre]
    targets: dict[Unit, Array]
    selected: frozenset[Unit]
    tolerance: float | Array
    max_attempts: int
    limits: Mapping[Unit, Limits] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def shared(self) -> frozenset[Unit]:
        """The units that the program uses more than once."""
        return frozenset(u for u in self.analysis.units if u.uses > 1)

    def evaluation(self, refined: frozenset[Unit], selected: frozenset[Unit] | None = None) -> Evaluation:
        """An evaluation that pools the uses of `refined`."""
        chosen = self.selected if selected is None else selected
        channels = {u: centre.channels for u, centre in self.centres.items() if u in chosen}
        visitor = ScaleVisitor(self.factors, channels, self.targets, chosen, refined, self.shared)
        return Evaluation(self.analysis, visitor, self.factors, rounding=True)


def fused(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Unit, Array]]:
    """One evaluation: the first use of a unit decides its scale."""
    evaluation = problem.evaluation(frozenset())
    _, states = evaluation.run(values, _bounded(problem, evaluation, values))
    return states, {unit: jnp.ones((), jnp.int32) for unit in states}


def _bounded(problem: Problem, evaluation: Evaluation, values: Sequence[Any]) -> States:
    """The states before any use of the units whose dtype limits the scale."""
    if not problem.limits:
        return {}
    shapes = jax.eval_shape(lambda: _as_arrays(evaluation.run(values, {})[1]))
    states = {}
    for unit, limits in problem.limits.items():
        # Every slice of a stack begins alike.
        state = jax.tree.map(
            lambda x, like: jnp.broadcast_to(x, like.shape) if like.shape != jnp.shape(x) else x,
            evaluation.visitor.initial(unit),
            shapes[unit],
        )
        states[unit] = state._replace(limits=jax.tree.map(lambda x, s=state: x.reshape(s.scale.shape), limits))
    return states


def measured(problem: Problem, values: Sequence[Any]) -> dict[Unit, Array]:
    """One evaluation that changes nothing: the std of each unit's output, its uses pooled."""
    units = frozenset(problem.analysis.units)
    _, states = problem.evaluation(units, selected=frozenset()).run(values, {})
    return {unit: std(_pooled(state)) for unit, state in states.items()}


def deviations(analysis: Analysis, values: Sequence[Any]) -> dict[Unit, Array]:
    """The std of each unit's output, for each slice of a stack: one evaluation of the program as it is."""
    factors: dict[Unit, tuple[Factor, ...]] = dict.fromkeys(analysis.units, ())
    targets = {unit: jnp.ones((), jnp.float32) for unit in analysis.units}
    return measured(Problem(analysis, factors, {}, targets, frozenset(), 0.0, 1), values)


def refined(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Unit, Array]]:
    """Evaluations until the pooled output of every shared unit is at its target; the others follow in each.

    The first use of a shared unit decides its scale in the first evaluation, which keeps reused blocks from
    exploding; from then on its pooled moments do.
    """
    shared = problem.shared & problem.selected
    evaluation = problem.evaluation(shared)
    bounded = _bounded(problem, evaluation, values)

    def evaluate(given: States) -> States:
        return _as_arrays(evaluation.run(values, bounded | dict(given))[1])

    shapes = jax.eval_shape(evaluate, {})
    start = {u: zeros_of(shapes[u])._replace(known=jnp.zeros(shapes[u].known.shape, bool)) for u in shared}
    start = {u: s._replace(limits=bounded[u].limits) if u in bounded else s for u, s in start.items()}

    return _refined(problem, evaluate, start, shapes)


def _refined(
    problem: Problem,
    evaluate: Callable[[States], States],
    start: States,
    shapes: States,
) -> tuple[States, dict[Unit, Array]]:
    """Evaluations until the pooled output of every unit in `start` is at its target, the scales corrected together."""
    order = sorted(start)
    sizes = [math.prod(shapes[u].scale.shape) for u in order]

    def attempt(carry: Any) -> Any:
        given, memory, _, count, _ = carry
        states = evaluate({u: s._replace(pooled=nothing(_pooled(s))) for u, s in given.items()})
        wanted, done = [], jnp.asarray(True)
        for unit in order:
            correction, reached = _correction(problem, unit, states[unit])
            wanted.append(correction.reshape(-1))
            done &= jnp.all(reached)
        memory, steps = accelerated(memory, jnp.concatenate(wanted))
        following, first = {}, 0
        for unit, size in zip(order, sizes, strict=True):
            state = states[unit]
            scale = state.scale * jnp.exp(steps[first : first + size].reshape(state.scale.shape))
            if state.limits is not None:
                scale = jnp.where(state.limits.hold(scale), scale, state.scale)
            following[unit] = state._replace(scale=scale)
            first += size
        return following, memory, states, count + 1, done

    def unfinished(carry: Any) -> Array:
        *_, count, done = carry
        return (count < problem.max_attempts) & ~done

    zero = jnp.zeros((), jnp.int32)
    _, _, states, count, _ = lax.while_loop(
        unfinished, attempt, (start, no_memory(sum(sizes)), zeros_of(shapes), zero, jnp.asarray(False))
    )
    for unit in order:
        after = std(_pooled(states[unit]))
        flags = _flags(problem, unit, states[unit])
        missed = ~_within(problem, unit, after) & (unit in problem.selected)
        flags |= jnp.where(missed & (flags == 0), NOT_CONVERGED, 0)
        states[unit] = states[unit]._replace(after=after, flags=flags)
    return states, dict.fromkeys(states, count)


def _correction(problem: Problem, unit: Unit, state: ScaleState) -> tuple[Array, Array]:
    """The logarithm of the ratio that would bring a unit to its target, and whether it is there or cannot get there."""
    pooled = _pooled(state)
    ratio, flags = solve(pooled, problem.targets[unit])
    if unit not in problem.selected:
        return jnp.zeros_like(ratio), jnp.ones(ratio.shape, bool)
    reached = _within(problem, unit, std(pooled)) | (flags != 0)
    log_ratio = jnp.where(flags != 0, 0, jnp.log(ratio))
    if state.limits is not None:
        held = state.limits.hold(state.scale * ratio)
        log_ratio, reached = jnp.where(held, log_ratio, 0), reached | ~held
    return log_ratio, reached


def layer_by_layer(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Unit, Array]]:
    """The classical algorithm: a scan over layers, and for each a loop of evaluations until it is at its target.

    Where layers share weights, all scales are then corrected together.
    """
    units = problem.analysis.units
    evaluation = problem.evaluation(frozenset(units))
    bounded = _bounded(problem, evaluation, values)

    def evaluate(given: States) -> States:
        return _as_arrays(evaluation.run(values, bounded | dict(given))[1])

    shapes = jax.eval_shape(evaluate, {})
    start = {}
    for unit in units:
        state = zeros_of(shapes[unit])
        start[unit] = state._replace(
            known=jnp.ones(shapes[unit].known.shape, bool),
            scale=jnp.ones_like(state.scale),
            limits=bounded[unit].limits if unit in bounded else None,
        )
    groups, count = _groups(units)

    def layer(carry: Any, group: Array) -> Any:
        masks = {u: _aligned(groups[u] == group, start[u].scale) for u in units}

        def attempt(inner: Any) -> Any:
            given, steps, tries, _ = inner
            states = evaluate({u: s._replace(pooled=nothing(_pooled(s))) for u, s in given.items()})
            following, done = {}, jnp.asarray(True)
            for unit in units:
                mask, state, before = masks[unit], states[unit], given[unit]
                steps[unit], reached = _step(problem, unit, state, steps[unit])
                done &= jnp.all(reached | ~mask)
                now = std(_pooled(state))
                following[unit] = before._replace(
                    scale=jnp.where(mask, before.scale * jnp.exp(steps[unit].log_ratio), before.scale),
                    before=jnp.where(mask & (tries == 0), now, before.before),
                    # The step after the last layer changes nothing, and sees what all scales together give.
                    after=jnp.where(group == count, now, before.after),
                    flags=jnp.where(group == count, _flags(problem, unit, state), before.flags),
                    shift=state.shift,
                )
            return following, steps, tries + 1, done

        def unfinished(inner: Any) -> Array:
            *_, tries, done = inner
            return (tries < problem.max_attempts) & ~done

        steps = {u: _no_step(shapes[u]) for u in units}
        given, _, tries, _ = lax.while_loop(
            unfinished, attempt, (carry, steps, jnp.zeros((), jnp.int32), jnp.asarray(False))
        )
        return given, tries

    states, tries = lax.scan(layer, start, jnp.arange(count + 1))
    attempts = {u: tries[groups[u]] for u in units}
    if problem.shared & problem.selected:
        # Later layers have changed what the earlier uses of a weight see.
        states, more = _refined(problem, evaluate, states, shapes)
        return states, {u: attempts[u] + more[u] for u in units}
    for unit in units:
        missed = ~_within(problem, unit, states[unit].after) & (unit in problem.selected)
        flags = states[unit].flags | jnp.where(missed & (states[unit].flags == 0), NOT_CONVERGED, 0)
        states[unit] = states[unit]._replace(flags=flags)
    return states, attempts


def _groups(units: Sequence[Unit]) -> tuple[dict[Unit, Array], int]:
    """The number of each layer in execution order: one for a unit, or one for each of its slices in a scan."""
    numbers: dict[Unit, Array] = {}
    count, i = 0, 0
    while i < len(units):
        size = stacked_size(units[i])
        together = [units[i]]
        # Units that one scan walks along take turns, slice by slice.
        while size > 1 and i + len(together) < len(units) and stacked_size(units[i + len(together)]) == size:
            together.append(units[i + len(together)])
        for j, unit in enumerate(together):
            numbers[unit] = jnp.asarray(count + j + len(together) * unit.order)
        count += size * len(together)
        i += len(together)
    return numbers, count


def _aligned(mask: Array, like: Array) -> Array:
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim)), like.shape)


class _Step(NamedTuple):
    """The last correction of a scale, for the next to learn from."""

    log_ratio: Array
    log_std: Array


def _no_step(shapes: ScaleState) -> _Step:
    zeros = jnp.zeros(shapes.scale.shape, jnp.float32)
    return _Step(zeros, zeros)


def _step(problem: Problem, unit: Unit, state: ScaleState, last: _Step) -> tuple[_Step, Array]:
    """The correction that brings a unit to its target, and whether it is there (or cannot get there) already.

    A weight that is used k times in a row changes its pooled output by up to the k-th power of the correction. The
    power seen at the last correction is therefore undone in the next: the secant method on a doubly logarithmic scale.
    """
    pooled = _pooled(state)
    ratio, flags = solve(pooled, problem.targets[unit])
    found = std(pooled)
    reached = _within(problem, unit, found) | (flags != 0)
    if unit not in problem.selected:
        reached = jnp.ones_like(reached)
    log_std = jnp.log(jnp.maximum(found, jnp.finfo(jnp.float32).tiny))
    seen = (log_std - last.log_std) / jnp.where(last.log_ratio == 0, 1, last.log_ratio)
    power = jnp.where(last.log_ratio == 0, 1, jnp.clip(seen, 1, 64))
    log_ratio = jnp.where(reached, 0, jnp.log(ratio) / power)
    if state.limits is not None:
        held = state.limits.hold(state.scale * jnp.exp(log_ratio))
        log_ratio, reached = jnp.where(held, log_ratio, 0), reached | ~held
    return _Step(log_ratio, log_std), reached


def _flags(problem: Problem, unit: Unit, state: ScaleState) -> Array:
    """What keeps a unit from its target; nothing, for one whose deviation a scale would mend."""
    pooled = _pooled(state)
    ratio, flags = solve(pooled, problem.targets[unit])
    if state.limits is not None:
        missed = ~_within(problem, unit, std(pooled)) & ~state.limits.hold(state.scale * ratio)
        flags = jnp.where(missed & (flags == 0) & (unit in problem.selected), NOT_HELD, flags)
    return jnp.where(_aligned(pooled.size == 0, flags), NOT_REACHED, flags)


def _within(problem: Problem, unit: Unit, found: Array) -> Array:
    target = problem.targets[unit]
    return jnp.abs(found - target) <= problem.tolerance * target


def _pooled(state: ScaleState) -> Moments:
    assert state.pooled is not None
    return state.pooled


def _as_arrays(states: States) -> States:
    return {unit: jax.tree.map(jnp.asarray, state) for unit, state in states.items()}
