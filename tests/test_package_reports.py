"""Reports can be saved and shown anywhere: they pickle, and print inside a trace."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxinit
from jaxinit import _program

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (16, 6))


def apply_fn(params, x):
    x = jax.nn.sigmoid(x @ params["w1"] + params["b1"][None])
    return jax.nn.gelu(x @ params["w2"]) @ params["w3"]


def _params():
    keys = jax.random.split(KEY, 3)
    shapes = {"w1": (6, 8), "w2": (8, 8), "w3": (8, 4)}
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)} | {"b1": jnp.zeros(8)}


def _study():
    def loss_fn(params, batch):
        return jnp.mean((batch @ params["w"]) ** 2)

    shapes = {"w": jax.ShapeDtypeStruct((6, 2), jnp.float32)}
    options = {"optimizer": optax.sgd, "learning_rates": [0.1], "steps": 2, "seeds": 2, "progress": False}
    return jaxinit.study(["auto"], shapes, loss_fn, X, **options)


def _last(pair):
    return pair[1]


REPORTS = {
    "trace_layers": lambda params: jaxinit.trace_layers(params, apply_fn, X),
    "lsuv": lambda params: _last(jaxinit.lsuv(params, apply_fn, X, return_report=True)),
    "initialize": lambda params: _last(jaxinit.initialize(KEY, params, apply_fn, X, return_report=True)),
    "diagnose": lambda params: jaxinit.diagnose(params, apply_fn, X),
    "rbm_pretrain": lambda params: _last(
        jaxinit.rbm_pretrain(KEY, params, apply_fn, X, steps=2, minibatch=8, return_report=True)
    ),
}
OTHERS = {
    "study": lambda params: _study(),
    "recommend": lambda params: jaxinit.recommend(params, apply_fn, X),
    "recommend by description": lambda params: jaxinit.recommend("relu"),
}


def _same(a, b):
    if isinstance(a, jaxinit.Layers):
        return a == b
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (np.ndarray, jax.Array)):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=jnp.issubdtype(a.dtype, jnp.floating))
    return a == b


@pytest.mark.parametrize("name", [*REPORTS, *OTHERS])
def test_reports_pickle_to_equal_ones_that_print_alike(name):
    report = (REPORTS | OTHERS)[name](_params())
    again = pickle.loads(pickle.dumps(report))
    assert _same(again, report)
    assert str(again) == str(report)
    assert repr(again) == repr(report)


@pytest.mark.parametrize("name", REPORTS)
def test_reports_print_in_the_midst_of_a_trace(name):
    shown = {}

    @jax.jit
    def traced(params):
        report = REPORTS[name](params)
        shown["text"] = str(report)
        shown["html"] = report._repr_html_()
        return report

    report = traced(_params())
    assert "w1" in shown["text"]
    assert "w1" in shown["html"]
    has_numbers = bool(jax.tree.leaves(report))
    assert ("traced" in shown["text"]) == has_numbers
    assert "traced" not in str(report)


@pytest.mark.parametrize(
    "activation",
    [jnp.tanh, jax.nn.gelu, jax.nn.selu, lambda x: jax.nn.silu(3.5 * x), lambda x: jnp.where(x > 0, x, 0.3 * x)],
)
def test_the_activation_of_a_pickled_layer_is_the_same_function(activation):
    params = _params()
    layers = jaxinit.trace_layers(params, lambda p, x: activation(x @ p["w1"]) @ p["w2"], X)
    again = pickle.loads(pickle.dumps(layers))
    assert again == layers
    assert hash(again) == hash(layers)
    points = jnp.linspace(-3, 3, 20)
    np.testing.assert_array_equal(again[0].activation(points), layers[0].activation(points))
    assert jaxinit.gain(again[0].activation) == jaxinit.gain(layers[0].activation)


def test_of_an_activation_that_cannot_be_pickled_the_name_is(monkeypatch):
    layers = jaxinit.trace_layers(_params(), apply_fn, X)

    def unknown(primitive):
        raise LookupError(primitive)

    monkeypatch.setattr(_program._primitives, "name_of", unknown)
    again = pickle.loads(pickle.dumps(layers))
    assert str(again) == str(layers)
    assert again.to_dict() == layers.to_dict()
    with pytest.raises(TypeError, match="was pickled; trace the layers again"):
        again[0].activation(X)
