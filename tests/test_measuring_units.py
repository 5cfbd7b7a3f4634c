"""`diagnose` sees what happens to units wherever their activation is, and its remedies fix the faults they are for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reports import faults

import jaxinit
from jaxinit import diagnose

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(9), (64, 32))


class Normalized(nn.Module):
    """Layer, normalization and activation, three times, and a readout."""

    norm: str
    activation: str

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(32)(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=False)(x)
            elif self.norm == "running":
                x = nn.BatchNorm(use_running_average=True)(x)
            elif self.norm == "group":
                x = nn.GroupNorm(num_groups=4)(x)
            else:
                x = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[self.norm]()(x)
            x = getattr(nn, self.activation)(x)
        return nn.Dense(4)(x)


def applied(module):
    return lambda variables, x: module.apply(variables, x, mutable=["batch_stats"])[0]


def changed(tree, name, value, layer="_1"):
    """The leaves of that name in the second normalization, all of one value."""

    def change(path, leaf):
        at = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.full_like(leaf, value) if f"Norm{layer}/" in at and at.endswith(name) else leaf

    return jax.tree_util.tree_map_with_path(change, tree)


@pytest.mark.parametrize("norm", ["batch", "running", "group", "layer"])
def test_units_that_die_behind_a_normalization(norm):
    module = Normalized(norm, "relu")
    variables, apply_fn = module.init(KEY, X), applied(module)
    healthy = diagnose(variables, apply_fn, X, lanczos_steps=0)
    assert healthy.healthy, healthy.verdict
    assert [row.activation for row in healthy.rows] == ["relu", "relu", "relu", None]
    assert [row.normalized for row in healthy.rows] == [norm != "running"] * 3 + [False]
    bad = changed(variables, "bias", -100.0)
    report = diagnose(bad, apply_fn, X, lanczos_steps=0)
    assert faults(report) == {"dead": "params/Dense_1/kernel"}
    if norm == "layer":  # as the remedy says
        assert '"auto"' in report.verdict
        mended = jaxinit.initialize(KEY, bad, apply_fn, X, "auto")
        assert diagnose(mended, apply_fn, X, lanczos_steps=0).healthy


@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_units_that_saturate_behind_a_normalization(norm):
    module = Normalized(norm, "tanh")
    variables, apply_fn = module.init(KEY, X), applied(module)
    assert diagnose(variables, apply_fn, X, lanczos_steps=0).healthy
    report = diagnose(changed(variables, "scale", 30.0), apply_fn, X, lanczos_steps=0)
    assert faults(report)["saturated"] == "params/Dense_1/kernel"
    assert "(after normalization)" in report.verdict
    assert '"auto"' in report.findings()[0].remedy


def test_what_is_measured_behind_a_normalization_is_the_activation_there():
    module = Normalized("layer", "tanh")
    variables, apply_fn = module.init(KEY, X), applied(module)
    report = diagnose(variables, apply_fn, X, lanczos_steps=0)
    z = nn.LayerNorm().apply(
        {"params": variables["params"]["LayerNorm_0"]}, X @ variables["params"]["Dense_0"]["kernel"]
    )
    np.testing.assert_allclose(report.post_std[0], jnp.tanh(z).std(), rtol=1e-5)
    np.testing.assert_allclose(report.saturated[0], (1 - jnp.tanh(z) ** 2 < 0.05).mean(), atol=1e-6)


def test_a_softmax_is_no_activation_of_units():
    report = diagnose(jnp.eye(32), lambda w, x: jax.nn.softmax(x @ w), X, lanczos_steps=0)
    assert [row.activation for row in report.rows] == [None]


def fused(params, x):
    """A recurrent cell whose gates are cut from one product with the input and the state."""

    def step(carry, xt):
        c, h = carry
        gates = jnp.concatenate([xt, h], -1) @ params["cell"] + params["bias"][None]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

    start = jnp.zeros((x.shape[1], 16)), jnp.zeros((x.shape[1], 16))
    return jax.lax.scan(step, start, x)[0][1] @ params["out"]


@pytest.mark.parametrize(
    "cell",
    [nn.SimpleCell, nn.LSTMCell, nn.GRUCell, pytest.param(nn.OptimizedLSTMCell, marks=pytest.mark.slow)],
)
def test_gates_of_recurrent_cells_saturate(cell):
    module = nn.Sequential([nn.RNN(cell(16)), lambda x: x[:, -1], nn.Dense(4)])
    x = jax.random.normal(KEY, (32, 12, 8))
    params = jax.jit(module.init)(KEY, x)
    healthy = diagnose(params, module.apply, x, lanczos_steps=0)
    assert healthy.healthy, healthy.verdict
    assert all(row.recurrent == ("layers_0" in row.name or "cell" in row.name) for row in healthy.rows)
    activations = {row.activation for row in healthy.rows if row.recurrent}
    assert activations <= {"sigmoid", "tanh", None}
    assert activations & {"sigmoid", "tanh"}
    large = jax.tree.map(lambda w: 50 * w, params)
    report = diagnose(large, module.apply, x, lanczos_steps=0)
    assert "saturated" in faults(report)
    assert report.findings()[0].remedy == 'jaxinit.initialize(key, params, apply_fn, batch, "recurrent")'
    mended = jaxinit.initialize(KEY, large, module.apply, x, "recurrent")
    assert "saturated" not in faults(diagnose(mended, module.apply, x, lanczos_steps=0))


def test_gates_that_are_cut_from_one_product_are_measured_each_by_its_own_activation():
    x = jax.random.normal(KEY, (12, 32, 8))
    params = {"cell": jnp.zeros((24, 64)), "bias": jnp.zeros(64), "out": jnp.eye(16)}
    params["bias"] = params["bias"].at[:16].set(3.0)  # tanh would be flat there, the logistic function is not
    report = diagnose(params, fused, x, lanczos_steps=0)
    assert report.rows[0].activation == "sigmoid, tanh"
    np.testing.assert_allclose(report.saturated[0], 0, atol=1e-6)
    params["bias"] = params["bias"].at[32:48].set(3.0)
    np.testing.assert_allclose(diagnose(params, fused, x, lanczos_steps=0).saturated[0], 0.25, atol=1e-6)


def test_gates_that_are_meant_to_keep_the_state_are_no_fault():
    x = jax.random.normal(KEY, (12, 32, 8))
    kept = jnp.log(jnp.linspace(1, 999, 16))
    cell = jaxinit.lecun_normal()(KEY, (24, 64))
    params = {"cell": cell, "bias": jnp.concatenate([-kept, kept, 0 * kept, 0 * kept]), "out": jnp.eye(16)}
    report = diagnose(params, fused, x, lanczos_steps=0)  # as in a chrono start
    assert report.saturated[0] > 0.4
    assert "saturated" not in faults(report)
    report = diagnose(params | {"cell": 100 * cell}, fused, x, lanczos_steps=0)
    assert "saturated" in faults(report)


@functools.cache  # a function that is the same is not compiled again
def mlp(activation):
    def apply_fn(params, x):
        *hidden, out = params
        for w in hidden:
            x = activation(x @ w)
        return x @ out

    return apply_fn


def drawn(depth, init=None):
    init = init or jaxinit.he_normal()
    return [init(k, (32, 32)) for k in jax.random.split(KEY, depth)]


@pytest.mark.parametrize("size", [1e4, 1e-6])
def test_a_size_that_all_layers_share_is_the_first_layers(size):
    apply_fn, params = mlp(jax.nn.relu), drawn(8)
    params[0] = params[0] * size
    report = diagnose(params, apply_fn, X, lanczos_steps=0)
    found = faults(report)
    assert found["outlier"] == "0"
    assert "jaxinit.lsuv" in report.verdict
    assert diagnose(jaxinit.lsuv(params, apply_fn, X), apply_fn, X, lanczos_steps=0).healthy
    for factor in (0.02, 50.0):  # not far from what many nets start with
        params[0] = factor * jaxinit.he_normal()(KEY, (32, 32))
        assert diagnose(params, apply_fn, X, lanczos_steps=0).healthy


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, jax.nn.sigmoid])
@pytest.mark.parametrize("value", [0.0, 0.03])
def test_equal_units_learn_the_same(activation, value):
    apply_fn = mlp(activation)
    equal = [jnp.full((32, 32), value)] * 3
    found = faults(diagnose(equal, apply_fn, X, lanczos_steps=0))
    assert found["equal units" if value else "zero weights"] == "0"
    mended = jaxinit.initialize(KEY, equal, apply_fn, X, "auto")
    assert "equal units" not in faults(diagnose(mended, apply_fn, X, lanczos_steps=0))


def test_equal_weights_are_no_fault_where_what_comes_back_differs():
    x = X

    def healthy(params, apply_fn):
        return "equal units" not in faults(diagnose(params, apply_fn, x, lanczos_steps=0))

    zero, one, two, three = jnp.zeros((32, 32)), *drawn(3)
    tanh = mlp(jnp.tanh)
    assert healthy([zero, one], tanh)  # the outgoing weights of its units differ
    assert healthy([one, two, zero], tanh)  # a readout
    assert not healthy([zero, zero, one], tanh)
    assert not healthy([one, zero, zero], tanh)

    def residual(params, x):
        x = x + jnp.tanh(x @ params[0]) @ params[1]
        return x @ params[2]

    assert healthy([one, zero, zero], residual)  # as in Fixup
    assert healthy([one, zero, two], residual)

    def attention(params, x):
        q, k, v, out = (x.reshape(8, 8, 32) @ w for w in params[:4])
        p = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / 32**0.5)
        return (jnp.einsum("nqk,nkd->nqd", p, v) + out) @ params[4]

    assert healthy([zero, one, two, three, zero], attention)  # as in muP

    def scanned(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]

    stack = jnp.stack([one, zero, zero, zero])
    assert faults(diagnose(stack, scanned, x, lanczos_steps=0))["equal units"] == "[1]"


@pytest.mark.parametrize("library", ["plain", "flax"])
def test_attention_that_sees_one_key(library):
    x = jax.random.normal(KEY, (8, 24, 32))
    if library == "flax":
        module = nn.MultiHeadDotProductAttention(2)
        apply_fn, params = (lambda p, x: module.apply(p, x, x)), module.init(KEY, x, x)
    else:
        params = dict(zip(("query", "key", "value", "out"), drawn(4, jaxinit.lecun_normal()), strict=True))

        def apply_fn(p, x):
            scores = (x @ p["query"]) @ jnp.swapaxes(x @ p["key"], 1, 2) / 32**0.5
            scores = jnp.where(jnp.tril(jnp.ones((24, 24), bool)), scores, -1e9)
            weights = jnp.exp(scores - scores.max(-1, keepdims=True))
            return (weights / weights.sum(-1, keepdims=True)) @ (x @ p["value"]) @ p["out"]

    report = diagnose(params, apply_fn, x, lanczos_steps=0)
    assert report.healthy, report.verdict
    assert [bool(peak > 0) for peak in report.attention_peak] == [row.role in ("query", "key") for row in report.rows]
    sharp = jax.tree_util.tree_map_with_path(
        lambda path, w: 300 * w if "query" in jax.tree_util.keystr(path) else w, params
    )
    report = diagnose(sharp, apply_fn, x, lanczos_steps=0)
    assert "query" in faults(report)["one-hot attention"]
    mended = jaxinit.lsuv(sharp, apply_fn, x)
    assert diagnose(mended, apply_fn, x, lanczos_steps=0).healthy


REMEDIES = {
    '"auto"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "auto"),
    "jaxinit.lsuv": lambda params, f: jaxinit.lsuv(params, f, X),
    '"orthogonal_critical"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "orthogonal_critical"),
    '"looks_linear"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "looks_linear"),
}


@pytest.mark.parametrize(
    ("activation", "depth", "init"),
    [
        ("sigmoid", 6, jaxinit.lecun_normal()),
        ("sigmoid", 6, jaxinit.normal(3.0)),
        ("softplus", 10, jaxinit.lecun_normal()),
        ("tanh", 8, jaxinit.normal(2.0)),
        pytest.param("tanh", 50, jaxinit.variance_scaling(4.0, "fan_in", "normal"), marks=pytest.mark.slow),
        ("relu", 8, jaxinit.normal(0.01)),
        pytest.param("relu", 50, jaxinit.lecun_normal(), marks=pytest.mark.slow),
        pytest.param("silu", 50, jaxinit.lecun_normal(), marks=pytest.mark.slow),
    ],
)
def test_remedies_mend_the_fault_they_are_named_for_and_do_not_go_in_circles(activation, depth, init):
    apply_fn = mlp(getattr(jax.nn, activation))
    params, tried = drawn(depth, init), []
    report = diagnose(params, apply_fn, X, lanczos_steps=0)
    assert not report.healthy
    while not report.healthy:
        finding = report.findings()[0]
        named = [name for name in REMEDIES if name in finding.remedy]
        if not named:
            assert "no initialization fixes this" in finding.remedy
            assert activation in finding.remedy
            break
        assert named[0] not in tried, (tried, str(finding))
        tried.append(named[0])
        params = REMEDIES[named[0]](params, apply_fn)
        report = diagnose(params, apply_fn, X, lanczos_steps=0)
        assert finding.fault not in faults(report), (named, report.verdict)
    assert report.healthy == (activation not in ("sigmoid", "softplus"))


def test_what_mends_sigmoids_is_what_the_verdict_says():
    report = diagnose(drawn(6), mlp(jax.nn.sigmoid), X, lanczos_steps=0)
    assert "another activation, such as jax.nn.tanh, or normalization" in report.verdict
    assert "sigmoid multiplies gradients by 0.39 per layer" in report.verdict
    assert diagnose(drawn(6, jaxinit.lecun_normal()), mlp(jnp.tanh), X, lanczos_steps=0).healthy

    def skipping(params, x):
        for w in params:
            x = x + jax.nn.sigmoid(x @ w)
        return x

    found = faults(diagnose(drawn(6, jaxinit.lecun_normal()), skipping, X, lanczos_steps=0))
    assert not {"vanishing gradient", "ordered"} & set(found)


def test_queries_divided_by_a_number_have_no_activation():
    module = nn.MultiHeadDotProductAttention(4)
    x = jax.random.normal(KEY, (4, 6, 32))
    report = diagnose(module.init(KEY, x), module.apply, x, lanczos_steps=0)
    assert [row.activation for row in report.rows] == [None] * 4


def test_sigmoids_at_their_critical_point_and_behind_layer_norm_get_no_start_for_remedy():
    apply_fn = mlp(jax.nn.sigmoid)
    params = jaxinit.initialize(KEY, drawn(6), apply_fn, X, "orthogonal_critical")
    finding, *_ = diagnose(params, apply_fn, X, lanczos_steps=0).findings()
    assert finding.fault == "saturated"
    assert "no initialization fixes this" in finding.remedy

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(8):
                x = nn.sigmoid(nn.LayerNorm()(nn.Dense(32)(x)))
            return nn.Dense(4)(x)

    report = diagnose(Deep().init(KEY, X), Deep().apply, X, lanczos_steps=0)
    assert {finding.fault for finding in report.findings()} == {"vanishing gradient", "ordered"}
    assert all("or batch normalization" in finding.remedy for finding in report.findings())


def test_units_that_biases_killed_are_revived_by_the_remedy():
    def apply_fn(params, x):
        for w, b in params:
            x = jax.nn.relu(x @ w + b[None])
        return x

    params = [(w, jnp.full(32, -20.0)) for w in drawn(4)]
    finding, *_ = diagnose(params, apply_fn, X, lanczos_steps=0).findings()
    assert (finding.fault, "biases of zero" in finding.remedy) == ("dead", True)
    mended = jaxinit.initialize(KEY, params, apply_fn, X, "auto")
    assert diagnose(mended, apply_fn, X, lanczos_steps=0).healthy
