"""What a function does again and again becomes calls of one function; values and derivatives stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from jaxinit import _program as ir

TIMES = 6
TABLE = np.arange(8.0, dtype=np.float32) / 8


def weights(count):
    return [{"w": jax.random.normal(key, (8, 8)) / 3, "b": jnp.ones(8) / 9} for key in keys(count)]


def keys(count):
    return jax.random.split(jax.random.key(3), count)


def layer(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"][None])


def equal_layers(params, x):
    for p in params:
        x = layer(p, x)
    return x


def two_kinds(params, x):
    for p in params[:TIMES]:
        x = layer(p, x)
    for p in params[TIMES:]:
        x = x + jnp.tanh(layer(p, x)) * 0.5
    return x


def other_numbers(params, x):
    for i, p in enumerate(params):
        x = x + layer(p, x) * (0.5 if i < TIMES else 0.25)
    return x


def crossing(params, x):
    """The layers do the same, but take what the last one gave or what the one before it gave."""
    before = x
    for i, p in enumerate(params):
        before, x = x, layer(p, x) - layer(p, before if i % 3 else x)
    return x


def turned_around(params, x):
    for i, p in enumerate(params):
        a, b = layer(p, x), jnp.sin(x)
        x = a - b if i < TIMES else b - a
    return x


def all_results(params, x):
    found = []
    for p in params:
        x = layer(p, x) + TABLE[None]
        found.append({"mean": x.mean(), "first": x[0]})
    return found, x


def noise(params, x):
    for p, key in zip(params, keys(len(params)), strict=True):
        x = layer(p, x) * jax.random.normal(key, x.shape)
    return x


def loops(params, x):
    for p in params:
        x = jax.lax.scan(lambda c, _: (jnp.tanh(c @ p["w"]), c.sum()), x, None, length=2)[0]  # noqa: B023
    return x


def nothing_again(params, x):
    return jnp.sort(layer(params[0], x)), params[0]["b"], 3.0


FUNCTIONS = [equal_layers, two_kinds, other_numbers, crossing, turned_around, all_results, noise, loops, nothing_again]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_and_derivatives_stay(function):
    params, x = weights(2 * TIMES), jax.random.normal(jax.random.key(1), (4, 8))

    def numbers(function):
        def total(params, x):
            results = jax.tree.leaves(function(params, x))
            return sum(jnp.sum(jnp.cos(y)) for y in results), function(params, x)

        def both(params, x):
            return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, x)

        return jax.jit(both)(params, x)

    found, expected = numbers(ir.repeated(function, params, x)), numbers(function)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("function", "kinds"), [(equal_layers, 1), (two_kinds, 2), (all_results, 1), (loops, 1)])
def test_each_kind_of_layer_is_one_function(function, kinds):
    def called(layers):
        params, x = weights(layers), jnp.ones((4, 8))
        equations = jax.make_jaxpr(ir.repeated(function, params, x))(params, x).jaxpr.eqns
        calls = [e.params["jaxpr"] for e in equations if e.params.get("name") == "run"]
        return len({id(jaxpr) for jaxpr in calls}), len(equations), calls

    for layers in (2 * TIMES, 4 * TIMES):
        count, equations, calls = called(layers)
        assert count == kinds
        assert len(calls) >= layers - 3 * kinds
        assert equations <= layers + 30


def test_equal_blocks_are_measured_once():
    def block(p, x):
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return x + jax.nn.gelu(y @ p["w"] + p["b"][None]) @ p["v"]

    def equations(blocks):
        one = {"w": jnp.ones((8, 16)), "b": jnp.zeros(16), "v": jnp.ones((16, 8))}

        def apply_fn(params, x):
            for p in params:
                x = block(p, x)
            return x

        measured = jax.make_jaxpr(lambda p, x: jaxinit.diagnose(p, apply_fn, x))
        return len(measured([one] * blocks, jnp.ones((4, 8))).jaxpr.eqns)

    assert equations(12) - equations(8) <= 4 * 12
