"""A second equal call compiles nothing, through every adapter. Counted, not timed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers.compilations import compilations
from helpers.studies import fresh, loss_fn, study
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit
import jaxinit.linen
import jaxinit.nnx

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 12))
PARAMS = [0.3 * jax.random.normal(key, (12, 12)) for key in jax.random.split(KEY, 3)]


def net(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


METHODS = {
    "lsuv": lambda params, f, x: jaxinit.lsuv(params, f, x),
    "lsuv, with a report": lambda params, f, x: jaxinit.lsuv(params, f, x, return_report=True, center=True),
    "lsuv, by scan": lambda params, f, x: jaxinit.lsuv(params, f, x, method="scan"),
    "diagnose": lambda params, f, x: jaxinit.diagnose(params, f, x),
    "initialize": lambda params, f, x: jaxinit.initialize(KEY, params, f, x),
    "initialize, overridden": lambda params, f, x: jaxinit.initialize(
        KEY, params, f, x, overrides={"0": jaxinit.zeros}
    ),
    "trace_layers": lambda params, f, x: len(jaxinit.trace_layers(params, f, x)),
    "recommend": lambda params, f, x: jaxinit.recommend(params, f, x),
}


def assert_compiled_once(call):
    jax.block_until_ready(jax.tree.leaves(call()))
    with compilations() as count:
        jax.block_until_ready(jax.tree.leaves(call()))
    assert not count


@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_compiles_nothing(method):
    assert_compiled_once(lambda: METHODS[method](PARAMS, net, X))


@pytest.mark.parametrize("method", METHODS)
def test_a_new_function_over_the_same_model_compiles_nothing(method):
    assert_compiled_once(lambda: METHODS[method](PARAMS, lambda params, x: net(params, x), X))


@pytest.mark.parametrize("method", ["lsuv", "diagnose"])
def test_so_it_is_on_several_devices(method):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    assert_compiled_once(lambda: METHODS[method](params, lambda params, x: net(params, x), x))


def test_another_key_compiles_nothing():
    jaxinit.initialize(KEY, PARAMS, net, X)
    with compilations() as count:
        jaxinit.initialize(jax.random.key(3), PARAMS, net, X)
    assert not count


@pytest.mark.parametrize("method", ["lsuv", "diagnose", "initialize", "trace_layers"])
def test_nnx_models(method):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(12, 12, rngs=rngs), nnx.relu, nnx.Linear(12, 4, rngs=rngs))
    call = getattr(jaxinit.nnx, method)
    first = (KEY, model) if method == "initialize" else (model,)
    assert_compiled_once(lambda: call(*first, X))


class WithList(nn.Module):
    """A module that cannot be hashed, since it holds a list."""

    layers: list

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("method", ["lsuv", "diagnose", "initialize", "trace_layers"])
@pytest.mark.parametrize("make", [nn.Sequential, WithList])
def test_linen_modules_that_do_not_hash(make, method):
    variables = make([nn.Dense(12), nn.relu, nn.Dense(4)]).init(KEY, X)
    call = getattr(jaxinit.linen, method)
    first = (KEY,) if method == "initialize" else ()
    assert_compiled_once(lambda: call(*first, make([nn.Dense(12), nn.relu, nn.Dense(4)]), variables, X))


@pytest.mark.parametrize("init", [jaxinit.he_normal(), jaxinit.orthogonal(), jaxinit.zeros])
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_sharded_draws(init, axes):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(axes,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    assert_compiled_once(functools.partial(init, KEY, (8, 6), jnp.float32, sharding))


def small_study(**starts):
    """A small study with new functions in every call."""
    return study(starts, seeds=3, metrics_fn=lambda params, data: {"error": loss_fn(params, data)}, metric="loss")


def test_studies():
    assert_compiled_once(lambda: small_study(auto="auto", lsuv=jaxinit.lsuv, mine=lambda key: fresh(key)).losses)


def test_starts_of_equal_shapes_share_the_programs_that_train_them():
    small_study(first=fresh)
    with compilations() as count:
        small_study(second=lambda key: jax.tree.map(lambda x: x[::-1], fresh(key)), third=fresh)
    assert len(count) == 1  # what draws the second
