"""`auto` on graphs: messages that are added at given indices, measured on data."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinit

NODES, EDGES, WIDTH = 64, 320, 128


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def graph():
    """Features of nodes, and edges such that some nodes receive many and some none."""
    rng = np.random.default_rng(0)
    receivers = (rng.random(EDGES) ** 2 * NODES).astype(np.int32)
    features = rng.normal(size=(NODES, 32)).astype(np.float32)
    return jnp.asarray(features), jnp.asarray(rng.integers(0, NODES, EDGES, np.int32)), jnp.asarray(receivers)


def total(messages, senders, receivers):
    return jax.ops.segment_sum(messages, receivers, NODES)


def added_at(messages, senders, receivers):
    return jnp.zeros((NODES, WIDTH)).at[receivers].add(messages)


def mean(messages, senders, receivers):
    count = total(jnp.ones((EDGES, 1)), senders, receivers)
    return total(messages, senders, receivers) / jnp.maximum(count, 1)


def by_degrees(messages, senders, receivers):
    sent, received = (lax.rsqrt(jnp.maximum(jnp.zeros(NODES).at[i].add(1.0), 1.0)) for i in (senders, receivers))
    return total(messages * sent[senders][:, None], senders, receivers) * received[:, None]


def beside_itself(messages, senders, receivers):
    return messages[:NODES] + total(messages, senders, receivers)


def put(messages, senders, receivers):
    return jnp.zeros((NODES, WIDTH)).at[receivers].set(messages)


def in_grids(messages, senders, receivers):
    grid = jnp.zeros((8, NODES // 8, WIDTH)).at[receivers // 8, receivers % 8].add(messages)
    return grid.reshape(NODES, WIDTH)


AGGREGATIONS = [total, added_at, mean, by_degrees, beside_itself, put, in_grids]
PARAMS = {
    "in": shape(32, WIDTH),
    "message": shape(WIDTH, WIDTH),
    "update": shape(WIDTH, WIDTH),
    "out": shape(WIDTH, 64),
}


def outputs(params, data, aggregated):
    """The pre-activations of an update, and of a layer behind it."""
    x, senders, receivers = data
    x = nn.relu(nn.relu(x @ params["in"]) @ params["message"])
    update = aggregated(x[senders], senders, receivers) @ params["update"]
    return update, nn.relu(update) @ params["out"]


def measured(model, given, data, seeds=6):
    found = []
    for seed in range(seeds):
        params = jaxinit.initialize(jax.random.key(seed), PARAMS, model, given)
        found.append([float(jnp.mean(y**2)) for y in model(params, data)])
    return np.mean(found, 0)


@pytest.mark.parametrize("aggregated", AGGREGATIONS, ids=lambda f: f.__name__)
def test_sums_along_edges_count(aggregated):
    data = graph()
    found = measured(lambda p, x: outputs(p, x, aggregated), data, data)
    np.testing.assert_allclose(found, 1, rtol=0.25)


def test_sums_along_the_edges_of_several_graphs_count():
    data = jax.tree.map(lambda *xs: jnp.stack(xs), graph(), graph())

    def model(p, x):
        return jax.vmap(lambda x: outputs(p, x, total))(x)

    np.testing.assert_allclose(measured(model, data, data), 1, rtol=0.25)


def test_of_edges_that_are_not_known_the_number_counts():
    x, senders, _ = graph()
    receivers = jax.random.randint(jax.random.key(1), (EDGES,), 0, NODES)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), graph())
    found = measured(lambda p, x: outputs(p, x, total), given, (x, senders, receivers))
    np.testing.assert_allclose(found, 1, rtol=0.25)


def test_windows_at_places_that_data_names_are_unknown():
    def model(p, x):
        numbers = lax.ScatterDimensionNumbers((0, 1), (), (0,))
        at = jnp.argmax(x, -1)[:1]
        return lax.scatter_add(jnp.zeros((16, 8)), at, x[:4] @ p["in"], numbers) @ p["out"]

    params = {"in": shape(8, 8), "out": shape(8, 4)}
    _, report = jaxinit.initialize(jax.random.key(0), params, model, shape(8, 8), return_report=True)
    assert "unknown" in {row.path: row.reason for row in report.rows}["out"]
