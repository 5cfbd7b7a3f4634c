"""Attention, recurrent cells and multipliers of branches, as the program shows them, whatever the framework."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import attend, encoder_decoder, equinox_lstm, run_cell, struct
from helpers.models import MODELS

from jaxinit import recommend, trace_layers
from jaxinit._reading import _residual
from jaxinit._reading._normalizations import normalizations
from jaxinit._reading._trace import trace
from jaxinit._schemes._roles import roles
from jaxinit.schemes import looks_linear

KEY = jax.random.key(0)


def weights(params, apply_fn, batch):
    """Path and blocks of every weight that has some."""
    traced = trace(params, apply_fn, batch)
    return {traced.paths[weight.leaf]: blocks for weight, blocks in traced.structure.weights.items()}


def rotated(x):
    """Rotary positions, cut and joined along the features."""
    a, b = jnp.split(x, 2, axis=-1)
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None, None]
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
        return attend(*cut(x @ kernel + p["b"][None, None])).reshape(2, 5, 8) @ p["out"]

    params = {"qkv": struct(24, 8) if transposed else struct(8, 24), "b": struct(24), "out": struct(8, 8)}
    layers = trace_layers(params, apply_fn, struct(2, 5, 8))
    assert layers["qkv"].role == "query, key, value"
    assert layers["out"].role == "output"
    found = {block.role: block.indices for block in weights(params, apply_fn, struct(2, 5, 8))["qkv"]}
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


@pytest.mark.parametrize("stacked", [False, True])
def test_encoder_and_decoder_are_told_apart_by_cross_attention(stacked):
    traced = trace(*encoder_decoder(stacked=stacked))
    structure = traced.structure
    inside = {traced.paths[u.leaf] for u in traced.analysis.weights if u.uses[0] in structure.encoder}
    assert inside == {p for p in traced.paths if p.startswith("encoder")} | {"embed"}
    assert sum(a.cross for a in structure.attentions) == (1 if stacked else 3)


@pytest.mark.parametrize("cell", [nn.LSTMCell(7), nn.OptimizedLSTMCell(7)])
def test_gates_of_an_lstm(cell):
    params, apply_fn, x = run_cell(cell)
    roles = {layer.path.split("/")[-2]: layer.role for layer in trace_layers(params, apply_fn, x)}
    assert {name for name, role in roles.items() if role == "forget"} == {"if", "hf"}
    assert {name for name, role in roles.items() if role == "input"} == {"ii", "hi"}
    found = weights(params, apply_fn, x)
    state = {path.split("/")[-2] for path, (block,) in found.items() if block.state_rows == (0, 7)}
    assert state == {"hi", "hf", "hg", "ho"}


@pytest.mark.parametrize(("cell", "gate"), [(nn.GRUCell(7), "z"), (nn.MGUCell(7), "f"), (nn.SimpleCell(7), None)])
def test_update_gates_keep_the_state(cell, gate):
    params, apply_fn, x = run_cell(cell)
    roles = {layer.path.split("/")[-2]: layer.role for layer in trace_layers(params, apply_fn, x)}
    assert {name for name, role in roles.items() if role} == ({f"i{gate}", f"h{gate}"} if gate else set())


@pytest.mark.parametrize("following", [lambda z, h, n: z * h + (1 - z) * n, lambda z, h, n: n + z * (h - n)])
@pytest.mark.parametrize("loop", ["scan", "fori", "while"])
def test_update_gates_are_found_however_the_two_are_mixed(following, loop):
    def step(p, h, x):
        (zi, ni), (zh, nh) = jnp.split(x @ p["w"], 2, axis=-1), jnp.split(h @ p["u"], 2, axis=-1)
        return following(jax.nn.sigmoid(zi + zh), h, jnp.tanh(ni + nh))

    def apply_fn(p, xs):
        start = jnp.zeros((2, D))
        if loop == "scan":
            return jax.lax.scan(lambda h, x: (step(p, h, x), None), start, xs)[0]
        if loop == "fori":
            return jax.lax.fori_loop(0, 5, lambda t, h: step(p, h, xs[t]), start)
        return jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, step(p, c[1], xs[c[0]])), (0, start))[1]

    found = weights({"w": struct(3, 2 * D), "u": struct(D, 2 * D)}, apply_fn, struct(5, 2, 3))
    for path in "wu":
        assert [(p.role, p.indices) for p in found[path]][:1] == [("forget", tuple(range(D)))]
    assert {p.state_rows for p in found["u"]} == {(0, D)}


def test_cells_of_both_directions_are_two():
    params, apply_fn, x = run_cell(nn.LSTMCell(7))

    def both(params, x):
        return apply_fn(params[0], x) + apply_fn(params[1], x[:, ::-1])

    assert len(trace([params, params], both, x).structure.cells) == 2


ATTENTIONS = {
    "softcap": lambda q, k, v: mixed(5.0 * jnp.tanh(jnp.einsum("bthd,bshd->bhts", q, k) / 5.0), v),
    "mask": lambda q, k, v: mixed(
        jnp.where(jnp.tril(jnp.ones((5, 5), bool)), jnp.einsum("bthd,bshd->bhts", q, k), -1e9), v
    ),
    "rotary": lambda q, k, v: mixed(jnp.einsum("bthd,bshd->bhts", rotated(q), rotated(k)), v),
    "window": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, local_window_size=2),
    "grouped queries": lambda q, k, v: jax.nn.dot_product_attention(jnp.concatenate([q, q], axis=2), k, v)[:, :, :2],
    "repeated keys": lambda q, k, v: mixed(jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k[:, :, :1], 2, axis=2)), v),
    "one key for all": lambda q, k, v: mixed(jnp.einsum("bthd,bsd->bhts", q, k[:, :, 0]), v),
    "gated": lambda q, k, v: attend(q, k, v) * jax.nn.sigmoid(q),
}


def mixed(scores, v):
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_of_every_kind_is_found(kind):
    def apply_fn(p, x):
        q, k, v = ((x @ p[name]).reshape(2, 5, 2, 4) for name in "qkv")
        return x + ATTENTIONS[kind](q, k, v).reshape(2, 5, 8) @ p["o"]

    found = {x.path: x.role for x in trace_layers({n: struct(8, 8) for n in "qkvo"}, apply_fn, struct(2, 5, 8))}
    assert found["k"] == "key"
    assert found["v"] == "value"
    assert found["o"] == "output"
    assert found["q"].startswith("query")


def test_the_output_of_attention_in_a_deep_model_is_that_of_its_own_block():
    def apply_fn(params, x):
        x = x @ params["in"]
        for p in params["blocks"]:
            x = x + attend(*((x @ p[name]).reshape(2, 5, 2, 4) for name in "qkv")).reshape(2, 5, 8)  # no projection
            x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        return x

    block = {n: struct(8, 8) for n in ("q", "k", "v", "up", "down")}
    layers = trace_layers({"in": struct(8, 8), "blocks": [block] * 3}, apply_fn, struct(2, 5, 8))
    roles = {"q": "query", "k": "key", "v": "value"}
    assert {x.path: x.role for x in layers} == {x.path: roles.get(x.path.split("/")[-1]) for x in layers}


def test_fused_gates_are_columns_and_fused_states_are_rows():
    params, apply_fn, x = equinox_lstm()
    found = weights(params, apply_fn, x)
    for path in ("weight_ih", "weight_hh"):
        assert [p.role for p in found[path]] == ["input", "forget", None, None]
        assert [p.indices[0] for p in found[path]] == [0, 7, 14, 21]
    traced = trace(params, apply_fn, x)
    (biases,) = traced.structure.biases.values()
    assert {p.role: p.indices for p in biases} == {"input": tuple(range(7)), "forget": tuple(range(7, 14))}
    params, apply_fn, x = MODELS["haiku_lstm"]()
    blocks = weights(params, apply_fn, x)["lstm/linear/w"]
    assert {p.state_rows for p in blocks} == {(6, 13)}
    # Haiku's program adds one to the forget gate itself.
    assert [p.open for p in blocks if p.role == "forget"] == [pytest.approx(1.0, abs=1e-4)]


def test_layers_of_a_feed_forward_network_are_in_no_cell():
    params, apply_fn, x = MODELS["plain_scan"]()
    assert not trace(params, apply_fn, x).structure.cells


def test_multipliers_of_branches_and_of_skip_connections():
    def apply_fn(p, x):
        x = x + p["alpha"] * (jax.nn.relu(x @ p["a"]) @ p["b"])
        x = x * p["omega"][None] + jax.nn.relu(x @ p["c"]) @ p["d"]
        return (x - x.mean(-1, keepdims=True)) * p["gamma"][None]

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


D = 8


def named(*names):
    return {name: struct(D, D) for name in names}


def places(params, apply_fn, batch):
    """Path → (skip, position, length) of the branch it is in; and the number of branches."""
    layers = trace_layers(params, apply_fn, batch)
    found = {x.path: None if x.skip is None else (x.skip, x.position, x.branch_length) for x in layers}
    return found, roles(trace(params, apply_fn, batch)).branches


def mlp(p, x):
    return jax.nn.relu(x @ p["u"]) @ p["d"]


def in_a_scan(p, x):
    def step(h, u):
        h = p["a"][None] * h + u @ p["b"]
        return h, h @ p["c"] + p["skip"][None] * u

    return jax.lax.scan(step, jnp.zeros((2, D)), x)[1]


def after_a_scan(p, x):
    states = jax.lax.scan(lambda h, u: (p["a"][None] * h + u,) * 2, jnp.zeros((2, D)), x @ p["b"])[1]
    return states @ p["c"] + p["skip"][None, None] * x


def after_an_associative_scan(p, x):
    u = x @ p["b"]
    pair = jnp.broadcast_to(p["a"], u.shape), u
    _, states = jax.lax.associative_scan(lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1]), pair)
    return states @ p["c"] + p["skip"][None, None] * x


def after_a_long_convolution(p, x):
    taps = jnp.fft.rfft(p["taps"], axis=0)[:, None]
    return jnp.fft.irfft(jnp.fft.rfft(x @ p["b"], axis=0) * taps, n=4, axis=0) @ p["c"] + p["skip"][None, None] * x


def unrolled(p, x):
    h, outputs = jnp.zeros((2, D)), []
    for u in x:
        h = p["a"][None] * h + u @ p["b"]
        outputs.append(h @ p["c"] + p["skip"][None] * u)
    return jnp.stack(outputs)


def unrolled_between_layers(p, x):
    h, states, inputs = jnp.zeros((2, D)), [], x @ p["b"]
    for t in range(4):
        h = p["a"][None] * h + inputs[t]
        states.append(h)
    return jnp.stack(states) @ p["c"] + p["skip"][None, None] * x


RECURRENCES = [
    in_a_scan,
    after_a_scan,
    after_an_associative_scan,
    after_a_long_convolution,
    unrolled,
    unrolled_between_layers,
]


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_what_leads_past_a_recurrence_is_no_skip_connection(recurrence):
    params = named("b", "c") | {"a": struct(D), "skip": struct(D), "taps": struct(4, D)}
    assert places(params, recurrence, struct(4, 2, D)) == ({"b": None, "c": None}, 0)

    def block(p, x):
        return x + jnp.tanh(recurrence(p, x)) @ p["o"]

    # Within a block there is one skip connection, that of the block. The layers that it holds are the branch's.
    found, branches = places(params | named("o"), block, struct(4, 2, D))
    assert branches == 1
    assert found == {"b": (0, 0, 3), "c": (0, 1, 3), "o": (0, 2, 3)}


def test_multiplied_skip_connections_of_a_trunk_are_some_beside_no_recurrence():
    def apply_fn(params, x):
        for p in params:
            x = p["omega"][None] * x + mlp(p, x)
            x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))
        return x

    found, branches = places([named("u", "d") | {"omega": struct(D)}] * 2, apply_fn, struct(4, D))
    assert branches == 2
    assert found == {"0/u": (0, 0, 2), "0/d": (0, 1, 2), "1/u": (1, 0, 2), "1/d": (1, 1, 2)}


def towers(params, x):
    return sum(mlp(p, x) for p in params)


def test_parallel_towers_are_as_deep_as_one():
    params = [named("u", "d")] * 80
    found, branches = places(params, towers, struct(4, D))
    assert set(found.values()) == {None}
    assert branches == 0

    def normalized(params, x):
        y = towers(params, x)
        return x + y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True))

    found, branches = places(params, normalized, struct(4, D))
    assert branches == 1
    assert found == {f"{i}/{n}": (0, j, 2) for i in range(80) for j, n in enumerate("ud")}
    # A sum of 80 towers with x grows by the size of 80 branches.
    assert places(params, lambda p, x: x + towers(p, x), struct(4, D))[1] == 80


def test_attention_and_feed_forward_network_beside_one_another_are_two_branches_of_one_sum():
    def apply_fn(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        return x + jax.nn.softmax(q @ k.mT) @ v @ p["o"] + mlp(p, x)

    found, branches = places(named(*"qkvoud"), apply_fn, struct(2, 5, D))
    assert branches == 2
    assert {found[n] for n in "qkv"} == {(0, 0, 2)}
    assert (found["o"], found["u"], found["d"]) == ((0, 1, 2), (1, 0, 2), (1, 1, 2))


def test_experts_that_data_weigh_are_one_branch():
    def apply_fn(p, x):
        weights = jax.nn.softmax(x @ p["gate"])
        return x + sum(weights[:, i, None] * mlp(e, x) for i, e in enumerate(p["experts"]))

    found, branches = places({"gate": struct(D, 3), "experts": [named("u", "d")] * 3}, apply_fn, struct(4, D))
    assert branches == 1
    assert found == {"gate": (0, 0, 2)} | {f"experts/{i}/{n}": (0, j, 2) for i in range(3) for j, n in enumerate("ud")}


def test_a_gate_is_not_the_last_layer_of_a_branch():
    def squeeze(p, x):
        y = mlp(p, x)
        gate = jax.nn.sigmoid(jax.nn.relu(y.mean(1, keepdims=True) @ p["squeeze"]) @ p["excite"])
        return x + y * gate

    found, _ = places(named("u", "d", "squeeze", "excite"), squeeze, struct(4, 6, D))
    assert [path for path, (_, position, length) in found.items() if position == length - 1] == ["d"]

    def modulated(p, batch):
        x, condition = batch
        scale, gate = jnp.split(jax.nn.silu(condition @ p["embed"]) @ p["modulate"], 2, axis=-1)
        return x + gate * mlp(p, x * (1 + scale))

    params = named("u", "d", "embed") | {"modulate": struct(D, 2 * D)}
    found, _ = places(params, modulated, (struct(4, D), struct(4, D)))
    assert found == {"embed": None, "modulate": (0, 0, 2), "u": (0, 0, 2), "d": (0, 1, 2)}


@pytest.mark.parametrize(
    "highway",
    [lambda t, h, x: t * h + (1 - t) * x, lambda t, h, x: (1 - t) * x + t * h, lambda t, h, x: t * x + h * (1 - t)],
)
def test_gated_sums_are_no_skip_connections(highway):
    def apply_fn(params, x):
        for p in params:
            x = highway(jax.nn.sigmoid(x @ p["gate"]), jax.nn.relu(x @ p["h"]), x)
        return x

    assert places([named("gate", "h")] * 3, apply_fn, struct(4, D))[1] == 0


def test_skip_connections_of_a_u_net_lie_within_one_another():
    def apply_fn(p, x):
        one = jax.nn.relu(x @ p["a"])
        two = jax.nn.relu(one @ p["b"])
        two = two + jax.nn.relu(two @ p["c"]) @ p["d"]
        return (one + jax.nn.relu(two @ p["e"]) @ p["f"]) @ p["out"]

    found, branches = places(named(*"abcdef", "out"), apply_fn, struct(4, D))
    assert branches == 2
    assert found == {
        "a": None,
        "b": (0, 0, 3),
        "c": (1, 0, 2),
        "d": (1, 1, 2),
        "e": (0, 1, 3),
        "f": (0, 2, 3),
        "out": None,
    }


def test_sums_of_all_that_came_before_have_a_branch_for_each():
    def every_time(params, x):
        found = [x]
        for p in params:
            found.append(mlp(p, sum(found)))
        return sum(found)

    def running(params, x):
        for p in params:
            x = x + mlp(p, x)
        return x

    expected = {f"{i}/{n}": (i, j, 2) for i in range(3) for j, n in enumerate("ud")}, 3
    for apply_fn in (every_time, running):
        assert places([named("u", "d")] * 3, apply_fn, struct(4, D)) == expected


def test_what_is_fed_in_again_and_again_has_a_branch_for_each():
    def apply_fn(params, x):
        h = x
        for p in params:
            h = mlp(p, h) + x
        return h

    found, branches = places([named("u", "d")] * 3, apply_fn, struct(4, D))
    assert (found, branches) == ({f"{i}/{n}": (i, j, 2) for i in range(3) for j, n in enumerate("ud")}, 3)


def test_coupled_halves_have_a_branch_each():
    def apply_fn(p, x):
        one, two = jnp.split(x, 2, axis=-1)
        one = one + jnp.tanh(two @ p["f"])
        two = two + jnp.tanh(one @ p["g"])
        return jnp.concatenate([one, two], axis=-1)

    params = {"f": struct(4, 4), "g": struct(4, 4)}
    assert places(params, apply_fn, struct(4, D)) == ({"f": (0, 0, 1), "g": (1, 0, 1)}, 2)


@pytest.mark.parametrize("at_once", [False, True])
def test_sums_over_time_are_no_skip_connections(at_once):
    def apply_fn(p, x):
        inputs = x @ p["w"] if at_once else [x[t] @ p["w"] for t in range(4)]
        h, states = jnp.zeros((2, D)), []
        for t in range(4):
            h = jnp.tanh(h @ p["u"] + inputs[t])
            states.append(h)
        return sum(states) / 4

    assert places(named("w", "u"), apply_fn, struct(4, 2, D))[1] == 0


def test_the_memory_of_cross_attention_belongs_to_no_branch_of_the_decoder():
    params, apply_fn, batch = encoder_decoder(blocks=2)
    layers = trace_layers(params, apply_fn, batch)
    assert {x.branch_length for x in layers if x.skip is not None} == {2}
    for i in range(2):
        cross = {name: layers[f"decoder/{i}/cross/{name}"] for name in "qkvo"}
        assert len({x.skip for x in cross.values()}) == 1
        assert [cross[name].position for name in "qkvo"] == [0, 0, 0, 1]


def test_the_search_for_branches_is_linear():
    """Equations that are visited, counted for two programs, one of them four times as long."""
    looked = []

    class Counting(_residual._SkipConnections):
        def _before(self, i, root):
            looked[-1] += 1
            return super()._before(i, root)

    def plain(params, x):
        for p in params:
            x = x + mlp(p, x)
        return x

    def fed_again(params, x):
        h = x
        for p in params:
            h = mlp(p, h) + x
        return h

    def recurrent(params, x):
        inputs, h = x @ params[0]["u"], jnp.zeros((2, D))
        for t in range(len(params)):
            h = jnp.tanh(h @ params[0]["d"] + inputs[t])
        return h

    for apply_fn, batch in (
        (plain, struct(2, D)),
        (fed_again, struct(2, D)),
        (towers, struct(2, D)),
        (recurrent, struct(80, 2, D)),
    ):
        looked.clear()
        for length in (20, 80):
            looked.append(0)
            analysis = trace([named("u", "d")] * length, apply_fn, batch).analysis
            for program, carried in _residual._programs(analysis.program):
                list(Counting(analysis, program, carried).found())
        assert looked[1] <= 4.4 * looked[0] + 10, (apply_fn, looked)


def scaled(statistic):
    return lambda p, x: (x - x.mean(-1, keepdims=True)) * p / statistic(x)


NO_NORMALIZATIONS = {
    "temperature": lambda p, x: x / p,
    "exponential of a temperature": lambda p, x: x * jnp.exp(p),
    "root of a temperature": lambda p, x: x / jnp.sqrt(p[0, 0]),
    "softmax": lambda p, x: jax.nn.softmax(x * p / jnp.sqrt(8.0)),
    "constant": lambda p, x: x * p * jax.lax.rsqrt(8.0),
    "centred": lambda p, x: p * (x - x.mean(-1, keepdims=True)),
    "statistic": lambda p, x: jnp.sqrt(jnp.mean((p * x) ** 2)),
}
NORMALIZATIONS = {
    "variance": scaled(lambda x: jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)),
    "standard deviation": scaled(lambda x: x.std(-1, keepdims=True) + 1e-6),
    "power": lambda p, x: p * x * (jnp.mean(x**2, -1, keepdims=True) + 1e-6) ** -0.5,
    "reciprocal": lambda p, x: p * x * (1 / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))),
    "norm": lambda p, x: p * x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6),
    "batch": scaled(lambda x: jnp.sqrt(x.var(0, keepdims=True) + 1e-6)),
    "running variance": lambda p, x: x * jax.lax.rsqrt(p + 1e-6),
}


@pytest.mark.parametrize(
    ("apply_fn", "expected"),
    [(f, False) for f in NO_NORMALIZATIONS.values()] + [(f, True) for f in NORMALIZATIONS.values()],
    ids=[*NO_NORMALIZATIONS, *NORMALIZATIONS],
)
def test_what_is_divided_by_the_root_of_a_statistic_is_normalized(apply_fn, expected):
    analysis = trace(struct(1, D), apply_fn, struct(4, D)).analysis
    assert any(True for _ in normalizations(analysis)) is expected


def test_recommendations_count_depth_along_the_data_and_take_no_temperature_for_a_normalization():
    def deep(temperature):
        def apply_fn(params, x):
            for w in params["w"]:
                x = jax.nn.relu(x @ w)
            x = x @ params["out"]
            return x / params["tau"] if temperature else x

        return {"w": [jnp.ones((D, D))] * 40, "out": jnp.ones((D, 3)), "tau": jnp.ones(())}, apply_fn, jnp.ones((2, D))

    assert recommend(*deep(False)).start == recommend(*deep(True)).start == looks_linear()
    wide = {str(i): jnp.ones((D, D)) for i in range(80)}

    def beside(params, x):
        return jnp.concatenate(
            [jax.nn.relu(jax.nn.relu(x @ params[str(i)]) @ params[str(i + 1)]) for i in range(0, 80, 2)]
        )

    assert roles(trace(wide, beside, struct(2, D))).depth == 2
    assert recommend(wide, beside, jnp.ones((2, D))).start != looks_linear()


def test_layers_that_are_shared_have_a_branch_for_each_use():
    def apply_fn(p, x):
        for _ in range(3):
            x = x + mlp(p, x)
        return x

    assert places(named("u", "d"), apply_fn, struct(4, D)) == ({"u": (0, 0, 2), "d": (0, 1, 2)}, 3)


@contextlib.contextmanager
def promoting():
    """With JAX's own promotion of types and ranks, as programs elsewhere have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def masked_blocks(bias, heads):
    """Blocks of attention that one bias of pairs goes into all of: padding of the batch, or what pairs say."""

    def split(z):
        return jnp.swapaxes(z.reshape(*z.shape[:2], heads, -1), 1, 2)

    def apply_fn(params, batch):
        x, other = batch
        scores = bias(params, other)
        for p in params["blocks"]:
            y = jax.nn.standardize(x)
            q, k, v = (split(y @ p[name]) for name in "qkv")
            mixed = jax.nn.softmax(jnp.einsum("bhid,bhjd->bhij", q, k) / 2 + scores) @ v
            x = x + jnp.swapaxes(mixed, 1, 2).reshape(x.shape) @ p["o"]
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ p["up"]) @ p["down"]
        return x

    return apply_fn


BIASES = {
    "padding": (lambda p, lengths: jnp.where(jnp.arange(6.0) < lengths[:, None], 0, -1e9)[:, None, None], struct(3)),
    "padding of one head": (lambda p, lengths: (jnp.arange(6.0) - lengths[:, None])[:, None, None], struct(3)),
    "whole": (lambda p, mask: (1 - mask) * -1e9, struct(3, 2, 6, 6)),
    "pairs": (lambda p, pairs: jnp.moveaxis(jnp.tanh(pairs) @ p["pairs"], -1, 1), struct(3, 6, 6, 4)),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_that_all_attention_reads_is_no_skip_connection(name):
    """The scores of later blocks are computed from it as well, but they are not a branch beside it."""
    bias, other = BIASES[name]
    shapes = dict.fromkeys("qkvo", (8, 8)) | {"up": (8, 16), "down": (16, 8)}
    blocks = [{leaf: struct(*shape) for leaf, shape in shapes.items()} for _ in range(3)]
    apply_fn = masked_blocks(bias, 1 if "one" in name else 2)
    with promoting():
        layers = trace_layers({"blocks": blocks, "pairs": struct(4, 2)}, apply_fn, (struct(3, 6, 8), other))
    for i in range(3):
        own = {leaf: layers[f"blocks/{i}/{leaf}"] for leaf in shapes}
        assert [own[leaf].role for leaf in "qkvo"] == ["query", "key", "value", "output"]
        assert len({own[leaf].skip for leaf in "qkvo"}) == len({own["up"].skip, own["down"].skip}) == 1
        assert (own["o"].position, own["o"].branch_length, own["down"].position) == (1, 2, 1)


@pytest.mark.parametrize("everywhere", [False, True])
def test_shifts_of_an_adaptive_normalization_are_no_skip_connections(everywhere):
    """Scale, shift and gate are parts of one value; the stem is not a layer of a branch."""

    def apply_fn(p, batch):
        x, condition = batch
        x = x @ p["stem"]
        for kernel in (p["a"], p["b"]):
            parts = jnp.split(jax.nn.silu(condition @ p["condition"]) @ p["parts"], 3, axis=-1)
            scale, shift, gate = (part if everywhere else part[:, None] for part in parts)
            x = x + gate * jax.nn.relu((jax.nn.standardize(x) * (1 + scale) + shift) @ kernel)
        return x

    params = {name: struct(8, 8) for name in ("stem", "condition", "a", "b")} | {"parts": struct(8, 24)}
    condition = struct(3, 6, 8) if everywhere else struct(3, 8)
    with promoting():
        layers = trace_layers(params, apply_fn, (struct(3, 6, 8), condition))
    assert [layers[name].skip for name in ("stem", "condition", "a", "b")] == [None, None, 0, 1]


@pytest.mark.parametrize("projected", [False, True])
def test_a_pooled_shortcut_is_a_skip_connection(projected):
    def convolved(x, w, stride=1):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply_fn(p, x):
        shortcut = nn.avg_pool(x, (2, 2), (2, 2))
        branch = convolved(jax.nn.relu(convolved(x, p["a"])), p["b"], 2)
        return branch + (convolved(shortcut, p["c"]) if projected else shortcut)

    params = {"a": struct(1, 1, 4, 4), "b": struct(3, 3, 4, 4), "c": struct(1, 1, 4, 4)}
    with promoting():
        skips = {layer.path: layer.skip for layer in trace_layers(params, apply_fn, struct(2, 8, 8, 4))}
    assert (skips["a"], skips["b"], skips.get("c")) == (0, 0, None)


# Attention in parts


def projected(p, x):
    return tuple((x @ p[name]).reshape(2, 8, 4, 4) for name in "qkv")


def attended(q, k, v):
    shares = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 2)
    return jnp.einsum("bhts,bshd->bthd", shares, v)


def blocks(x):
    return jnp.moveaxis(x.reshape(2, 4, 2, 4, 4), 1, 0)


def blocks_of_queries(p, x):
    q, k, v = projected(p, x)
    return jnp.moveaxis(jax.lax.map(lambda q: attended(q, k, v), blocks(q)), 0, 1).reshape(2, 8, 16) @ p["o"]


def over_keys(q, k, v):
    """Softmax over blocks of keys, with a running maximum and a running sum (Milakov & Gimelshein, 2018)."""

    def step(carry, pair):
        largest, total, sum_ = carry
        scores = jnp.einsum("bthd,bshd->bhts", q, pair[0]) / 2
        new = jnp.maximum(largest, scores.max(-1))
        shares, shrink = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
        mixture = jnp.einsum("bhts,bshd->bhtd", shares, pair[1])
        return (new, total * shrink + shares.sum(-1), sum_ * shrink[..., None] + mixture), None

    rows = (q.shape[0], q.shape[2], q.shape[1])
    start = jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros((*rows, q.shape[3]))
    _, total, found = jax.lax.scan(step, start, (blocks(k), blocks(v)))[0]
    return jnp.moveaxis(found / total[..., None], 1, 2)


def blocks_of_keys(p, x):
    return over_keys(*projected(p, x)).reshape(2, 8, 16) @ p["o"]


def blocks_of_both(p, x):
    q, k, v = projected(p, x)
    return jnp.moveaxis(jax.lax.map(lambda q: over_keys(q, k, v), blocks(q)), 0, 1).reshape(2, 8, 16) @ p["o"]


def fused_in_a_branch(p, x):
    q, k, v = (part.reshape(2, 8, 4, 4) for part in jnp.split(x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1), 3, -1))
    chosen = jax.lax.cond(x.sum() > 0, lambda q: attended(q, k, v), lambda q: q, q)
    return chosen.reshape(2, 8, 16) @ p["o"]


@pytest.mark.parametrize("apply_fn", [blocks_of_queries, blocks_of_keys, blocks_of_both, fused_in_a_branch])
def test_attention_in_parts_is_attention(apply_fn):
    """A loop over blocks of queries or of keys computes it, with the projections around."""
    params = {name: jax.ShapeDtypeStruct((16, 16), jnp.float32) for name in "qkvo"}
    layers = trace_layers(params, apply_fn, jax.ShapeDtypeStruct((2, 8, 16), jnp.float32))
    roles = {layer.path: layer.role for layer in layers}
    assert roles == {"q": "query", "k": "key", "v": "value", "o": "output"}
