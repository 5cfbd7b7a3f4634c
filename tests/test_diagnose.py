"""`diagnose`: what it measures is right, planted faults are found, and healthy nets raise no alarm."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import chain
from helpers.models import MODELS
from helpers.reports import faults
from scipy import integrate

import jaxinit
from jaxinit import diagnose
from jaxinit._measuring._jacobian import _some

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(9), (128, 64))


RELU, TANH = chain(jax.nn.relu), chain(jnp.tanh)


def test_what_is_measured_is_what_a_plain_forward_and_backward_pass_give():
    keys = jax.random.split(KEY, 3)
    params = [jax.random.normal(k, (64, 64)) / 7 for k in keys]

    def apply_fn(params, x):
        return jnp.tanh(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]

    def loss_fn(output, x):
        return jnp.mean((output - x) ** 2)

    report = diagnose(params, apply_fn, X, loss_fn=loss_fn)
    z0 = X @ params[0]
    z1 = jax.nn.relu(z0) @ params[1]
    z2 = jnp.tanh(z1) @ params[2]
    np.testing.assert_allclose(report.pre_std, [z.std() for z in (z0, z1, z2)], rtol=1e-5)
    np.testing.assert_allclose(report.post_mean[:2], [jax.nn.relu(z0).mean(), jnp.tanh(z1).mean()], atol=1e-6)
    np.testing.assert_allclose(report.dead, 0)
    np.testing.assert_allclose(report.saturated[0], (z0 <= 0).mean(), atol=1e-6)
    slope = 1 - jnp.tanh(z1) ** 2
    np.testing.assert_allclose(report.saturated[1], (slope < 0.05).mean(), atol=1e-6)
    gradients = jax.grad(lambda p: loss_fn(apply_fn(p, X), X))(params)
    norms = [jnp.linalg.norm(g) for g in gradients]
    np.testing.assert_allclose(report.gradient_norm, norms, rtol=1e-4)
    ratios = [n / jnp.linalg.norm(p) for n, p in zip(norms, params, strict=True)]
    np.testing.assert_allclose(report.update_ratio, ratios, rtol=1e-4)
    at_z1 = jax.grad(lambda z: loss_fn(jnp.tanh(z) @ params[2], X))(z1)
    np.testing.assert_allclose(report.gradient_std[1], jnp.sqrt(jnp.mean(at_z1**2)), rtol=1e-4)
    some = np.asarray(jnp.tanh(z1))[::2]
    unit = some / np.linalg.norm(some, axis=1, keepdims=True)
    cosines = unit @ unit.T
    off = (cosines.sum() - 64) / (64 * 63)
    np.testing.assert_allclose(report.similarity[1], off, atol=1e-5)
    eigenvalues = np.linalg.eigvalsh(some @ some.T)
    np.testing.assert_allclose(report.effective_rank[1], eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-4)


def test_rows_of_a_scanned_stack_are_those_of_the_unrolled_network():
    init, apply_fn = TANH
    params = init(KEY, depth=3)

    def unrolled(params, x):
        for w, b in zip(params["hidden"]["w"], params["hidden"]["b"], strict=True):
            x = jnp.tanh(x @ w + b[None])
        return x @ params["out"]

    def separate(params, x):
        for layer in params["hidden"]:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return x @ params["out"]

    layers = [jax.tree.map(lambda a, i=i: a[i], params["hidden"]) for i in range(3)]
    scanned = diagnose(params, apply_fn, X)
    plain = diagnose({"hidden": layers, "out": params["out"]}, separate, X)
    assert [row.name for row in scanned.rows] == [*(f"hidden/w[{i}]" for i in range(3)), "out"]
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    assert len(diagnose(params, unrolled, X, lanczos_steps=0)) == 4


@pytest.mark.parametrize(("net", "name"), [(RELU, "relu"), (TANH, "tanh")])
def test_healthy_networks_raise_no_alarm_over_a_hundred_seeds(net, name):
    init, apply_fn = net
    reports = jax.jit(jax.vmap(lambda key: diagnose(init(key, depth=12), apply_fn, X, lanczos_steps=0)))(
        jax.random.split(KEY, 100)
    )
    alarms = [
        finding for i in range(100) for finding in jax.tree.map(lambda a, i=i: np.asarray(a)[i], reports).findings()
    ]
    assert not alarms
    assert reports.healthy
    assert "keep their size" in reports.verdict


def test_a_dead_block():
    init, apply_fn = RELU
    params = init(KEY)
    params["hidden"]["b"] = params["hidden"]["b"].at[7].set(-100.0)
    report = diagnose(params, apply_fn, X)
    assert faults(report) == {"dead": "hidden/w[7]"}
    assert "100% of the units of hidden/w[7] are dead" in report.verdict


def test_a_layer_scaled_by_a_hundred():
    for init, apply_fn in (RELU, TANH):
        params = init(KEY)
        params["hidden"]["w"] = params["hidden"]["w"].at[7].multiply(100.0)
        report = diagnose(params, apply_fn, X)
        assert faults(report)["outlier"] == "hidden/w[7]"
        assert "jaxinit.lsuv" in report.verdict


def test_saturated_tanh():
    init, apply_fn = TANH
    report = diagnose(init(KEY, init=jaxinit.normal(5.0)), apply_fn, X)
    assert faults(report)["saturated"] == "hidden/w[0]"
    assert "exploding gradient" in faults(report)


def test_small_and_large_gaussians():
    init, apply_fn = RELU
    small = diagnose(init(KEY, init=jaxinit.normal(0.01)), apply_fn, X)
    assert {"vanishing signal", "vanishing gradient"} <= set(faults(small))
    assert small.signal_growth == pytest.approx(0.01 * 32**0.5, rel=0.15)
    large = diagnose(init(KEY, init=jaxinit.normal(5.0)), apply_fn, X)
    assert {"exploding signal", "exploding gradient"} <= set(faults(large))
    overflow = diagnose(init(KEY, init=jaxinit.normal(1e4)), apply_fn, X)
    assert set(faults(overflow)) == {"overflow"}
    assert all(not np.isnan(x).any() for x in jax.tree.leaves(large))


def test_he_on_a_hundred_tanh_layers():
    init, apply_fn = TANH
    report = diagnose(init(KEY, depth=100, init=jaxinit.he_normal()), apply_fn, X)
    assert "exploding gradient" in faults(report)
    assert '"orthogonal_critical"' in report.verdict
    mended = jaxinit.initialize(KEY, init(KEY, depth=100), apply_fn, X, "orthogonal_critical")
    assert diagnose(mended, apply_fn, X).healthy


def chi(variance):
    """The mean-field factor by which squared gradients of a tanh network grow per layer."""

    def mean(f):
        return integrate.quad(lambda z: f(z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -10, 10)[0]

    q = 1.0
    for _ in range(200):
        q = variance * mean(lambda z, q=q: np.tanh(np.sqrt(q) * z) ** 2)
    return variance * mean(lambda z: (1 - np.tanh(np.sqrt(q) * z) ** 2) ** 2)


def test_the_growth_of_gradients_in_the_chaotic_phase_is_that_of_mean_field_theory():
    init, apply_fn = TANH
    start = jaxinit.variance_scaling(3.0, "fan_in", "normal")
    found = [
        float(diagnose(init(key, 30, start, width=256), apply_fn, jnp.tile(X, (1, 4)), lanczos_steps=0).gradient_growth)
        ** 2
        for key in jax.random.split(KEY, 6)
    ]
    error = np.std(found, ddof=1) / 6**0.5
    assert np.mean(found) == pytest.approx(chi(3.0), abs=4 * error + 0.01)
    assert error < 0.02
    assert abs(np.mean(found) - chi(2.5)) > 4 * error


def test_the_ordered_phase():
    init, apply_fn = TANH
    params = init(KEY, 30, jaxinit.variance_scaling(0.6, "fan_in", "normal"), bias=0.4)
    report = diagnose(params, apply_fn, X)
    assert {"ordered", "vanishing gradient"} <= set(faults(report))


def test_the_jacobian_of_a_linear_network_is_known():
    keys = jax.random.split(KEY, 2)
    q = jaxinit.orthogonal()(keys[0], (8, 8))
    matrix = q * jnp.arange(1.0, 9.0)[None]
    x = jax.random.normal(keys[1], (16, 8))
    conditions = [diagnose(matrix, lambda w, x: x @ w, x, lanczos_steps=n).jacobian_condition for n in (1, 2, 8)]
    assert conditions == sorted(conditions)
    assert conditions[0] == pytest.approx(1)
    assert conditions[1] > 1.5
    assert conditions[2] == pytest.approx(8, rel=1e-2)
    # The mean square is 25.5; that of one random sign vector has this standard deviation about it (Hutchinson 1990).
    gram = np.asarray(matrix @ matrix.T, np.float64)
    deviation = np.sqrt(2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2))) / 8
    seen = diagnose(matrix, lambda w, x: x @ w, jnp.tile(x, (64, 1)))  # at 16 samples
    assert float(seen.jacobian_mean_square) == pytest.approx(25.5, abs=5 * deviation / 4)
    tokens = diagnose(jnp.ones((5, 3)), lambda table, t: table[t], jnp.array([0, 1, 4]))
    assert tokens.jacobian_condition is None
    assert diagnose(matrix, lambda w, x: x @ w, X[:, :8], lanczos_steps=0).jacobian_condition is None


def test_the_jacobian_is_of_the_whole_batch_where_samples_are_not_along_the_first_axis():
    matrix, graph = jnp.eye(8), jnp.ones((128, 128))
    sizes = {
        "time first": (lambda w, x: (x @ w).sum(0), jnp.ones((128, 4, 8)), 128.0),
        "a graph": (lambda w, x: x[1] @ x[0] @ w, (jnp.ones((128, 8)), graph), None),
        "a batch of this size": (lambda w, x: (x @ w).reshape(128, 8), jnp.ones((128, 8)), 1.0),
        "no batch": (lambda w, x: x @ w, jnp.ones(8), 1.0),
    }
    for name, (apply_fn, batch, mean_square) in sizes.items():
        report = diagnose(matrix, apply_fn, batch)
        assert np.isfinite(report.jacobian_mean_square), name
        assert mean_square is None or float(report.jacobian_mean_square) == pytest.approx(mean_square), name


def test_the_jacobian_is_of_the_whole_batch_where_samples_meet():
    keys = jax.random.split(KEY, 2)
    params, x = jax.random.normal(keys[0], (4, 5)) / 2, jax.random.normal(keys[1], (128, 4))

    def with_batch_statistics(w, x):
        h = x @ w
        return (h - h.mean(0)[None]) / jnp.sqrt(h.var(0)[None] + 1e-5)

    def with_own_statistics(w, x):
        h = x @ w
        return (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5)

    def with_one_another(w, x):
        return jax.nn.softmax(x @ x.T) @ x @ w

    seen = {f: _some(f, params, x).shape[0] for f in (with_batch_statistics, with_one_another, with_own_statistics)}
    assert list(seen.values()) == [128, 128, 2]
    jacobian = jax.jacobian(lambda x: with_batch_statistics(params, x))(x).reshape(640, 512)
    singular = np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False)
    report = diagnose(params, with_batch_statistics, x)
    # By one random sign vector: within five of its standard deviations, which are less than 2 / sqrt(512) here.
    assert float(report.jacobian_mean_square) == pytest.approx(np.mean(singular**2), rel=10 / np.sqrt(512))


def test_functions_with_derivatives_of_their_own_keep_them():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (3 * g,))
    params = [jax.random.normal(k, (64, 64)) / 8 for k in jax.random.split(KEY)]

    def apply_fn(params, x):
        return straight_through(jax.nn.softplus(x @ params[0])) @ params[1]

    def loss_fn(output, x):
        return jnp.sum(output**2)

    report = diagnose(params, apply_fn, X, loss_fn=loss_fn)
    expected = jax.grad(lambda p: loss_fn(apply_fn(p, X), X))(params)
    np.testing.assert_allclose(report.gradient_norm, [jnp.linalg.norm(g) for g in expected], rtol=1e-4)
    assert report.gradient_norm[0] > 0


@pytest.mark.parametrize(
    "name",
    [
        "linen_resnet",
        "linen_decoder",
        pytest.param("linen_lstm", marks=pytest.mark.slow),
        pytest.param("nnx_convnet", marks=pytest.mark.slow),
        "plain_while_loop",
    ],
)
def test_any_model_can_be_diagnosed(name):
    params, apply_fn, batch = MODELS[name]()
    report = diagnose(params, apply_fn, batch)
    assert len(report) == len(np.asarray(report.pre_std))
    assert all(not np.isnan(x).any() for x in jax.tree.leaves(report))
    assert (report.gradient_std is None) == (name == "plain_while_loop")
    assert str(report)


def test_seeds_jit_and_summary():
    init, apply_fn = RELU
    keys = jax.random.split(KEY, 5)
    reports = jax.jit(jax.vmap(lambda key: diagnose(init(key, depth=4), apply_fn, X, lanczos_steps=0)))(keys)
    one = diagnose(init(keys[2], depth=4), apply_fn, X, lanczos_steps=0)
    np.testing.assert_allclose(reports.pre_std[2], one.pre_std, rtol=1e-4)
    summary = reports.summary()
    np.testing.assert_allclose(summary.means["pre_std"], reports.pre_std.mean(0), rtol=1e-6)
    half = 2.776 * np.asarray(reports.pre_std).std(0, ddof=1) / 5**0.5
    np.testing.assert_allclose(summary.halves["pre_std"], half, rtol=1e-3)
    assert "±" in str(summary)
    assert json.loads(json.dumps(summary.to_dict()))["rows"][0] == "hidden/w[0]"
    assert "medians over seeds" in str(reports)
    with pytest.raises(ValueError, match="vmap diagnose over seeds"):
        one.summary()
    with pytest.raises(ValueError, match="confidence must be less than 1"):
        reports.summary(95)


def test_the_report_is_data_text_and_html():
    init, apply_fn = RELU
    report = diagnose(init(KEY, init=jaxinit.normal(0.01)), apply_fn, X)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["rows"][0]["activation"] == "relu"
    assert data["verdict"][0].startswith("Signals shrink (×0.0")
    assert "<pre>" in report._repr_html_()
    assert "per layer in the backward pass" in str(report)


def test_bad_input():
    init, apply_fn = RELU
    params = init(KEY)
    with pytest.raises(ValueError, match="diagnose needs finite params, but params/hidden/b"):
        diagnose(jax.tree.map(lambda x: x * jnp.nan, params), apply_fn, X)
    with pytest.raises(TypeError, match="apply_fn must be a function"):
        diagnose(params, None, X)
    with pytest.raises(ValueError, match="lanczos_steps must be 0 or more"):
        diagnose(params, apply_fn, X, lanczos_steps=-1)
    with pytest.raises(TypeError, match=r"loss_fn must be a function of .output of apply_fn, batch.*got 'mse'"):
        diagnose(params, apply_fn, X, loss_fn="mse")


def he_net(key, depth=8, width=32):
    return [jaxinit.he_normal()(k, (width, width)) for k in jax.random.split(key, depth)]


def relu_net(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return x


def test_readouts_and_branches_that_start_at_zero_are_no_fault():
    x = jax.random.normal(KEY, (64, 32))
    params = he_net(KEY, depth=4)
    params[-1] = jnp.zeros_like(params[-1])

    def linear_readout(params, x):
        return relu_net(params[:-1], x) @ params[-1]

    assert diagnose(params, linear_readout, x, lanczos_steps=0).healthy

    def residual(params, x):
        x = x @ params["in"]
        for a, b in params["blocks"]:
            x = x + jax.nn.relu(x @ a) @ b
        return x @ params["out"]

    w = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    shapes = {"in": w, "blocks": [(w, w)] * 6, "out": w}
    for scheme in ("fixup", "auto", "gpt2"):
        report = diagnose(jaxinit.initialize(KEY, shapes, residual, x, scheme), residual, x, lanczos_steps=0)
        assert report.healthy, (scheme, report.verdict)


def test_gradients_that_pooling_spreads_over_positions_do_not_vanish():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features in (16, 32, 32, 64):
                x = nn.relu(nn.Conv(features, (3, 3), kernel_init=jaxinit.he_normal())(x))
                n, h, w, c = x.shape
                x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
            x = nn.relu(nn.Dense(64, kernel_init=jaxinit.he_normal())(x.mean((1, 2))))
            return nn.Dense(10)(x)

    # Smooth images: white noise would be averaged away.
    x = jax.image.resize(jax.random.normal(KEY, (32, 4, 4, 3)), (32, 32, 32, 3), "cubic")
    net = Net()
    init = jax.jit(net.init)
    for key in jax.random.split(KEY, 3):
        report = diagnose(init(key, x), net.apply, x, lanczos_steps=0)
        assert not {"vanishing gradient", "exploding gradient"} & set(faults(report)), report.verdict


def test_recurrent_cells_are_judged_by_all_their_steps():
    def apply_fn(params, x):
        def step(h, xt):
            return jnp.tanh(xt @ params["in"] + h @ params["hidden"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((x.shape[1], 64)), x)
        return h @ params["out"]

    shapes = {
        name: jax.ShapeDtypeStruct((n, m), jnp.float32)
        for name, n, m in (("in", 8, 64), ("hidden", 64, 64), ("out", 64, 4))
    }
    x = jax.random.normal(KEY, (60, 32, 8))
    params = jaxinit.initialize(KEY, shapes, apply_fn, x, "recurrent")
    assert diagnose(params, apply_fn, x, lanczos_steps=0).healthy

    class Memory(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.RNN(nn.LSTMCell(32))(x)[:, -1])

    x = jax.random.normal(KEY, (64, 40, 8))
    model = Memory()
    params = jax.jit(model.init)(KEY, x)
    assert diagnose(params, model.apply, x, lanczos_steps=0).healthy
    runaway = diagnose(jax.tree.map(lambda w: 50 * w, params), model.apply, x)
    assert "exploding gradient" in faults(runaway)


def test_what_is_not_finite_zero_or_missing_is_said():
    x = jax.random.normal(KEY, (64, 32))
    params = he_net(KEY, depth=4)
    assert faults(diagnose(params, lambda p, x: jnp.log(-jnp.abs(relu_net(p, x)) - 1), x)).keys() == {"not finite"}
    assert faults(diagnose(params, relu_net, x, loss_fn=lambda output, batch: 3.0)).keys() == {"no gradient"}
    assert faults(diagnose([0 * w for w in params], relu_net, x)).keys() == {"zero weights"}
    assert faults(diagnose(params, relu_net, 0 * x)).keys() == {"blank batch"}
    assert faults(diagnose(params, relu_net, jnp.ones_like(x))).keys() == {"equal samples"}
    nothing = diagnose(params, lambda p, x: x @ jnp.tanh(p[0]), x)
    assert "no layer" in nothing.verdict
    assert not nothing.healthy
    with pytest.raises(ValueError, match="returns one number, got shape"):
        diagnose(params, relu_net, x, loss_fn=lambda output, batch: output)


def test_large_outputs_are_worth_a_word_and_blocks_of_unlike_layers_are_none():
    x = jax.random.normal(KEY, (64, 32))
    verdict = diagnose(he_net(KEY, depth=2), relu_net, 100 * x, lanczos_steps=0).verdict
    assert "the output of 1 has a size of 1e+02: look at the scale of the data" in verdict

    def blocks(params, x):
        for up, down in params:
            x = x + jax.nn.relu(x @ up) @ down
        return x

    keys = jax.random.split(KEY, 3)
    params = [tuple(factor * w for factor, w in zip((1, 0.01), he_net(k, depth=2), strict=True)) for k in keys]
    verdict = diagnose(params, blocks, x, lanczos_steps=0).verdict
    assert verdict == "Signals and gradients keep their size through all layers."


def test_one_sample_and_one_number_are_enough_and_no_sample_is_not():
    w = jnp.arange(8.0)
    assert diagnose(w, lambda w, x: x @ w, jnp.ones(8)).healthy
    report = diagnose(w[:, None], lambda w, x: x @ w, jnp.ones((1, 8)))
    assert report.healthy
    np.testing.assert_allclose(report.gradient_norm, 8**0.5 * float(report.gradient_std[0]), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one sample"):
        diagnose(w[:, None], lambda w, x: x @ w, jnp.ones((0, 8)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_sizes_whose_squares_float32_does_not_hold(scale):
    w = jax.random.normal(KEY, (X.shape[1], 40))

    def apply_fn(w, x):
        return x @ w

    def loss_fn(output, x):
        return jnp.mean(output)

    report, scaled = (diagnose(s * w, apply_fn, X, loss_fn=loss_fn) for s in (1, scale))
    np.testing.assert_allclose(scaled.pre_std, scale * report.pre_std, rtol=1e-5)
    np.testing.assert_allclose(scaled.gradient_norm, report.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(scaled.update_ratio, report.update_ratio / scale, rtol=1e-5)


def test_modules_with_batch_statistics_and_dropout():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(32)(x)))
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(x))

    variables = jax.jit(Net().init)({"params": KEY, "dropout": KEY}, X)

    def apply_fn(variables, x):
        return Net().apply(variables, x, rngs={"dropout": KEY}, mutable=["batch_stats"])[0]

    assert diagnose(variables, apply_fn, X).healthy


def test_rows_of_a_flipped_stack_are_named_by_the_slices_of_the_leaf():
    widths = jnp.array([1.0, 2.0, 4.0])
    w = widths[:, None, None] * jax.random.normal(jax.random.key(0), (3, 16, 16))
    x = jax.random.normal(jax.random.key(1), (64, 16))

    def apply_fn(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w[::-1])[0]

    report, straight = diagnose(w, apply_fn, x), diagnose(w[::-1], lambda w, x: apply_fn(w[::-1], x), x)
    assert [row.name for row in report.rows] == ["[2]", "[1]", "[0]"]
    for name in ("pre_std", "update_ratio", "gradient_norm"):
        np.testing.assert_allclose(getattr(report, name), getattr(straight, name), rtol=1e-4)


def residual_block(x, p):
    return x + jax.nn.gelu(x @ p["in"] + p["b"][None]) @ p["out"]


def scanned_blocks(block):
    return lambda p, x: jax.lax.scan(lambda x, p: (block(x, p), None), x, p)[0]


def unrolled_blocks(block):
    def apply_fn(p, x):
        for i in range(len(p["b"])):
            x = block(x, jax.tree.map(lambda leaf: leaf[i], p))  # noqa: B023
        return x

    return apply_fn


def counted_blocks(block):
    def apply_fn(p, x):
        return jax.lax.fori_loop(0, len(p["b"]), lambda i, x: block(x, jax.tree.map(lambda leaf: leaf[i], p)), x)

    return apply_fn


def blocks_of(depth):
    """Parameters of this many residual blocks; and shapes of a large batch, so activations need the most memory."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"in": jax.random.normal(keys[0], (depth, 8, 32)) / 3, "b": jnp.zeros((depth, 32))}
    params["out"] = jax.random.normal(keys[1], (depth, 32, 8)) / 16
    return params, jax.ShapeDtypeStruct((4096, 8), jnp.float32)


def temporary_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def own_and_measured(apply_fn, depth):
    """Bytes that the gradient needs as users compute it, and that `diagnose` needs."""
    own = temporary_bytes(jax.grad(lambda p, x: apply_fn(p, x).sum()), *blocks_of(depth))
    return np.array([own, temporary_bytes(lambda p, x: diagnose(p, apply_fn, x, lanczos_steps=0), *blocks_of(depth))])


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable], ids=["nothing", "dots"])
@pytest.mark.parametrize("blocks", [scanned_blocks, counted_blocks])
def test_a_loop_of_checkpointed_blocks_takes_hardly_more_memory_than_its_gradient(blocks, policy):
    own, measured = own_and_measured(blocks(jax.checkpoint(residual_block, policy=policy)), 96)
    assert measured < 1.2 * own
    if policy is None:
        plain = own_and_measured(blocks(residual_block), 96)
        assert min(plain) > 4 * measured


def test_each_checkpointed_block_adds_what_it_adds_to_the_gradient():
    apply_fn = unrolled_blocks(jax.checkpoint(residual_block))
    # Of few blocks the peak lies elsewhere: a constant for the statistics of a few layers at once.
    own, measured = own_and_measured(apply_fn, 21) - own_and_measured(apply_fn, 9)
    assert measured < 1.2 * own


@pytest.mark.parametrize("blocks", [scanned_blocks, unrolled_blocks])
def test_checkpoint_changes_nothing_that_is_measured(blocks):
    params, x = blocks_of(4)[0], jax.random.normal(KEY, (64, 8))
    checkpointed = jax.checkpoint(residual_block, policy=jax.checkpoint_policies.dots_saveable)
    found, expected = (diagnose(params, blocks(block), x) for block in (checkpointed, residual_block))
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("paced", [True, False])
def test_a_weight_that_a_step_size_multiplies_may_be_small(paced):
    """As in state-space models; without the step size the same weight is a planted fault."""

    def apply_fn(params, x):
        x = jnp.tanh(x @ params["in"])
        step = jnp.exp(params["log_step"])
        driven = x @ (params["b"] * (step if paced else 0.01 * jnp.ones_like(step))[None])
        states = jax.lax.scan(lambda h, u: (jnp.exp(-step)[None] * h + u,) * 2, jnp.zeros_like(driven[0]), driven)[1]
        y = states @ params["c"]
        y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True))
        return jnp.tanh(y @ params["up"]) @ params["out"]

    keys = dict(zip(["in", "b", "c", "up", "out"], jax.random.split(KEY, 5), strict=True))
    params = {name: jax.random.normal(key, (48, 48)) / 48**0.5 for name, key in keys.items()}
    params["log_step"] = jnp.full(48, jnp.log(0.01))
    report = diagnose(params, apply_fn, jax.random.normal(KEY, (20, 32, 48)))
    assert report.rows[1].paced == paced
    assert faults(report).get("outlier") == (None if paced else "b")
