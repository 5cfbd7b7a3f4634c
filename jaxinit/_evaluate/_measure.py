"""Measuring: a program run unchanged, with a sum over the output of every layer."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._evaluate._evaluation import Evaluation
from jaxinit._evaluate._scaling import State
from jaxinit._evaluate._visitor import Watch, WeightUse
from jaxinit._reading import Analysis, Weight
from jaxinit._typing import Array

Look: TypeAlias = Callable[[WeightUse, State, Array, Array], tuple[State, Array]]
"""Maps a layer's output, and the output without bias, to the weight's new state and the output, passed on unchanged.

Without a bias both are the same array.
"""


class _Measuring:
    """The visitor that scales nothing."""

    def __init__(self, empty: State, look: Look):
        self.empty, self.look = empty, look

    def initial(self, weight: Weight) -> State:
        """What is known of a weight that no layer has used yet."""
        return self.empty

    def is_final(self, state: State) -> bool:
        """Every use counts."""
        return False

    def scale(self, state: State) -> Array:
        """Weights are not scaled."""
        return jnp.ones((), jnp.float32)

    def use(self, used: WeightUse, state: State | None, u: Array, bias: Array | None) -> tuple[State, Array]:
        """Measures a layer's output."""
        return self.look(used, self.empty if state is None else state, u if bias is None else u + bias, u)


def measure(
    analysis: Analysis,
    values: Sequence[Array],
    empty: State,
    look: Look,
    *,
    start: Mapping[Weight, State] = MappingProxyType({}),
    watched: Mapping[ir.Atom, Watch] = MappingProxyType({}),
) -> tuple[list[Array], dict[Weight, State]]:
    """Runs a program once, and measures the output of every layer, bias included.

    It can be differentiated: custom derivatives are kept, and so are checkpoints.

    Args:
      analysis: of the program.
      values: of its inputs.
      empty: the state of a weight that no layer has used yet, a pytree of arrays.
      look: updates the state at each use.
      start: other initial states, those of stacked weights with an entry for each slice.
      watched: other values to measure, and what each adds to the states.

    Returns:
      The outputs of the program, and the state of every weight; stacked weights have one for each slice.
    """
    factors: dict[Weight, tuple[Any, ...]] = dict.fromkeys(analysis.weights, ())
    evaluation = Evaluation(analysis, _Measuring(empty, look), factors, differentiable=True, watched=watched)
    begin = {weight: start[weight] if weight in start else stacked(empty, weight) for weight in analysis.weights}
    return evaluation.run(values, begin)


def stacked(state: State, weight: Weight) -> State:
    """A state for each slice of a weight."""
    sizes = tuple(f.size for f in weight.stack)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, sizes + jnp.shape(x)), state)


def value_of(program: ir.Program, atom: ir.Atom, inputs: Sequence[Array]) -> Array:
    """The value of one variable, computed by only the equations that it needs."""
    needed = {atom}
    equations = []
    for equation in reversed(program.equations):
        if not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
            equations.append(equation)
    values: dict[ir.Atom, Array] = dict(zip(program.inputs, inputs, strict=True))
    for equation in reversed(equations):
        arguments = [a.value if isinstance(a, ir.Constant) else values[a] for a in equation.inputs]
        values.update(zip(equation.outputs, equation.bind(*arguments), strict=True))
    return values[atom]
