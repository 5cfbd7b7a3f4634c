"""One evaluation of the program: it finds the scales, or only measures.

Each function accepts the flat inputs of a traced program and returns the state, or the std, of every weight.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit._evaluate import Evaluation
from jaxinit._lsuv._centre import Centre
from jaxinit._lsuv._limits import Limits
from jaxinit._lsuv._moments import Moments, std
from jaxinit._lsuv._visitor import ScaleState, ScaleVisitor
from jaxinit._reading import Analysis, Factor, Weight
from jaxinit._typing import Array

States = dict[Weight, ScaleState]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What LSUV has to achieve: see `ScaleVisitor` for the fields in common.

    `limits` is for weights whose dtype cannot hold every scale.
    """

    analysis: Analysis
    factors: dict[Weight, tuple[Factor, ...]]
    centres: dict[Weight, Centre]
    targets: dict[Weight, Array]
    selected: frozenset[Weight]
    tolerance: float | Array
    max_attempts: int
    limits: Mapping[Weight, Limits] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def shared(self) -> frozenset[Weight]:
        """The weights that the program uses more than once."""
        return frozenset(u for u in self.analysis.weights if u.use_count > 1)

    def evaluation(self, refined: frozenset[Weight], selected: frozenset[Weight] | None = None) -> Evaluation:
        """An evaluation that pools the uses of `refined`."""
        chosen = self.selected if selected is None else selected
        channels = {u: centre.channels for u, centre in self.centres.items() if u in chosen}
        visitor = ScaleVisitor(self.factors, channels, self.targets, chosen, refined, self.shared)
        return Evaluation(self.analysis, visitor, self.factors, rounding=True)


def fused(problem: Problem, values: Sequence[Any]) -> tuple[States, dict[Weight, Array]]:
    """One evaluation: the first use of a weight decides its scale."""
    evaluation = problem.evaluation(frozenset())
    _, states = evaluation.run(values, limited_states(problem, evaluation, values))
    return states, {weight: jnp.ones((), jnp.int32) for weight in states}


def limited_states(problem: Problem, evaluation: Evaluation, values: Sequence[Any]) -> States:
    """The states before any use of the weights whose dtype limits the scale."""
    if not problem.limits:
        return {}
    shapes = jax.eval_shape(lambda: as_arrays(evaluation.run(values, {})[1]))
    states = {}
    for weight, limits in problem.limits.items():
        # Every slice of a stack has the same initial state.
        state = jax.tree.map(
            lambda x, like: jnp.broadcast_to(x, like.shape) if like.shape != jnp.shape(x) else x,
            evaluation.visitor.initial(weight),
            shapes[weight],
        )
        states[weight] = state._replace(limits=jax.tree.map(lambda x, s=state: x.reshape(s.scale.shape), limits))
    return states


def measured(problem: Problem, values: Sequence[Any]) -> dict[Weight, Array]:
    """One evaluation that changes nothing: the std of each weight's output, pooled over its uses."""
    weights = frozenset(problem.analysis.weights)
    _, states = problem.evaluation(weights, selected=frozenset()).run(values, {})
    return {weight: std(pooled_of(state)) for weight, state in states.items()}


def deviations(analysis: Analysis, values: Sequence[Any]) -> dict[Weight, Array]:
    """The std of each weight's output, for each slice of a stack: one evaluation of the unchanged program."""
    factors: dict[Weight, tuple[Factor, ...]] = dict.fromkeys(analysis.weights, ())
    targets = {weight: jnp.ones((), jnp.float32) for weight in analysis.weights}
    return measured(Problem(analysis, factors, {}, targets, frozenset(), 0.0, 1), values)


def pooled_of(state: ScaleState) -> Moments:
    assert state.pooled is not None
    return state.pooled


def as_arrays(states: States) -> States:
    return {weight: jax.tree.map(jnp.asarray, state) for weight, state in states.items()}
