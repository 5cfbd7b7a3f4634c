"""`recommend`: each entry's claim on networks of thirty layers, and what is read from programs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import encoder_decoder, residual, run_cell, struct
from helpers.models import MODELS

import jaxinit
from jaxinit import recommend, schemes

KEY = jax.random.key(0)
DEPTH, WIDTH = 30, 256


def variances(activation, start, scale, depth=DEPTH):
    """Mean squares of pre-activations and of the gradients there, layer by layer, relative to the first and the last.

    Means over eight seeds: at width 256 one seed of a rectified network wanders by a factor of two in thirty layers.
    """
    x = scale * jax.random.normal(KEY, (64, WIDTH))

    def one_seed(key):
        kernels = jax.vmap(lambda key: start(key, (WIDTH, WIDTH), jnp.float32))(jax.random.split(key, depth))

        def forward(offsets):
            def layer(h, inputs):
                kernel, offset = inputs
                z = h @ kernel + offset
                return activation(z), jnp.mean(z**2)

            out, found = jax.lax.scan(layer, x, (kernels, offsets))
            return jnp.sum(out * jax.random.normal(jax.random.key(1), out.shape)), found

        gradients, signals = jax.grad(forward, has_aux=True)(jnp.zeros((depth, 64, WIDTH)))
        return signals, jnp.mean(gradients**2, (1, 2))

    signals, back = (x.mean(0) for x in jax.jit(jax.vmap(one_seed))(jax.random.split(KEY, 8)))
    return np.asarray(signals / signals[0]), np.asarray(back / back[-1])


@pytest.mark.parametrize(
    ("name", "scale", "depth"),
    [
        ("relu", 1.0, 30),
        ("leaky_relu", 1.0, 30),
        ("linear", 1.0, 30),
        ("tanh", 0.05, 30),  # where it is linear: further out signals shrink whatever the start
        ("hard_tanh", 0.1, 30),
        ("soft_sign", 0.005, 30),
        # Unit variance is kept, but gradients grow or shrink by some per cent a layer.
        ("selu", 1.0, 8),
        ("elu", 1.0, 8),
        ("gelu", 1.0, 4),
        ("silu", 1.0, 3),
    ],
)
def test_signals_and_gradients_keep_their_size(name, scale, depth):
    start = recommend(name).start
    for found in variances(getattr(jax.nn, name, lambda x: x), start, scale, depth):
        assert found.min() > 0.5
        assert found.max() < 2


def test_the_claim_fails_for_other_starts():
    assert variances(jax.nn.relu, jaxinit.lecun_normal(), 1.0)[0].min() < 0.01
    assert variances(jnp.tanh, jaxinit.he_normal(), 0.05)[0].max() > 2
    assert variances(jax.nn.gelu, jaxinit.lecun_normal(), 1.0)[0].min() < 0.5


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_deep_plain_networks_keep_their_gradients(activation):
    found = recommend(activation, depth=100)
    assert isinstance(found.start, schemes.Scheme)
    function = getattr(jax.nn, activation)

    def apply_fn(p, x):
        x = function(x @ p["in"])
        return jax.lax.scan(lambda x, w: (function(x @ w), None), x, p["hidden"])[0] @ p["out"]

    params = {"in": struct(32, 64), "hidden": struct(98, 64, 64), "out": struct(64, 32)}
    x = 0.1 * jax.random.normal(KEY, (64, 32))
    new = jaxinit.initialize(KEY, params, apply_fn, x, found.start)
    report = jaxinit.diagnose(new, apply_fn, x, lanczos_steps=0)
    assert not {f.fault for f in report.findings()} & {"exploding gradient", "vanishing gradient", "exploding signal"}


def test_by_architecture():
    cases = {
        ("relu", "cnn"): jaxinit.he_normal(),
        ("selu", "mlp"): jaxinit.lecun_normal(),
        (None, "self_normalizing"): jaxinit.lecun_normal(),
        (None, "autoencoder"): jaxinit.glorot_uniform(),
        (None, "sparse"): jaxinit.sparse(15, 1.0),
        (None, "rnn"): schemes.recurrent(),
        ("relu", "rnn"): schemes.irnn(),
        (None, None): schemes.auto(),
    }
    for (activation, architecture), start in cases.items():
        found = recommend(activation, architecture)
        assert found.start == start
        assert found.reason
        assert found.source
        assert repr(start) in str(found)
    assert recommend(architecture="residual", normalized=False).start == schemes.fixup()
    assert recommend(architecture="residual", normalized=True).start == schemes.auto()
    assert recommend(architecture="transformer", normalized=False).start == schemes.t_fixup()
    assert recommend(architecture="transformer").start == schemes.gpt2()
    assert recommend("relu", depth=20).start == jaxinit.he_normal()
    assert recommend("relu", depth=200, normalized=True).start == jaxinit.he_normal()


def test_any_function_gets_its_own_gain():
    def cubic(x):
        return x + 0.1 * x**3

    found = recommend(cubic)
    assert found.start.scale == pytest.approx(jaxinit.gain(cubic) ** 2)
    assert "cubic has the gain" in found.reason
    assert "normalize or add skips" in recommend("gelu", depth=100).reason


def test_bad_input():
    with pytest.raises(ValueError, match="architecture must be"):
        recommend(architecture="perceptron")
    with pytest.raises(ValueError, match="no activation is called"):
        recommend("rele")
    with pytest.raises(ValueError, match="at least 1"):
        recommend("relu", depth=0)
    with pytest.raises(TypeError, match="depth must be a real number, got 'deep'"):
        recommend("relu", depth="deep")
    with pytest.raises(TypeError, match="normalized must be True or False"):
        recommend("relu", normalized="batch")
    with pytest.raises(TypeError, match="must be a name such as 'relu'"):
        recommend(3)
    params, batch = {"w": jnp.eye(4)}, jnp.ones((2, 4))
    program = r"takes \(params, apply_fn, batch\), got \(dict, "
    with pytest.raises(TypeError, match=program + r"NoneType, NoneType\); to go by a description"):
        recommend(params)
    with pytest.raises(TypeError, match=program + "ArrayImpl, NoneType"):
        recommend(params, batch)
    with pytest.raises(TypeError, match=program + "function, NoneType"):
        recommend(params, lambda p, x: x @ p["w"])
    with pytest.raises(TypeError, match=program + "ArrayImpl, function"):
        recommend(params, batch, lambda p, x: x @ p["w"])
    with pytest.raises(ValueError, match="architecture must be one of 'mlp'"):
        recommend("relu", batch)


@pytest.mark.parametrize(
    ("model", "start"),
    [
        (lambda: residual(3), schemes.fixup()),
        (lambda: encoder_decoder(2), schemes.t_fixup()),
        (MODELS["linen_decoder"], schemes.gpt2()),
        (MODELS["linen_lstm"], schemes.recurrent()),
        (MODELS["linen_mlp"], schemes.auto()),
        (MODELS["linen_resnet"], schemes.auto()),
    ],
)
def test_programs_say_what_they_need(model, start):
    found = recommend(*model())
    assert found.start == start
    assert len(found.rows) >= 3


def test_the_table_tells_what_is_there_and_what_would_be():
    params = {"a": jax.random.normal(KEY, (64, 64)), "b": jnp.ones((64, 8)) / 8}

    def apply_fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    found = recommend(params, apply_fn, struct(4, 64))
    first, second = found.rows
    assert first.now == pytest.approx(64, rel=0.1)
    assert first.then == pytest.approx(1, rel=0.1)
    assert second.now == pytest.approx(0, abs=1e-6)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["activation"] == "relu"
    assert "inputs of mean square 0.5" in str(found)
    assert "<pre>" in found._repr_html_()
    shapes = recommend(jax.eval_shape(lambda: params), apply_fn, struct(4, 64))
    assert shapes.rows[0].now is None


def test_cells_without_gates_are_recurrent_too():
    import flax.linen as nn

    assert recommend(*run_cell(nn.SimpleCell(7))).start == schemes.recurrent()
