"""Recurrences that a Python loop writes out are read like scans."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit
from jaxinit import trace_layers
from jaxinit._reading import trace

STEPS, SIZE, FEATURES = 3, 6, 4
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, STEPS, FEATURES))
TOKENS = jax.random.randint(jax.random.key(2), (32, STEPS), 0, 20)
IMAGES = jax.random.normal(jax.random.key(3), (4, STEPS, 5, 5, FEATURES))


def is_kernel_of_state(traced, weight):
    return any(use in cell.state_rows for cell in traced.structure.cells for use in weight.uses)


def normal(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape) / 2


PLAIN = {"w": normal(FEATURES, SIZE), "u": normal(SIZE, SIZE), "b": normal(SIZE)}
GATED = {"w": normal(FEATURES, 4 * SIZE), "u": normal(SIZE, 4 * SIZE), "b": normal(4 * SIZE)}
GRU = {"w": normal(FEATURES, 3 * SIZE), "u": normal(SIZE, 3 * SIZE), "b": normal(3 * SIZE)}
BOTH = {"w": normal(FEATURES + SIZE, SIZE), "b": normal(SIZE)}
IMAGE = {"w": normal(3, 3, FEATURES, SIZE), "u": normal(3, 3, SIZE, SIZE), "b": normal(SIZE)}


def plain(p, h, x):
    return jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"][None])


def state_first(p, h, x):
    return jax.nn.relu(h @ p["u"].T + p["b"][None] + x @ p["w"])


def checkpointed(p, h, x):
    return jax.checkpoint(lambda h: jax.nn.silu(x @ p["w"] + h @ p["u"]))(h)


def joined(p, h, x):
    return jnp.tanh(jnp.concatenate([x, h], -1) @ p["w"] + p["b"][None])


def convolution(p, h, x):
    def convolved(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return jnp.tanh(convolved(x, p["w"]) + convolved(h, p["u"]) + p["b"][None, None, None])


def looked_up(p, h, token):
    return jnp.tanh(p["e"][token] + h @ p["u"])


def lstm(p, state, x):
    h, c = state
    i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"][None], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(p, h, x):
    (a, b, c), (d, e, f) = jnp.split(x @ p["w"] + p["b"][None], 3, -1), jnp.split(h @ p["u"], 3, -1)
    r, z = jax.nn.sigmoid(a + d), jax.nn.sigmoid(b + e)
    return z * h + (1 - z) * jnp.tanh(c + r * f)


ZEROS = jnp.zeros((32, SIZE))
CELLS = {
    "plain": (plain, PLAIN, X, ZEROS),
    "state first": (state_first, PLAIN, X, ZEROS),
    "checkpointed": (checkpointed, PLAIN, X, ZEROS),
    "joined": (joined, BOTH, X, ZEROS),
    "convolution": (convolution, IMAGE, IMAGES, jnp.zeros((4, 5, 5, SIZE))),
    "looked up": (looked_up, {"e": normal(20, SIZE), "u": normal(SIZE, SIZE)}, TOKENS, ZEROS),
    "lstm": (lstm, GATED, X, (ZEROS, ZEROS)),
    "gru": (gru, GRU, X, ZEROS),
}


def written_out(cell, start, every):
    def apply_fn(p, x):
        state, states = start, []
        for t in range(STEPS):
            state = cell(p, state, x[:, t])
            states.append(jax.tree.leaves(state)[0])
        return jnp.stack(states, 1) if every else states[-1]

    return apply_fn


def scanned(cell, start, every):
    def apply_fn(p, x):
        def step(state, x):
            state = cell(p, state, x)
            return state, jax.tree.leaves(state)[0]

        last, states = lax.scan(step, start, jnp.moveaxis(x, 1, 0))
        return jnp.moveaxis(states, 0, 1) if every else jax.tree.leaves(last)[0]

    return apply_fn


@pytest.mark.parametrize("name", CELLS)
def test_a_loop_in_python_is_read_as_the_same_scan(name):
    cell, params, x, start = CELLS[name]
    every = name in ("plain", "lstm")
    loop, scan = written_out(cell, start, every), scanned(cell, start, every)
    assert trace_layers(params, loop, x).to_dict() == trace_layers(params, scan, x).to_dict()
    cells = [trace(params, apply_fn, x).structure.cells for apply_fn in (loop, scan)]
    assert [len(found) for found in cells] == [1, 1]
    assert [len(block) for block in (cells[0][0].forget, cells[0][0].input)] == [
        len(block) for block in (cells[1][0].forget, cells[1][0].input)
    ]


@pytest.mark.parametrize("name", ["plain", "lstm", "checkpointed"])
def test_lsuv_of_a_loop_in_python_is_that_of_the_scan(name):
    cell, params, x, start = CELLS[name]
    new, report = jaxinit.lsuv(params, written_out(cell, start, True), x, return_report=True)
    wanted, of_scan = jaxinit.lsuv(params, scanned(cell, start, True), x, return_report=True)
    assert report.notes == of_scan.notes
    assert any("state of a recurrence" in note for note in report.notes)
    chex.assert_trees_all_close(new, wanted, rtol=1e-4, atol=1e-5)
    for after, other in zip(report.after, of_scan.after, strict=True):
        np.testing.assert_allclose(after, other, rtol=1e-4)


@pytest.mark.parametrize("form", ["slices", "rows", "index", "list", "given state", "without first state", "reversed"])
def test_the_state_is_found_however_a_loop_takes_its_data(form):
    def apply_fn(p, x):
        h = jnp.zeros((32, SIZE)) if form != "given state" else p["b"][None] * x[:, 0, :1]
        steps = {
            "slices": lambda: [x[:, t : t + 1][:, 0] for t in range(STEPS)],
            "rows": lambda: list(jnp.moveaxis(x, 1, 0)),
            "index": lambda: [lax.dynamic_index_in_dim(x, t, 1, keepdims=False) for t in range(STEPS)],
            "list": lambda: [part[:, 0] for part in jnp.split(x, STEPS, 1)],
            "reversed": lambda: [x[:, t] for t in reversed(range(STEPS))],
        }
        for t, step in enumerate(steps.get(form, steps["slices"])()):
            z = step @ p["w"]
            h = jnp.tanh(
                z + p["b"][None] if form == "without first state" and t == 0 else z + h @ p["u"] + p["b"][None]
            )
        return h @ p["c"]

    params = PLAIN | {"c": normal(SIZE, 3)}
    layers = trace_layers(params, apply_fn, X)
    assert [(x.path, x.uses, x.activation and x.activation.name) for x in layers] == [
        ("w", STEPS, "tanh"),
        ("u", STEPS - (form == "without first state"), "tanh"),
        ("c", 1, None),
    ]
    traced = trace(params, apply_fn, X)
    assert [traced.paths[u.leaf] for u in traced.analysis.weights if is_kernel_of_state(traced, u)] == ["u"]


def stacked_cells(p, x):
    """Two stacked cells, and a readout of every step."""
    h = k = jnp.zeros((32, SIZE))
    outputs = []
    for t in range(STEPS):
        h = jnp.tanh(x[:, t] @ p["w"] + h @ p["u"])
        k = jnp.tanh(h @ p["v"] + k @ p["u2"])
        outputs.append(k @ p["c"])
    return jnp.stack(outputs)


def one_after_the_other(p, x):
    """The second loop goes backwards over the states of the first one."""
    h = k = jnp.zeros((32, SIZE))
    states = []
    for t in range(STEPS):
        h = jnp.tanh(x[:, t] @ p["w"] + h @ p["u"])
        states.append(h)
    for h in reversed(states):
        k = jnp.tanh(h @ p["v"] + k @ p["u2"])
    return k @ p["c"]


@pytest.mark.parametrize("apply_fn", [stacked_cells, one_after_the_other])
def test_several_cells_keep_their_kernels_and_lie_as_deep_as_cells(apply_fn):
    params = {"w": normal(FEATURES, SIZE), "c": normal(SIZE, 3)} | {k: normal(SIZE, SIZE) for k in ("u", "v", "u2")}
    traced = trace(params, apply_fn, X)
    kept = {traced.paths[u.leaf] for u in traced.analysis.weights if is_kernel_of_state(traced, u)}
    assert kept == {"u", "u2"}
    assert max(d.layers for found in traced.depths.values() for d in found) <= 2


def without_new_data(p, x):
    h = x[:, 0] @ p["w"]
    for _ in range(STEPS):
        h = jnp.tanh(h @ p["u"])
    return h


def without_a_state(p, x):
    total = 0
    for t in range(STEPS):
        total = total + jnp.tanh(jnp.tanh(x[:, t] @ p["w"]) @ p["u"])
    return total


def with_other_weights(p, x):
    h = jnp.zeros((32, SIZE))
    for t in range(STEPS):
        h = jnp.tanh(x[:, t] @ p["w"] + h @ p["us"][t])
    return h


@pytest.mark.parametrize("apply_fn", [without_new_data, without_a_state, with_other_weights])
def test_what_is_repeated_otherwise_is_no_recurrence(apply_fn):
    params = {"w": normal(FEATURES, SIZE), "u": normal(SIZE, SIZE), "us": normal(STEPS, SIZE, SIZE)}
    traced = trace(params, apply_fn, X)
    assert not any(is_kernel_of_state(traced, unit) for unit in traced.analysis.weights)
