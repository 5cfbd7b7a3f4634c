"""Initializers are values: equal, hashable, printable, picklable, and data on request."""

import copy
import dataclasses
import json
import pickle
import pickletools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.table import IDS, INITIALIZERS

import jaxinit

NAMESPACE = {name: getattr(jaxinit, name) for name in dir(jaxinit)} | {"array": np.array}


@pytest.mark.parametrize(("init", "shape"), INITIALIZERS, ids=IDS)
class TestEveryInitializer:
    def test_pickles_and_copies_to_an_equal_value(self, init, shape):
        for other in (pickle.loads(pickle.dumps(init)), copy.copy(init), copy.deepcopy(init)):
            assert other == init
            assert hash(other) == hash(init)

    def test_prints_as_the_call_that_makes_it(self, init, shape):
        assert eval(repr(init), NAMESPACE) == init

    def test_goes_through_json_and_back(self, init, shape, key):
        again = jaxinit.from_config(json.loads(json.dumps(init.to_config())))
        assert again == init
        np.testing.assert_array_equal(again(key, shape), init(key, shape))

    def test_is_frozen_true_and_unequal_to_others(self, init, shape):
        assert bool(init)
        with pytest.raises(dataclasses.FrozenInstanceError):
            init.dtype = jnp.float32
        assert sum(init == other for other, _ in INITIALIZERS) == 1
        assert init != repr(init)


def test_spelling_does_not_matter():
    assert jaxinit.normal(0.1) == jaxinit.normal(stddev=np.float64(0.1))
    assert jaxinit.he_uniform(in_axis=[0, 1]) == jaxinit.he_uniform(in_axis=(np.int64(0), 1))
    assert hash(jaxinit.he_uniform(in_axis=[0, 1])) == hash(jaxinit.he_uniform(in_axis=(0, 1)))
    assert jaxinit.normal(dtype=jnp.bfloat16) == jaxinit.normal(dtype="bfloat16")
    assert jaxinit.random_walk(jax.nn.relu) == jaxinit.random_walk("relu")
    assert jaxinit.xavier_uniform() == jaxinit.glorot_uniform()
    assert jaxinit.zeros == jaxinit.zeros_init()
    assert jaxinit.constant([1.0, 2.0]) == jaxinit.constant(np.array([1.0, 2.0]))


def test_a_wide_dtype_is_not_the_default():
    assert jaxinit.normal(dtype="float64") != jaxinit.normal()
    assert repr(jaxinit.normal(dtype="float64")) == "normal(dtype='float64')"


def test_aliases_are_names_in_configurations_too():
    assert jaxinit.from_config({"name": "kaiming_normal"}) == jaxinit.he_normal()
    assert jaxinit.from_config({"name": "xavier_uniform"}) == jaxinit.glorot_uniform()


def test_what_cannot_be_read_back_is_not_written():
    init = jaxinit.zeros
    for _ in range(60):
        init = jaxinit.scaled(init, 1.0)
    assert jaxinit.from_config(init.to_config()) == init
    for _ in range(10):
        init = jaxinit.scaled(init, 1.0)
    with pytest.raises(ValueError, match="nest at most"):
        init.to_config()


def test_a_constant_keeps_its_own_copy(key):
    value = np.array([1.0, 2.0])
    init = jaxinit.constant(value)
    value[0] = 5.0
    np.testing.assert_array_equal(init(key, (2,)), [1.0, 2.0])


def test_a_jax_scalar_serves_everywhere_but_as_a_hash_key(key):
    traced = jax.vmap(lambda stddev: jaxinit.normal(stddev)(key, (5,)))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(traced[0] * 4, traced[1], rtol=1e-6)
    gradient = jax.grad(lambda scale: jaxinit.variance_scaling(scale, "fan_in", "normal")(key, (4, 4)).sum())(2.0)
    assert jnp.isfinite(gradient)
    assert jaxinit.normal(jnp.float32(0.5)) == jaxinit.normal(0.5)
    with pytest.raises(TypeError, match="cannot be hashed; pass a Python number"):
        hash(jaxinit.normal(jnp.float32(0.5)))


def _built_anew(make_init, traces):
    """A jitted function whose Linen module, a static argument, is built anew; an error if it is traced more often."""
    chex.clear_trace_counter()
    forward = chex.assert_max_traces(lambda module, x: module.init(jax.random.key(0), x), n=traces)
    jitted = jax.jit(forward, static_argnums=0)
    for _ in range(3):
        jitted(nn.Dense(4, kernel_init=make_init()), jnp.ones((1, 4)))


def test_a_module_that_is_built_again_does_not_retrace():
    _built_anew(lambda: jaxinit.scaled(jaxinit.he_uniform(), 0.5), 1)
    _built_anew(lambda: jaxinit.with_partitioning(jaxinit.he_uniform(), (None, "model")), 1)
    with pytest.raises(AssertionError, match="traced > 2 times"):
        _built_anew(jax.nn.initializers.he_uniform, 2)  # closures retrace: the count can fail


HOSTILE = [
    ({"name": "os.system"}, ValueError, "no initializer is called"),
    ({"name": "he_norml"}, ValueError, "did you mean 'he_normal'"),
    ({"name": "__import__"}, ValueError, "no initializer is called"),
    ({"name": "Initializer"}, ValueError, "no initializer is called"),
    ({"name": ["normal"]}, TypeError, "'name', a string"),
    ({"stddev": 1.0}, TypeError, "'name', a string"),
    ("normal", TypeError, "a configuration must be a dictionary"),
    ({"name": "normal", "stddev": "0.1"}, TypeError, "stddev must be a real number"),
    ({"name": "normal", "stddev": float("nan")}, ValueError, "stddev must be a finite number"),
    ({"name": "normal", "stddev": {"name": "normal"}}, TypeError, "stddev must be a real number"),
    ({"name": "normal", "stddev": {"evil": 1}}, TypeError, "hold numbers, names"),
    ({"name": "normal", "stddev": object()}, TypeError, "hold numbers, names"),
    ({"name": "normal", "dtype": "no_such"}, TypeError, "dtype must be a dtype"),
    ({"name": "normal", "dtype": 3}, TypeError, "dtype must be a dtype"),
    ({"name": "normal", "__class__": "x"}, ValueError, "has the hyperparameters"),
    ({"name": "he_normal", "in_axis": "0"}, TypeError, "in_axis must be an integer"),
    ({"name": "he_normal", "in_axis": [[0]]}, TypeError, "in_axis must be an integer"),
    ({"name": "he_normal", "feature_group_count": 1.5}, TypeError, "feature_group_count must be an integer"),
    ({"name": "he_normal", "lhs_dilation": "x"}, TypeError, "lhs_dilation must be"),
    ({"name": "variance_scaling", "scale": 1.0}, ValueError, "lacks"),
    ({"name": "scaled", "init": 3, "factor": 1.0}, TypeError, "init must be an initializer"),
    ({"name": "scaled", "init": {"name": "evil"}, "factor": 1.0}, ValueError, "no initializer"),
    ({"name": "random_walk", "activation": "__import__"}, ValueError, "no activation is called"),
    ({"name": "constant", "value": {"array": [[1], [1, 2]], "dtype": "float32"}}, TypeError, "nested lists"),
    ({"name": "constant", "value": {"array": ["x"], "dtype": "O"}}, TypeError, "nested lists"),
    ({"name": "constant", "value": {"array": [1], "dtype": ["f4"]}}, TypeError, "nested lists"),
    ({"name": "lstm_bias", "gates": 3}, ValueError, "gates must name each gate"),
]


@pytest.mark.parametrize(("config", "error", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_configurations_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        jaxinit.from_config(config)


def test_deep_configurations_are_refused():
    config = {"name": "zeros_init"}
    for _ in range(500):
        config = {"name": "scaled", "init": config, "factor": 1.0}
    with pytest.raises(ValueError, match="nest at most"):
        jaxinit.from_config(config)
    nested = [0]
    for _ in range(500):
        nested = [nested]
    with pytest.raises(ValueError, match="nest at most"):
        jaxinit.from_config({"name": "he_normal", "in_axis": nested})


def test_what_is_no_data_gives_no_configuration():
    with pytest.raises(TypeError, match="pickle the initializer"):
        jaxinit.scaled(jax.nn.initializers.normal(), 2.0).to_config()
    with pytest.raises(TypeError, match="pickle the initializer"):
        jaxinit.random_walk(lambda x: jnp.where(x > 0, x, 0.5 * x)).to_config()
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda s: jaxinit.normal(s).to_config())(1.0)


def names_in(pickled):
    """Every string in a pickle: names of modules, classes and fields."""
    return {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}


@pytest.mark.parametrize(
    ("value", "path"),
    [(jaxinit.he_normal(), "jaxinit:he_normal"), (jaxinit.schemes.mup(), "jaxinit.schemes:mup")],
    ids=["initializer", "scheme"],
)
def test_pickles_name_public_paths(value, path):
    pickled = pickle.dumps(value)
    assert pickle.loads(pickled) == value
    assert path in names_in(pickled)
    private = {name for name in names_in(pickled) if name.startswith("jaxinit._")}
    assert private == {"jaxinit._public"}


class heavier(jaxinit.schemes.gpt2):
    """A user's own class, of which the package has no public name."""


def test_a_class_of_ones_own_pickles_by_its_own_module():
    again = pickle.loads(pickle.dumps(heavier(stddev=0.5)))
    assert type(again) is heavier
    assert again == heavier(stddev=0.5)
