"""`diagnose` knows how deep layers are: in towers, in scanned stacks, and where signals leave the range of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import chain
from helpers.reports import faults

import jaxinit
from jaxinit import diagnose

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(9), (64, 32))


def drawn(depth, init=None, seed=0):
    init = init or jaxinit.he_normal()
    return [init(key, (32, 32)) for key in jax.random.split(jax.random.key(seed), depth)]


def relu_net(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return x


def two_towers(params, x):
    joined = jnp.concatenate([relu_net(params["a"], x), relu_net(params["b"], 1e3 * x) / 1e3], axis=-1)
    return joined @ params["out"]


def depths(report):
    return [(row.depth, row.tower) for row in report.rows]


def test_towers_are_judged_each_by_itself():
    params = {"a": drawn(5), "b": drawn(5, seed=1), "out": jaxinit.lecun_normal()(KEY, (64, 4))}
    report = diagnose(params, two_towers, X, lanczos_steps=0)
    assert depths(report) == [(i, 0) for i in range(5)] + [(i, 1) for i in range(5)] + [(5, 0)]
    assert report.healthy, report.verdict
    assert report.signal_growth == pytest.approx(1, abs=0.15)
    params["b"] = drawn(5, jaxinit.normal(0.01))
    report = diagnose(params, two_towers, X, lanczos_steps=0)
    # Two layers on either way are 0.06² of the first one.
    assert faults(report) == {"vanishing signal": "b/2", "vanishing gradient": "b/2"}


def test_the_layers_of_a_step_alternate_in_depth():
    def apply_fn(params, x):
        def step(x, w):
            return jax.nn.relu(jax.nn.relu(x @ w["up"]) @ w["down"]), None

        x = jax.lax.scan(step, x, params["forwards"])[0]
        return jax.lax.scan(step, x, params["backwards"], reverse=True)[0]

    names = ("up", "down")
    params = {
        way: {name: 0.8 * jnp.stack(drawn(4, seed=i + 2 * j)) for i, name in enumerate(names)}
        for j, way in enumerate(("forwards", "backwards"))
    }
    report = diagnose(params, apply_fn, X, lanczos_steps=0)
    deep = {row.name: row.depth for row in report.rows}
    for i in range(4):
        for j, name in enumerate(names):
            assert deep[f"forwards/{name}[{i}]"] == 2 * i + j
            assert deep[f"backwards/{name}[{i}]"] == 8 + 2 * (3 - i) + j
    # Of both kinds of a step together each layer has 0.8 times the scale of the one before.
    assert report.signal_growth == pytest.approx(0.8, abs=0.08)
    assert report.gradient_growth == pytest.approx(0.8, abs=0.08)


def test_a_scan_of_scans_and_one_whose_steps_share_their_layer():
    def nested(params, x):
        def block(x, ws):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

        return jax.lax.scan(block, x, params)[0]

    report = diagnose(jnp.stack(drawn(6)).reshape(2, 3, 32, 32), nested, X, lanczos_steps=0)
    assert depths(report) == [(i, 0) for i in range(6)]

    def shared(params, x):
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ params[0]), None), x, None, length=7)[0]
        return x @ params[1]

    assert depths(diagnose(drawn(2), shared, X, lanczos_steps=0)) == [(0, 0), (1, 0)]


def test_signals_that_leave_float32_end_the_fit():
    init, apply_fn = chain(jnp.tanh)
    params = init(KEY, depth=60, init=jaxinit.normal(0.01))
    report = diagnose(params, apply_fn, jax.random.normal(KEY, (128, 64)))
    assert np.asarray(report.pre_std)[-1] == 0
    found = faults(report)
    assert found.keys() == {"vanishing signal", "vanishing gradient"}
    assert found["vanishing signal"] == "hidden/w[2]"
    assert report.signal_growth == pytest.approx(0.01 * 64**0.5, rel=0.05)
    assert report.gradient_growth == pytest.approx(0.01 * 64**0.5, rel=0.05)
    # Two layers of which the second is zero have no slope, and do not keep their size.
    small = diagnose([1e-30 * w for w in drawn(3)], relu_net, X, lanczos_steps=0)
    assert small.signal_growth == 0


def test_what_changes_without_fault_is_said():
    report = diagnose([0.8 * w for w in drawn(9)], relu_net, X, lanczos_steps=0)
    assert report.healthy, report.verdict
    rates = float(report.signal_growth), float(report.gradient_growth)
    assert rates == pytest.approx((0.8, 0.8), abs=0.1)
    assert "No fault was found; from one end of the model to the other signals are multiplied by 0." in report.verdict
    assert diagnose(drawn(9), relu_net, X, lanczos_steps=0).verdict.startswith("Signals and gradients keep their size")


def test_a_router_whose_gradient_ends_at_an_argmax_is_no_vanishing_gradient():
    def apply_fn(params, x):
        x = relu_net(params["first"], x)
        chosen = jnp.argmax(x @ params["router"], axis=-1)
        x = jax.nn.relu(jnp.einsum("bi,bio->bo", x, params["experts"][chosen]))
        return relu_net(params["last"], x)

    router = jaxinit.lecun_normal()(KEY, (32, 4))
    params = {"first": drawn(2), "router": router, "experts": jnp.stack(drawn(4)), "last": drawn(2, seed=1)}
    report = diagnose(params, apply_fn, X, lanczos_steps=0)
    gradients = zip(report.rows, report.gradient_std.tolist(), strict=True)
    assert [row.name for row, gradient in gradients if gradient == 0] == ["router"]
    assert report.healthy, report.verdict
    assert report.gradient_growth == pytest.approx(1, abs=0.3)


def conditioned(params, batch):
    """Blocks that an embedding of the time modulates, as in diffusion transformers."""
    x, time = batch
    time = jax.nn.silu(time @ params["time"][0]) @ params["time"][1]
    x = x @ params["patch"]
    for p in params["blocks"]:
        shift, scale, gate = jnp.split(jax.nn.silu(time) @ p["modulate"], 3, axis=-1)
        y = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        y = y * (1 + scale) + shift
        x = x + gate * (jax.nn.relu(y @ p["up"]) @ p["down"])
    return x @ params["out"]


def blocks(count):
    draw = jaxinit.lecun_normal()
    keys = iter(jax.random.split(KEY, 4 + 3 * count))
    params = {
        "time": [draw(next(keys), (32, 32)), draw(next(keys), (32, 32))],
        "patch": draw(next(keys), (32, 32)),
        "blocks": [
            {
                "modulate": draw(next(keys), (32, 96)),
                "up": draw(next(keys), (32, 32)),
                "down": draw(next(keys), (32, 32)),
            }
            for _ in range(count)
        ],
        "out": draw(next(keys), (32, 8)),
    }
    return params, (X, 0.01 * jax.random.normal(jax.random.key(3), (64, 32)))


def test_layers_are_compared_with_those_their_data_come_from():
    """The time embedder is a hundred times smaller than its neighbours, which is not a fault."""
    params, batch = blocks(4)
    report = diagnose(params, conditioned, batch, lanczos_steps=0)
    number = {row.name: i for i, row in enumerate(report.rows)}
    before = {row.name: {report.rows[i].name for i in row.before} for row in report.rows}
    assert before["time/0"] == before["patch"] == set()
    assert before["time/1"] == {"time/0"}
    assert before["blocks/2/modulate"] == {"time/1"}
    assert {"patch", "blocks/0/modulate"} == before["blocks/0/up"]
    assert before["blocks/0/down"] == {"blocks/0/up"}
    scale = np.asarray(report.pre_std)
    assert scale[number["patch"]] > 50 * scale[number["time/0"]]
    assert "outlier" not in faults(report), report.verdict
    # One that stands out from what it is computed from still does.
    params["blocks"][2]["down"] *= 1e3
    assert faults(diagnose(params, conditioned, batch, lanczos_steps=0))["outlier"] == "blocks/2/down"


def test_the_layer_before_one_of_a_stack_is_that_of_the_step_before():
    def apply_fn(params, x):
        def step(x, w):
            return jax.nn.relu(jax.nn.relu(x @ w["up"]) @ w["down"]), None

        x = jax.lax.scan(step, x @ params["in"], params["stack"], reverse=True)[0]
        return jax.lax.scan(step, x, params["other"])[0] @ params["out"]

    stack = {name: jnp.stack(drawn(3, seed=i)) for i, name in enumerate(("up", "down"))}
    params = {"in": drawn(1)[0], "stack": stack, "other": stack, "out": drawn(1)[0]}
    report = diagnose(params, apply_fn, X, lanczos_steps=0)
    before = {row.name: [report.rows[i].name for i in row.before] for row in report.rows}
    assert before["in"] == []
    assert before["stack/up[2]"] == ["in"]
    assert before["stack/up[0]"] == ["stack/down[1]"]
    assert before["stack/down[0]"] == ["stack/up[0]"]
    assert before["other/up[0]"] == ["stack/down[0]"]
    assert before["other/up[2]"] == ["other/down[1]"]
    assert before["out"] == ["other/down[2]"]
