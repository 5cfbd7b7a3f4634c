"""`fit_readout`: the first loss is that of the best constant, for any loss, head and framework."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.compilations import compilations

import jaxinit
import jaxinit.nnx

KEYS = jax.random.split(jax.random.key(0), 6)
X = jax.random.normal(KEYS[0], (1000, 8))


def net(units):
    params = {
        "hidden": jax.random.normal(KEYS[1], (8, 64)) / 2,
        "kernel": jax.random.normal(KEYS[2], (64, units)) / 8**0.5,
        "bias": jax.random.normal(KEYS[3], (units,)),
    }
    return params, lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["kernel"] + p["bias"][None]


def entropy(p):
    p = np.asarray(p, np.float64)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def cross_entropy(params, apply_fn, labels, x=X):
    return float(optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), labels).mean())


LABELS = {
    "99 to 1": (2, np.arange(1000) % 100 == 0),
    "ten classes": (10, np.floor(10 * (np.arange(1000) / 1000) ** 2)),
    "unseen classes": (10, np.arange(1000) % 3),
}


@pytest.mark.parametrize("case", LABELS)
def test_the_first_loss_is_the_entropy_of_the_labels(case):
    units, labels = LABELS[case]
    labels = jnp.asarray(labels, jnp.int32)
    params, apply_fn = net(units)
    fitted = jaxinit.fit_readout(params, apply_fn, X, labels)
    best = entropy(np.bincount(labels, minlength=units) / len(labels))
    assert cross_entropy(params, apply_fn, labels) > 1.5 * best
    assert cross_entropy(fitted, apply_fn, labels) == pytest.approx(best, rel=0.012)
    chex.assert_trees_all_equal(fitted["hidden"], params["hidden"])
    scale = fitted["kernel"] / params["kernel"]
    assert float(scale.min()) > 0  # gradients go on to layers below
    assert float(scale.max() - scale.min()) < 1e-5

    # One-hot labels are the same, and in a trace the numbers are.
    again = jaxinit.fit_readout(params, apply_fn, X, jax.nn.one_hot(labels, units))
    traced = jax.jit(lambda p, x, t: jaxinit.fit_readout(p, apply_fn, x, t))(params, X, labels)
    chex.assert_trees_all_close(fitted, again, rtol=1e-5)
    chex.assert_trees_all_close(fitted, traced, rtol=1e-4)
    with compilations() as events:
        jaxinit.fit_readout(params, apply_fn, X, labels)
    assert not events


def test_without_a_tolerance_the_kernel_stays_and_the_bias_is_the_best_there_is():
    params, apply_fn = net(4)
    labels = jnp.arange(1000) % 5 % 4
    fitted = jaxinit.fit_readout(params, apply_fn, X, labels, tolerance=None)
    chex.assert_trees_all_equal(fitted["kernel"], params["kernel"])
    gradient = jax.grad(lambda p: optax.softmax_cross_entropy_with_integer_labels(apply_fn(p, X), labels).mean())(
        fitted
    )["bias"]
    assert float(jnp.abs(gradient).max()) < 2e-3  # at the best bias it is zero, but for the share of unseen classes


def test_units_of_their_own_have_the_logits_of_their_frequencies():
    params, apply_fn = net(3)
    targets = jnp.stack([jnp.arange(1000) % n == 0 for n in (2, 10, 100)], -1).astype(jnp.float32)
    fitted = jaxinit.fit_readout(params, apply_fn, X, targets, "sigmoid")
    found = float(optax.sigmoid_binary_cross_entropy(apply_fn(fitted, X), targets).mean())
    assert found == pytest.approx(np.mean([entropy([p, 1 - p]) for p in (0.5, 0.1, 0.01)]), rel=0.012)


def test_regression_starts_at_the_mean_of_the_targets():
    """A head whose output has lost its axis of units, and a bias with the other sign."""
    params, _ = net(1)

    def apply_fn(p, x):
        return (jax.nn.relu(x @ p["hidden"]) @ p["kernel"] - p["bias"][None]).squeeze(-1)

    targets = 7 + 0.1 * X[:, 0] + jax.random.normal(KEYS[4], (1000,)) / 10
    fitted = jaxinit.fit_readout(params, apply_fn, X, targets, "squared")
    assert float(jnp.mean(apply_fn(fitted, X))) == pytest.approx(float(targets.mean()), rel=1e-4)
    assert float(jnp.mean((apply_fn(fitted, X) - targets) ** 2)) <= 1.0101 * float(jnp.var(targets))


def test_heads_of_modules_are_found():
    class Segmentation(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (1, 1))(nn.relu(nn.Conv(8, (3, 3))(x)))

    images = jax.random.normal(KEYS[5], (16, 8, 8, 2))
    labels = (jnp.arange(16 * 64) % 20 // 17).reshape(16, 8, 8)
    model = Segmentation()
    variables = model.init(KEYS[1], images)
    fitted = jaxinit.fit_readout(variables, model.apply, images, labels)
    best = entropy(np.bincount(labels.reshape(-1), minlength=3) / labels.size)
    assert cross_entropy(fitted, model.apply, labels, images) == pytest.approx(best, rel=0.012)

    rngs = nnx.Rngs(0)
    head = nnx.Sequential(nnx.Linear(8, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 2, rngs=rngs))
    params, apply_fn, restore = jaxinit.nnx.split(head)
    rare = (jnp.arange(1000) % 100 == 0).astype(jnp.int32)
    restore(jaxinit.fit_readout(params, apply_fn, X, rare))
    found = float(optax.softmax_cross_entropy_with_integer_labels(head(X), rare).mean())
    assert found == pytest.approx(entropy([0.01, 0.99]), rel=0.012)


PARAMS, APPLY = net(4)
WRONG = {
    "no bias": (lambda p, x: x @ p["hidden"] @ p["kernel"], jnp.zeros(1000, int), "no real bias of its own"),
    "softmax": (lambda p, x: jax.nn.softmax(APPLY(p, x)), jnp.zeros(1000, int), "leave out what follows"),
    "two outputs": (lambda p, x: (APPLY(p, x), x), jnp.zeros(1000, int), "returns one array"),
    "shape": (APPLY, jnp.zeros(999, int), r"targets must have the shape of the output, \(1000, 4\), or labels"),
    "labels": (APPLY, jnp.full(1000, 4), "labels from 0 to 3, got labels up to 4"),
    "probabilities": (APPLY, jnp.full((1000, 4), 2.0), "between 0 and 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_fitted_says_why(case):
    apply_fn, targets, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        jaxinit.fit_readout(PARAMS, apply_fn, X, targets)
