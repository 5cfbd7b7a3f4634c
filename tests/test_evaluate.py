"""An evaluation with a visitor returns what the function returns, and every use of a weight sees its scale."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinit._evaluate import Evaluation, measure, value_of
from jaxinit._reading import layers_of, trace

X = jax.random.normal(jax.random.key(0), (16, 6))


def square(i):
    return jax.random.normal(jax.random.key(i), (6, 6)) / 2


def chain(params, x):
    return jax.nn.relu(x @ params["a"] + params["b"][None]) @ params["c"]


def shared(params, x):
    """A weight that is used twice, once transposed."""
    return jnp.tanh(x @ params["a"]) @ params["a"].T + params["b"][None]


def scanned(params, x):
    def step(x, p):
        return jnp.tanh(x @ p["w"] + p["b"][None]), x.mean()

    return lax.scan(step, x, params)[0]


def branching(params, x):
    x = lax.cond(x[0, 0] > 0, lambda x: x @ params["a"], lambda x: jnp.sin(x @ params["a"]), x)
    return jax.checkpoint(lambda x: jnp.tanh(x @ params["c"] + params["b"][None]))(x)


PARAMS = {"a": square(1), "b": jnp.arange(6) / 6, "c": square(2)}
STACKED = {"w": jnp.stack([square(i) for i in range(3)]), "b": jnp.ones((3, 6)) / 5}
PROGRAMS = {"chain": (chain, PARAMS), "shared": (shared, PARAMS), "scanned": (scanned, STACKED)}
PROGRAMS["branching"] = branching, PARAMS


def read(name):
    function, params = PROGRAMS[name]
    traced = trace(params, function, X)
    return function, params, traced, [*traced.leaves, X]


@pytest.mark.parametrize("name", PROGRAMS)
def test_measuring_changes_nothing_and_sees_every_use(name):
    function, params, traced, values = read(name)

    def look(used, state, output, unbiased):
        uses, squares = state
        return (uses + 1, squares + jnp.sum(output**2)), output

    start = jnp.zeros((), jnp.int32), jnp.zeros(())
    outputs, states = jax.jit(lambda values: measure(traced.analysis, values, start, look))(values)
    np.testing.assert_allclose(outputs[0], function(params, X), rtol=1e-5, atol=1e-6)
    uses = {w: jnp.max(state[0]) for w, state in states.items()}
    assert [int(uses[w]) for w in traced.analysis.weights] == [2 if name == "shared" else 1 for _ in layers_of(traced)]
    if name == "chain":
        first, second = (float(states[w][1]) for w in traced.analysis.weights)
        hidden = np.asarray(X) @ np.asarray(params["a"]) + np.asarray(params["b"])
        assert first == pytest.approx((hidden**2).sum(), rel=1e-5)
        assert second == pytest.approx(((np.maximum(hidden, 0) @ np.asarray(params["c"])) ** 2).sum(), rel=1e-5)


class Doubling:
    """A visitor that multiplies every weight by 2."""

    def initial(self, weight):
        return jnp.zeros(())

    def is_final(self, state):
        return False

    def scale(self, state):
        return jnp.float32(2)

    def use(self, used, state, u, bias):
        return jnp.ones(()), 2 * u if bias is None else 2 * u + bias


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_flows_on_is_what_the_scaled_weights_give(name):
    function, params, traced, values = read(name)
    factors = dict.fromkeys(traced.analysis.weights, ())
    evaluation = Evaluation(traced.analysis, Doubling(), factors)
    states = {w: jnp.zeros(tuple(f.size for f in w.stack)) for w in traced.analysis.weights}
    outputs, states = jax.jit(lambda values: evaluation.run(values, states))(values)
    doubled = {name: x if name == "b" else 2 * x for name, x in params.items()}
    np.testing.assert_allclose(outputs[0], function(doubled, X), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(states, jax.tree.map(jnp.ones_like, states))


def test_the_value_of_one_variable_needs_no_more_than_its_equations():
    _, params, traced, values = read("chain")
    program = traced.analysis.program
    first = next(e for e in program.equations if e.outputs[0].shape == (16, 6))
    np.testing.assert_allclose(value_of(program, first.outputs[0], values), X @ params["a"], rtol=1e-5)
