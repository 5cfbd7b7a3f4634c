"""`rbm_pretrain`: its gradient against enumeration, the likelihood, its features, and which models it accepts."""

import itertools
import json

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import expit, logsumexp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import jaxinit
from jaxinit import rbm_pretrain, schemes
from jaxinit._rbm._contrastive_divergence import Machine, divergence_gradient, trained

KEY = jax.random.key(0)
# Of each four columns the second and third are copies of the first: something to learn.
DATA = jnp.repeat(jax.random.bernoulli(jax.random.key(1), 0.5, (80, 6)), jnp.array([3, 1, 3, 1, 3, 1]), axis=1).astype(
    jnp.float32
)
STEPS = 300
"""The same sizes and steps in most tests: one compilation serves them all."""


def states(units):
    """All states of binary units, one per row."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


def log_likelihood(machine, data):
    """Mean log p(v) over the rows of data, with the sum over all states of the hidden units in Z."""
    weight, b, c = (np.asarray(x, np.float64) for x in machine)

    def log_unnormalised(rows, own, other, weight):
        return rows @ own + np.logaddexp(0, other + rows @ weight).sum(1)

    return np.mean(log_unnormalised(data, b, c, weight)) - logsumexp(log_unnormalised(states(len(c)), c, b, weight.T))


def mean_gradient(machine, data, cd_steps):
    """The expectation of contrastive divergence, from the transition matrix of the hidden units' chain.

    With `cd_steps=None`, the gradient of the log-likelihood.
    """
    weight, b, c = (np.asarray(x, np.float64) for x in machine)
    v, h = states(len(b)), states(len(c))

    def chances(rows, probabilities):
        return np.prod(np.where(rows[None] == 1, probabilities[:, None], 1 - probabilities[:, None]), -1)

    positive = expit(c + data @ weight)
    to_visible, to_hidden = chances(v, expit(b + h @ weight.T)), chances(h, expit(c + v @ weight))
    if cd_steps is None:
        joint = np.exp(v @ b + np.logaddexp(0, c + v @ weight).sum(1))
        share, seen, heard = joint / joint.sum(), v, expit(c + v @ weight)
    else:
        step = to_visible @ to_hidden
        share = chances(h, positive).mean(0) @ np.linalg.matrix_power(step, cd_steps - 1)
        seen = expit(b + h @ weight.T)
        heard = expit(c + seen @ weight)
    return (
        data.T @ positive / len(data) - seen.T @ (share[:, None] * heard),
        data.mean(0) - share @ seen,
        positive.mean(0) - share @ heard,
    )


def tiny():
    """A machine of 4 and 3 units with weights of order two, and four samples."""
    r = np.random.default_rng(3)
    machine = Machine(2 * r.normal(size=(4, 3)), r.normal(size=4), r.normal(size=3))
    return machine, np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0.0]])


def distance(a, b):
    return max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("cd_steps", [1, 3])
def test_the_mean_of_the_gradient_is_that_of_the_enumerated_chain(cd_steps):
    machine, data = tiny()
    repeated = jnp.tile(jnp.asarray(data, jnp.float32), (1 << 16, 1))
    wanted = Machine(*(jnp.asarray(x, jnp.float32) for x in machine))
    found = jax.jit(divergence_gradient, static_argnums=3)(KEY, wanted, repeated, cd_steps)
    # Means over 262,144 chains of numbers between 0 and 1: a standard error of 0.001 at most. Five of them in any of
    # 19 entries: a false alarm in 1e5. Chains one step longer are 0.015 away.
    expected = mean_gradient(machine, data, cd_steps)
    assert distance(found, expected) < 0.005
    assert distance(expected, mean_gradient(machine, data, cd_steps + 1)) > 0.015


def test_long_chains_give_the_gradient_of_the_likelihood():
    machine, data = tiny()
    exact = mean_gradient(machine, data, None)

    def moved(direction, step):
        return log_likelihood([x + step * d for x, d in zip(machine, direction, strict=True)], data)

    slope = (moved(exact, 1e-4) - moved(exact, -1e-4)) / 2e-4
    assert slope == pytest.approx(sum(float(np.sum(g**2)) for g in exact), rel=1e-4)
    # Sampled throughout it would be exact in the limit; a last step in probabilities leaves a bias.
    scale = distance(exact, [0 * g for g in exact])
    deviations = [distance(mean_gradient(machine, data, k), exact) / scale for k in (1, 3, 30)]
    assert deviations == pytest.approx([0.262, 0.041, 0.013], abs=0.001)


def bars_and_stripes(n=3):
    """Images whose columns, or whose rows, are constant."""
    stripes = np.repeat(states(n)[:, None], n, 1)
    return np.unique(np.concatenate([stripes, stripes.swapaxes(1, 2)]).reshape(-1, n * n), axis=0)


def one_layer(data, hidden, **stored):
    """A sigmoid layer and a readout in plain JAX."""
    visible = data.shape[1]
    params = {"w": jnp.zeros((visible, hidden)), "b": jnp.ones(hidden), "out": jnp.ones((hidden, 2))}
    return params | stored, lambda params, x: jax.nn.sigmoid(x @ params["w"] + params["b"][None]) @ params["out"]


def test_training_raises_the_likelihood_of_bars_and_stripes():
    data = bars_and_stripes()
    assert len(data) == 14
    params, apply_fn = one_layer(data, 10)
    new, report = rbm_pretrain(KEY, params, apply_fn, jnp.asarray(data, jnp.float32), steps=4000, return_report=True)
    found = log_likelihood((new["w"], report.visible_bias[0], new["b"]), data)
    # Nine fair coins have -6.24, which is where the fresh machine is; -2.64 is all that can be had.
    assert -log_likelihood((np.zeros((9, 10)), np.zeros(9), np.zeros(10)), data) == pytest.approx(9 * np.log(2))
    assert found > -5
    assert report.after[0] < 0.25 * report.before[0]
    options = {"hidden": 10, "has_bias": True, "steps": 4000, "minibatch": 64, "cd_steps": 1}
    downhill, *_ = trained(KEY, jnp.asarray(data, jnp.float32), -0.1, 0.9, **options)
    assert log_likelihood(downhill, data) < -10


def nudged_digits():
    """Scikit-learn's digits, and each of them moved by a pixel up, down, left and right; in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    padded = np.pad(images.reshape(-1, 8, 8) / 16, ((0, 0), (1, 1), (1, 1)))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    moved = [padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i, j in corners]
    return np.concatenate(moved).astype(np.float32), np.tile(labels, 5)


def test_features_of_digits_classify_better_than_pixels():
    images, labels = nudged_digits()
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:7188], order[7188:]
    params, apply_fn = one_layer(images, 100)
    new = rbm_pretrain(KEY, params, apply_fn, images[train])

    def accuracy(features):
        with threadpool_limits(1):
            readout = LogisticRegression(C=10.0, max_iter=2000).fit(features[train], labels[train])
            return readout.score(features[test], labels[test])

    # 1,797 test images: the standard error of an accuracy of 0.8 is 0.01.
    pixels = accuracy(images)
    assert pixels < 0.82
    assert accuracy(np.asarray(jax.nn.sigmoid(images @ new["w"] + new["b"][None]))) > pixels + 0.1
    fresh = np.asarray(jax.nn.sigmoid(images @ (0.01 * jax.random.normal(KEY, (64, 100)))))
    assert accuracy(fresh) < pixels + 0.05


LAYOUTS = {
    "transposed": (lambda w: w.T, lambda s: s.T),
    "flat": (lambda w: w.T.reshape(-1), lambda s: s.reshape(6, 12).T),
    "reversed": (lambda w: w[::-1], lambda s: s[::-1]),
    "axes joined": (
        lambda w: w.reshape(3, 4, 2, 3).transpose(3, 1, 0, 2),
        lambda s: s.transpose(2, 1, 3, 0).reshape(12, 6),
    ),
    "a slice": (lambda w: jnp.stack([0 * w, w, 0 * w + 7]), lambda s: s[1]),
    "half precision": (lambda w: w, lambda s: s.astype(jnp.bfloat16).astype(jnp.float32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_program_finds_what_was_learned_however_the_weight_is_stored(layout):
    store, use = LAYOUTS[layout]
    params, apply_fn = one_layer(DATA, 6)
    expected = rbm_pretrain(jax.random.key(5), params, apply_fn, DATA, steps=STEPS)
    stored = {"w": store(params["w"]), "b": jnp.full((2, 1, 6), 7.0)}

    def other_fn(params, x):
        return jax.nn.sigmoid(params["b"][1] + (use(params["w"]).T @ x.T).T)

    new, report = rbm_pretrain(jax.random.key(5), stored, other_fn, DATA, steps=STEPS, return_report=True)
    if layout == "a slice":
        # Another name is another key; what lies beside the slice stays.
        assert report.paths == ("w[1:2, 0:12, 0:6]",)
        assert np.all(new["w"][0] == 0)
        assert np.all(new["w"][2] == 7)
        assert np.all(new["w"][1] != 0)
    else:
        np.testing.assert_allclose(new["w"], store(expected["w"]), atol=1e-6)
        np.testing.assert_allclose(new["b"][1, 0], expected["b"], atol=1e-6)
    assert np.all(new["b"][0] == 7)


def test_each_layer_learns_from_the_trained_ones_below():
    sizes = [12, 6, 6, 6, 3]
    params = {f"w{i}": jnp.ones(s) for i, s in enumerate(itertools.pairwise(sizes))}
    params |= {f"b{i}": jnp.ones(n) for i, n in enumerate(sizes[1:])}

    def apply_fn(params, x, depth=4):
        for i in range(depth):
            x = x @ params[f"w{i}"] + params[f"b{i}"][None]
            x = x if i == 3 else jax.nn.sigmoid(x).reshape(-1, 2, x.shape[-1]).reshape(x.shape)
        return x

    new, report = rbm_pretrain(KEY, params, apply_fn, DATA, steps=STEPS, return_report=True)
    assert report.paths == ("w0", "w1", "w2")
    assert report.sizes == ((12, 6), (6, 6), (6, 6))
    assert report.others == (("w3", "is followed by no activation, not by a sigmoid"),)
    assert np.all(new["w3"] == 1)
    assert np.all(new["b3"] == 1)
    for i in (1, 2):
        below = apply_fn(new, DATA, depth=i)
        alone = {f"w{i}": params[f"w{i}"], f"b{i}": params[f"b{i}"]}
        single = rbm_pretrain(
            KEY, alone, lambda p, x, i=i: jax.nn.sigmoid(x @ p[f"w{i}"] + p[f"b{i}"][None]), below, steps=STEPS
        )
        np.testing.assert_allclose(single[f"w{i}"], new[f"w{i}"], atol=1e-5)
        np.testing.assert_allclose(single[f"b{i}"], new[f"b{i}"], atol=1e-5)


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(6)(x / 16))
        return nn.Dense(12)(nn.tanh(nn.Dense(4)(x)))


def linen():
    module = Autoencoder()
    return module.init(KEY, DATA), module.apply, ["params/Dense_0/kernel"]


def by_nnx():
    module = nnx.Sequential(
        lambda x: x / 16,
        nnx.Linear(12, 6, rngs=nnx.Rngs(0)),
        nnx.sigmoid,
        nnx.Linear(6, 6, rngs=nnx.Rngs(1)),
        nnx.sigmoid,
    )
    graphdef, state = nnx.split(module)
    return state, lambda state, x: nnx.merge(graphdef, state)(x), ["layers/1/kernel", "layers/3/kernel"]


def equinox():
    module = eqx.nn.MLP(12, 6, 6, 2, activation=jax.nn.sigmoid, final_activation=jax.nn.sigmoid, key=KEY)
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply_fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x / 16)

    return params, apply_fn, [f"layers/{i}/weight" for i in range(3)]


@pytest.mark.parametrize("framework", [linen, by_nnx, equinox])
def test_every_framework_looks_the_same(framework):
    params, apply_fn, paths = framework()
    before = jax.tree.map(jnp.array, params)
    new, report = rbm_pretrain(KEY, params, apply_fn, 16 * DATA, steps=STEPS, return_report=True)
    assert [path.removesuffix("/value") for path in report.paths] == paths
    assert jax.tree.structure(new) == jax.tree.structure(params)
    chex.assert_trees_all_equal(params, before)
    assert all(after < before for before, after in zip(report.before, report.after, strict=True))


def run(key, rate, data=DATA):
    params, apply_fn = one_layer(DATA, 6)
    return rbm_pretrain(key, params, apply_fn, data, steps=STEPS, learning_rate=rate, return_report=True)


# In the tests that follow weights are of order one. Where rounding decides a hidden unit's sample, it makes 0.01.


def test_jit_and_vmap_over_keys_and_rates_give_the_same():
    keys, rates = jax.random.split(KEY, 3), jnp.array([0.01, 0.02, 0.05])
    mapped, reports = jax.jit(jax.vmap(run))(keys, rates)
    assert reports.before[0].shape == (3,)
    assert "w" in str(reports)
    for i in range(3):
        one, _ = run(keys[i], float(rates[i]))
        for name in one:
            np.testing.assert_allclose(mapped[name][i], one[name], atol=0.03)
    assert np.max(np.abs(mapped["w"][1] - run(keys[0], 0.02)[0]["w"])) > 0.3


@pytest.mark.slow
def test_a_sharded_batch_gives_the_same():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(DATA, NamedSharding(mesh, PartitionSpec("devices")))
    np.testing.assert_allclose(run(KEY, 0.02, split)[0]["w"], run(KEY, 0.02)[0]["w"], atol=0.03)


def test_weights_are_rounded_once():
    params, apply_fn = one_layer(DATA, 6)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    new = rbm_pretrain(KEY, half, apply_fn, DATA.astype(jnp.bfloat16), steps=STEPS)
    reference = rbm_pretrain(KEY, params, apply_fn, DATA, steps=STEPS)
    for name in params:
        np.testing.assert_array_equal(new[name], reference[name].astype(jnp.bfloat16))


@pytest.mark.slow
def test_double_precision(x64):
    params, apply_fn = one_layer(DATA, 6)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    new = rbm_pretrain(KEY, params, apply_fn, DATA.astype(jnp.float64), steps=STEPS)
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float64")}
    assert np.any(new["w"] != new["w"].astype(jnp.float32).astype(jnp.float64))


@pytest.mark.slow
def test_a_single_unit_without_bias():
    params, _ = one_layer(DATA, 6, one=jnp.zeros(6))

    def apply_fn(params, x):
        return jax.nn.sigmoid(jax.nn.sigmoid(x @ params["w"] + params["b"][None]) @ params["one"])

    new, report = rbm_pretrain(KEY, params, apply_fn, DATA, steps=STEPS, return_report=True)
    assert report.sizes == ((12, 6), (6, 1))
    assert np.all(new["one"] != 0)


def dense_then(function):
    return lambda p, x: function(x @ p["a"])


def tied(p, x):
    return jax.nn.sigmoid(jax.nn.sigmoid(x @ p["a"] + p["b"][None]) @ p["a"].T)


def looped(p, x):
    return jax.lax.fori_loop(0, 2, lambda i, x: jax.nn.sigmoid(x @ p["a"]), x)


def convolved(p, x):
    return jax.nn.sigmoid(jax.lax.conv_general_dilated(x[:, None], p["a"][:, :1, None], (1,), "SAME"))


MISFITS = {
    "a is followed by tanh, not by a sigmoid": dense_then(jnp.tanh),
    "a is followed by no activation, not by a sigmoid": dense_then(lambda x: x),
    "a is of kind 'einsum', not dense": lambda p, x: jax.nn.sigmoid(
        jnp.tensordot(x.reshape(-1, 3, 4), p["a"].reshape(3, 4, 12))
    ),
    "is of kind 'conv', not dense": convolved,
    "a is used inside a loop or a branch": looped,
    "a has a weight that the program computes": lambda p, x: jax.nn.sigmoid(x @ (3 * p["a"])),
    "a has a bias that is not a vector of its own": lambda p, x: jax.nn.sigmoid(x @ p["a"] + 2 * p["b"][None]),
    "does not qualify: the program has no layers": lambda p, x: jax.nn.sigmoid(x),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_misfit_names_the_first_layer_and_what_is_in_the_way(message):
    params = {"a": jnp.ones((12, 12)), "b": jnp.ones(12)}
    with pytest.raises(schemes.MisfitError, match=message):
        rbm_pretrain(KEY, params, MISFITS[message], DATA)


def skipped(p, x):
    return jax.nn.sigmoid((x[:, :6] + jax.nn.sigmoid(x @ p["a"] + p["b"][None])) @ p["c"])


def one_bias(p, x):
    return jax.nn.sigmoid(jax.nn.sigmoid(x @ p["a"] + p["b"][None]) @ p["c"] + p["b"][None])


@pytest.mark.parametrize(
    ("apply_fn", "reason"),
    [
        (skipped, "does not take the output of a as it is"),
        (one_bias, "shares its weight or its bias with a layer below"),
        (lambda p, x: jax.nn.relu(jax.nn.sigmoid(x @ p["a"] + p["b"][None]) @ p["c"]), "is followed by relu"),
    ],
)
def test_the_chain_ends_at_the_first_layer_that_does_not_fit(apply_fn, reason):
    params = {"a": jnp.ones((12, 6)), "b": jnp.ones(6), "c": jnp.ones((6, 6)), "d": jnp.ones((6, 3))}
    new, report = rbm_pretrain(
        KEY, params, lambda p, x: jax.nn.sigmoid(apply_fn(p, x) @ p["d"]), DATA, steps=STEPS, return_report=True
    )
    assert report.paths == ("a",)
    (c, why), d = report.others
    assert (c, d) == ("c", ("d", "comes after c"))
    assert why.startswith(reason)
    assert np.all(new["c"] == 1)
    assert np.all(new["d"] == 1)


def test_the_decoder_of_a_tied_autoencoder_shares_what_the_encoder_learned():
    new, report = rbm_pretrain(
        KEY, {"a": jnp.ones((12, 6)), "b": jnp.ones(6)}, tied, DATA, steps=STEPS, return_report=True
    )
    assert len(report) == 1
    assert report.visible_bias[0].shape == (12,)
    assert tied(new, DATA).shape == DATA.shape


BAD = [
    ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
    ({"minibatch": 1.5}, TypeError, "minibatch must be an integer, got 1.5"),
    ({"cd_steps": 0}, ValueError, "cd_steps must be 1 or more"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate must be a positive finite number"),
    ({"momentum": 1.0}, ValueError, "momentum must be below 1"),
    ({"momentum": -0.1}, ValueError, "momentum must be a finite number, zero or more"),
    ({"key": 3}, TypeError, "rbm_pretrain.* takes a key such as"),
    (
        {"batch": 2 * DATA},
        ValueError,
        r"the input of w as probabilities, in \[0, 1\], but it is between 0 and 2; rescale",
    ),
    ({"batch": DATA * jnp.nan}, ValueError, "between nan and nan"),
    ({"batch": DATA[:0]}, ValueError, r"the input of w is empty, of shape \(0, 12\)"),
    ({"params": jax.eval_shape(lambda: one_layer(DATA, 6)[0])}, TypeError, "b is a ShapeDtypeStruct; make arrays"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_input(changed, error, message):
    params, apply_fn = one_layer(DATA, 6)
    arguments = {"key": KEY, "params": params, "apply_fn": apply_fn, "batch": DATA} | changed
    with pytest.raises(error, match=message):
        rbm_pretrain(**arguments)


def test_the_report_is_data_text_and_html():
    params, apply_fn = one_layer(DATA, 6)
    _, report = rbm_pretrain(KEY, params, apply_fn, DATA, steps=STEPS, return_report=True)
    assert isinstance(report, jaxinit.RbmReport)
    plain = json.loads(json.dumps(report.to_dict()))
    assert (plain["layers"][0]["visible"], plain["layers"][0]["hidden"]) == (12, 6)
    assert len(plain["layers"][0]["visible_bias"]) == 12
    assert "left as it is: out is followed by no activation" in str(report)
    assert "<pre>" in report._repr_html_()
