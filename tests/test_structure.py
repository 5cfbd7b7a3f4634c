"""Attention, recurrent cells and multipliers of branches, as the program shows them, whatever the framework."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import MODELS

from jaxinit import trace_layers
from jaxinit._reading._trace import trace

KEY = jax.random.key(0)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def weights(params, apply_fn, batch):
    """Path and portions of every weight that has some."""
    traced = trace(params, apply_fn, batch)
    return {traced.paths[unit.leaf]: portions for unit, portions in traced.structure.weights.items()}


def attend(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)


def rotated(x):
    """Rotary positions, cut and joined along the features."""
    a, b = jnp.split(x, 2, axis=-1)
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def thirds(z):
    return [part.reshape(2, 5, 2, 4) for part in jnp.split(z, 3, axis=-1)]


def by_axis(z):
    z = z.reshape(2, 5, 3, 2, 4)
    return z[:, :, 0], z[:, :, 1], z[:, :, 2]


def unpacked(z):
    return tuple(jnp.moveaxis(z.reshape(2, 5, 3, 2, 4), 2, 0))


def by_head(z):
    return jnp.split(z.reshape(2, 5, 2, 12), 3, axis=-1)


def normalised_and_rotated(z):
    q, k, v = thirds(z)
    q, k = (rotated(x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))) for x in (q, k))
    return q, k, v


@pytest.mark.parametrize(
    ("cut", "query", "value"),
    [
        (thirds, range(8), range(16, 24)),
        (by_axis, range(8), range(16, 24)),
        (unpacked, range(8), range(16, 24)),
        (by_head, [0, 1, 2, 3, 12, 13, 14, 15], [8, 9, 10, 11, 20, 21, 22, 23]),
        (normalised_and_rotated, range(8), range(16, 24)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_fused_projection_is_seen_as_queries_keys_and_values(cut, query, value, transposed):
    def apply_fn(p, x):
        kernel = p["qkv"].T if transposed else p["qkv"]
        return attend(*cut(x @ kernel + p["b"])).reshape(2, 5, 8) @ p["out"]

    params = {"qkv": struct(24, 8) if transposed else struct(8, 24), "b": struct(24), "out": struct(8, 8)}
    layers = trace_layers(params, apply_fn, struct(2, 5, 8))
    assert layers["qkv"].role == "query, key, value"
    assert layers["out"].role == "output"
    found = {portion.role: portion.places for portion in weights(params, apply_fn, struct(2, 5, 8))["qkv"]}
    assert found["query"] == tuple(query)
    assert found["value"] == tuple(value)


def test_the_key_is_what_the_probabilities_sum_over_whatever_the_order():
    def apply_fn(p, x):
        q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
        scores = jnp.einsum("bsd,btd->bst", k, q)  # the key first, and softmax along its positions
        return jnp.einsum("bst,bsd->btd", jax.nn.softmax(scores, axis=1), v) @ p["o"]

    params = {name: struct(8, 8) for name in "qkvo"}
    roles = {layer.path: layer.role for layer in trace_layers(params, apply_fn, struct(2, 5, 8))}
    assert roles == {"q": "query", "k": "key", "v": "value", "o": "output"}


@pytest.mark.parametrize("name", ["linen_vit", "linen_decoder", "equinox_attention", "plain_fused_attention"])
def test_attention_is_found_in_every_framework(name):
    params, apply_fn, batch = MODELS[name]()
    roles = [layer.role for layer in trace_layers(params, apply_fn, batch)]
    assert {"query", "key", "value", "output"} <= set(roles)


def test_products_without_a_softmax_are_no_attention():
    def apply_fn(p, x):
        return jnp.einsum("bst,btd->bsd", jnp.einsum("bsd,btd->bst", x @ p["q"], x @ p["k"]), x @ p["v"])

    assert all(x.role is None for x in trace_layers({n: struct(8, 8) for n in "qkv"}, apply_fn, struct(2, 5, 8)))


def encoder_decoder(blocks=3, d=8, stacked=False):
    """Two stacks without normalization; the decoder attends to the encoder's output in every block."""

    def sublayer(p, x, memory):
        q, k, v = x @ p["q"], memory @ p["k"], memory @ p["v"]
        return x + attend(*(z.reshape(2, -1, 2, d // 2) for z in (q, k, v))).reshape(x.shape) @ p["o"]

    def encode(x, p):
        x = sublayer(p["self"], x, x)
        return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

    def apply_fn(params, batch):
        source, target = params["embed"][batch[0]], params["embed"][batch[1]]

        def decode(x, p):
            x = sublayer(p["cross"], sublayer(p["self"], x, x), memory)
            return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

        if stacked:
            memory = jax.lax.scan(encode, source, params["encoder"])[0]
            return jax.lax.scan(decode, target, params["decoder"])[0] @ params["out"]
        memory = source
        for p in params["encoder"]:
            memory = encode(memory, p)[0]
        for p in params["decoder"]:
            target = decode(target, p)[0]
        return target @ params["out"]

    lead = (blocks,) if stacked else ()
    attention = {n: struct(*lead, d, d) for n in "qkvo"}
    block = {"self": attention, "up": struct(*lead, d, 4 * d), "down": struct(*lead, 4 * d, d)}
    decoder = {**block, "cross": attention}
    params = {
        "embed": struct(20, d),
        "encoder": block if stacked else [block] * blocks,
        "decoder": decoder if stacked else [decoder] * blocks,
        "out": struct(d, 20),
    }
    return params, apply_fn, (jnp.zeros((2, 5), int), jnp.zeros((2, 4), int))


@pytest.mark.parametrize("stacked", [False, True])
def test_encoder_and_decoder_are_told_apart_by_cross_attention(stacked):
    traced = trace(*encoder_decoder(stacked=stacked))
    structure = traced.structure
    inside = {traced.paths[u.leaf] for u in traced.analysis.units if u.sites[0] in structure.encoder}
    assert inside == {p for p in traced.paths if p.startswith("encoder")} | {"embed"}
    assert sum(a.cross for a in structure.attentions) == (1 if stacked else 3)


def run_cell(cell):
    module, x = nn.RNN(cell), jnp.ones((2, 5, 3))
    return jax.eval_shape(module.init, KEY, x), module.apply, x


@pytest.mark.parametrize("cell", [nn.LSTMCell(7), nn.OptimizedLSTMCell(7)])
def test_gates_of_an_lstm(cell):
    params, apply_fn, x = run_cell(cell)
    roles = {layer.path.split("/")[-2]: layer.role for layer in trace_layers(params, apply_fn, x)}
    assert {name for name, role in roles.items() if role == "forget"} == {"if", "hf"}
    assert {name for name, role in roles.items() if role == "input"} == {"ii", "hi"}
    found = weights(params, apply_fn, x)
    state = {path.split("/")[-2] for path, (portion,) in found.items() if portion.state_rows == (0, 7)}
    assert state == {"hi", "hf", "hg", "ho"}


@pytest.mark.parametrize(("cell", "gate"), [(nn.GRUCell(7), "z"), (nn.MGUCell(7), "f"), (nn.SimpleCell(7), None)])
def test_update_gates_keep_the_state(cell, gate):
    params, apply_fn, x = run_cell(cell)
    roles = {layer.path.split("/")[-2]: layer.role for layer in trace_layers(params, apply_fn, x)}
    assert {name for name, role in roles.items() if role} == ({f"i{gate}", f"h{gate}"} if gate else set())


def equinox_lstm():
    cell = eqx.nn.LSTMCell(3, 7, key=KEY)
    params, static = eqx.partition(cell, eqx.is_array)

    def apply_fn(params, xs):
        cell = eqx.combine(params, static)
        return jax.lax.scan(lambda state, x: (cell(x, state), None), (jnp.zeros(7), jnp.zeros(7)), xs)[0]

    return params, apply_fn, jnp.ones((5, 3))


def test_fused_gates_are_columns_and_fused_states_are_rows():
    params, apply_fn, x = equinox_lstm()
    found = weights(params, apply_fn, x)
    for path in ("weight_ih", "weight_hh"):
        assert [p.role for p in found[path]] == ["input", "forget", None, None]
        assert [p.places[0] for p in found[path]] == [0, 7, 14, 21]
    traced = trace(params, apply_fn, x)
    (biases,) = traced.structure.biases.values()
    assert {p.role: p.places for p in biases} == {"input": tuple(range(7)), "forget": tuple(range(7, 14))}
    params, apply_fn, x = MODELS["haiku_lstm"]()
    portions = weights(params, apply_fn, x)["lstm/linear/w"]
    assert {p.state_rows for p in portions} == {(6, 13)}
    # Haiku's program adds one to the forget gate itself.
    assert [p.open for p in portions if p.role == "forget"] == [pytest.approx(1.0, abs=1e-4)]


def test_layers_of_a_feed_forward_network_are_in_no_cell():
    params, apply_fn, x = MODELS["plain_scan"]()
    assert not trace(params, apply_fn, x).structure.cells


def test_multipliers_of_branches_and_of_skip_connections():
    def apply_fn(p, x):
        x = x + p["alpha"] * (jax.nn.relu(x @ p["a"]) @ p["b"])
        x = x * p["omega"] + jax.nn.relu(x @ p["c"]) @ p["d"]
        return (x - x.mean(-1, keepdims=True)) * p["gamma"]

    params = {name: struct(8, 8) for name in "abcd"} | {"alpha": struct(), "omega": struct(8), "gamma": struct(8)}
    traced = trace(params, apply_fn, struct(4, 8))
    named = [
        tuple(None if leaf is None else traced.paths[leaf] for leaf in (s.multiplier, s.shortcut)) for s in traced.skips
    ]
    assert named == [("alpha", None), (None, "omega")]


def test_the_scale_of_a_normalisation_multiplies_no_branch():
    params, apply_fn, batch = MODELS["linen_vit"]()
    assert all(s.multiplier is None and s.shortcut is None for s in trace(params, apply_fn, batch).skips)


def test_structure_of_large_batches_costs_no_memory():
    """Tracking follows factors, not elements: a batch that would not fit into memory does."""
    layers = trace_layers(
        {"qkv": struct(8, 24), "out": struct(8, 8)},
        lambda p, x: (
            attend(*(z.reshape(10**6, 500, 2, 4) for z in jnp.split(x @ p["qkv"], 3, -1))).reshape(10**6, 500, 8)
            @ p["out"]
        ),
        struct(10**6, 500, 8),
    )
    assert [layer.role for layer in layers] == ["query, key, value", "output"]
    assert np.prod(layers[0].shape) == 192
