"""Nothing outlives a user's function: neither the arrays it closes over nor the programs compiled for it."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from jaxinit._caches import kept_with_functions, weakly

X = jax.random.normal(jax.random.key(1), (32, 6))


def _model():
    """A function that closes over an array, its parameters, and weak references to both."""
    constant = jnp.arange(6.0) + 1

    def apply_fn(params, x):
        return jnp.tanh((x * constant[None]) @ params["w1"]) @ params["w2"]

    k1, k2 = jax.random.split(jax.random.key(0))
    params = {"w1": jax.random.normal(k1, (6, 8)), "w2": jax.random.normal(k2, (8, 4))}
    return params, apply_fn, (weakref.ref(apply_fn), weakref.ref(constant))


def _loss(output, batch):
    return jnp.mean(output**2)


CALLS = {
    "trace_layers": lambda params, f: str(jaxinit.trace_layers(params, f, X)),
    "lsuv": lambda params, f: jaxinit.lsuv(params, f, X),
    "lsuv where": lambda params, f: jaxinit.lsuv(params, f, X, where=lambda layer, f=f: layer.path == "w1"),
    "initialize": lambda params, f: jaxinit.initialize(jax.random.key(0), params, f, X),
    "diagnose": lambda params, f: str(jaxinit.diagnose(params, f, X, loss_fn=_loss, lanczos_steps=2)),
    "recommend": lambda params, f: str(jaxinit.recommend(params, f, X)),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_a_function_closes_over_dies_with_it(call):
    params, apply_fn, references = _model()
    CALLS[call](params, apply_fn)
    assert all(reference() is not None for reference in references)
    del params, apply_fn
    gc.collect()
    assert all(reference() is None for reference in references)


def _with_array(make, array):
    """A function made of an array, and weak references to both."""
    function = make(array)
    return function, [weakref.ref(function), weakref.ref(array)]


def test_a_loss_dies_too():
    params, apply_fn, _ = _model()
    loss_fn, references = _with_array(
        lambda target: lambda output, batch: jnp.mean((output - target) ** 2), jnp.zeros((32, 4))
    )
    jaxinit.diagnose(params, apply_fn, X, loss_fn=loss_fn, lanczos_steps=0)
    del loss_fn
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("compute", [jaxinit.gain, jaxinit.critical, lambda f: jaxinit.random_walk(f, 5)(KEY, (8, 8))])
def test_an_activation_dies_with_what_it_closes_over(compute):
    activation, references = _with_array(
        lambda slope: lambda x: jnp.tanh(x) + slope.astype(x.dtype) * x, jnp.float32(0.3)
    )
    compute(activation)
    del activation
    gc.collect()
    assert [reference() for reference in references] == [None, None]


KEY = jax.random.key(0)


def test_clear_caches_forgets_what_is_still_there():
    params, apply_fn, _ = _model()
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return apply_fn(params, x)

    jaxinit.lsuv(params, counted, X)
    once = traces
    assert once > 0
    jaxinit.lsuv(params, counted, X)
    assert traces == once
    jaxinit.clear_caches()
    jaxinit.lsuv(params, counted, X)
    assert traces > once


def test_the_method_of_a_module_is_compiled_once_and_dies_with_the_module():
    traces = []

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            return nn.Dense(3)(x)

    net = Net()
    params = net.init(KEY, X)
    jaxinit.lsuv(params, net.apply, X)
    once = len(traces)
    jaxinit.lsuv(params, net.apply, X)
    assert len(traces) == once
    reference = weakref.ref(net)
    del net
    gc.collect()
    assert reference() is None


def test_entries_are_found_by_identity_by_value_and_in_order_of_use():
    made = []

    @kept_with_functions(2)
    def make(f, number):
        made.append(number)
        return len(made)

    class Value:
        """A function that is built anew at every call, and compares by value."""

        def __eq__(self, other):
            return isinstance(other, Value)

        def __hash__(self):
            return 1

    def one(x):
        return x

    def other(x):
        return x

    assert (make(one, 1), make(one, 1), make(other, 1), make(one, 1)) == (1, 1, 2, 1)
    assert (make(Value(), 1), make(Value(), 1)) == (3, 3)  # which drops the entry of `other`
    assert (make(one, 1), make(other, 1)) == (1, 4)
    # What cannot be hashed is made anew, and drops nothing.
    assert (make([], 1), make([], 1), make(one, 1), make(other, 1)) == (5, 6, 1, 4)


def test_weakly_gives_back_functions_methods_and_values():
    class Holder:
        def double(self, x):
            return 2 * x

    holder = Holder()
    get = weakly(holder.double)
    gc.collect()
    assert get()(4) == 8
    assert weakly((1, 2))() == (1, 2)
    assert weakly(None)() is None
    np.testing.assert_array_equal(weakly(jnp.tanh)()(np.zeros(2, np.float32)), np.zeros(2))
