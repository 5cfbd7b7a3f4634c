"""Remedies are calls that run, never name the initialization that was given, and following them ends."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxinit
from jaxinit import diagnose
from jaxinit._advice._remedies import given

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(9), (64, 32))
CALLS = {
    '"auto"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "auto"),
    "jaxinit.lsuv(": lambda params, f: jaxinit.lsuv(params, f, X),
    '"orthogonal_critical"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "orthogonal_critical"),
    '"looks_linear"': lambda params, f: jaxinit.initialize(KEY, params, f, X, "looks_linear"),
}


@functools.cache
def stack(activation):
    """Layers in a scan, so that depth costs nothing."""

    def apply_fn(params, x):
        x = jax.lax.scan(lambda x, w: (getattr(jax.nn, activation)(x @ w), None), x, params["hidden"])[0]
        return x @ params["out"]

    return apply_fn


def shapes(depth):
    return {
        "hidden": jax.ShapeDtypeStruct((depth, 32, 32), jnp.float32),
        "out": jax.ShapeDtypeStruct((32, 4), jnp.float32),
    }


def named(report):
    return [name for finding in report.findings() for name in CALLS if name in finding.remedy]


@pytest.mark.parametrize(
    ("activation", "depth", "start"),
    [
        ("soft_sign", 50, "auto"),
        ("relu", 50, "auto"),
        pytest.param("selu", 50, "torch_default", marks=pytest.mark.slow),
        pytest.param("gelu", 50, "auto", marks=pytest.mark.slow),
        pytest.param("sigmoid", 6, "auto", marks=pytest.mark.slow),
        pytest.param("tanh", 50, "auto", marks=pytest.mark.slow),
        pytest.param("elu", 50, "torch_default", marks=pytest.mark.slow),
        pytest.param("silu", 6, "torch_default", marks=pytest.mark.slow),
    ],
)
def test_following_remedies_ends_and_none_is_named_again(activation, depth, start):
    apply_fn = stack(activation)
    params = jaxinit.initialize(KEY, shapes(depth), apply_fn, X, start)
    tried = [f'"{start}"']
    for _ in range(3):
        calls = named(diagnose(params, apply_fn, X, lanczos_steps=0))
        if not calls:
            break
        assert calls[0] not in tried, (calls, tried)
        params = CALLS[calls[0]](params, apply_fn)  # a scheme that does not fit raises
        tried.append(calls[0])
    assert not named(diagnose(params, apply_fn, X, lanczos_steps=0)), tried


def test_the_start_that_was_given_is_known_by_its_values():
    apply_fn = stack("soft_sign")

    def of(params):
        return given(diagnose(params, apply_fn, X, lanczos_steps=0))

    critical = jaxinit.initialize(KEY, shapes(50), apply_fn, X, "orthogonal_critical")
    assert "orthogonal_critical" in of(critical)
    assert "orthogonal_critical" not in of(jax.tree.map(lambda w: 2 * w, critical))
    auto = jaxinit.initialize(KEY, shapes(50), apply_fn, X, "auto")
    assert "auto" in of(auto)
    assert "orthogonal_critical" not in of(auto)
    gaussian = jax.tree.map(lambda w: w / 2.34, auto)  # at the critical scale, and not orthogonal
    assert not of(gaussian)
    assert of(jaxinit.lsuv(auto, apply_fn, X)) == {"auto", "lsuv"}


def test_what_no_start_mends_and_what_training_gets_over_are_both_said():
    apply_fn = stack("sigmoid")
    params = jaxinit.initialize(KEY, shapes(6), apply_fn, X, "auto")
    remedies = {finding.remedy for finding in diagnose(params, apply_fn, X, lanczos_steps=0).findings()}
    assert remedies
    for remedy in remedies:
        assert (
            "no initialization fixes this at unit variance, where sigmoid multiplies gradients by 0.39 per layer"
            in remedy
        )
        assert "jaxinit.recommend(params, apply_fn, batch) says from which initialization" in remedy
