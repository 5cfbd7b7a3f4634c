"""Gains and critical points against closed forms, and on the networks that they are for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import jaxinit


def _second_moment(function, kinks=()):
    value, _ = integrate.quad(
        lambda z: function(z) ** 2 * stats.norm.pdf(z), -12, 12, points=[0.0, *kinks], limit=400, epsabs=1e-13
    )
    return value


CLOSED_FORMS = [
    ("linear", 1.0),
    ("relu", math.sqrt(2)),
    (jax.nn.relu, math.sqrt(2)),
    ("sin", 1 / math.sqrt((1 - math.exp(-2)) / 2)),
    ("selu", 1.0),
    (lambda x: jnp.exp(x), math.exp(-1)),
    (lambda x: jnp.where(x > 0.37, x - 0.37, 0.0), None),
    (lambda x: (x > -1.234).astype(x.dtype), 1 / math.sqrt(stats.norm.sf(-1.234))),
    (jnp.abs, 1.0),
    (jnp.square, 1 / math.sqrt(3)),
]


@pytest.mark.parametrize(("activation", "expected"), CLOSED_FORMS)
def test_gain_against_closed_forms(activation, expected):
    if expected is None:
        k = 0.37
        expected = 1 / math.sqrt((1 + k**2) * stats.norm.sf(k) - k * stats.norm.pdf(k))
    assert math.isclose(jaxinit.gain(activation), expected, rel_tol=1e-9)


NUMPY = {
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "elu": lambda z: z if z > 0 else math.expm1(z),
    "hard_tanh": lambda z: min(max(z, -1), 1),
    "lecun_tanh": lambda z: 1.7159 * np.tanh(2 * z / 3),
    "softplus": lambda z: np.logaddexp(z, 0),
    "relu6": lambda z: min(max(z, 0), 6),
}


@pytest.mark.parametrize("name", NUMPY)
def test_gain_against_scipy(name):
    expected = 1 / math.sqrt(_second_moment(NUMPY[name], kinks=[-1, 1, 6]))
    assert math.isclose(jaxinit.gain(name), expected, rel_tol=1e-9)


def test_leaky_slopes():
    for slope in (0.0, 0.01, 0.2, 1.0):
        expected = math.sqrt(2 / (1 + slope**2))
        assert math.isclose(jaxinit.gain("leaky_relu", slope), expected, rel_tol=1e-12)
        assert math.isclose(jaxinit.gain("leaky_relu", slope, convention="torch"), expected, rel_tol=1e-12)
    assert math.isclose(jaxinit.gain("leaky_relu"), math.sqrt(2 / (1 + 1e-4)), rel_tol=1e-12)
    traced = jax.vmap(lambda slope: jaxinit.gain("leaky_relu", slope))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(traced, [math.sqrt(2), 1.0], rtol=1e-6)


TORCH = {
    "linear": 1,
    "conv2d": 1,
    "conv_transpose3d": 1,
    "sigmoid": 1,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 0.75,
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_convention(name):
    assert jaxinit.gain(name, convention="torch") == TORCH[name]


def test_gain_is_a_number_inside_any_trace_and_without_x64():
    assert not jax.config.jax_enable_x64
    seen = []

    def program(x):
        seen.append(jaxinit.gain(lambda z: jnp.tanh(1.5 * z)))
        seen.append(jaxinit.gain(lambda z: jax.nn.relu(z)))  # a custom derivative; a new function is not cached
        return x

    jax.jit(program)(1.0)
    jax.vmap(program)(jnp.ones(2))
    jax.jit(jax.vmap(jax.grad(program)))(jnp.ones(2))
    expected = [1 / math.sqrt(_second_moment(lambda z: np.tanh(1.5 * z))), math.sqrt(2)]
    np.testing.assert_allclose(seen, expected * 3, rtol=1e-9)


@pytest.mark.parametrize("activation", ["gelu", "tanh", "mish", jax.nn.hard_tanh])
def test_gain_keeps_the_pre_activations_at_unit_variance(activation, key):
    """From N(0, 1) through two layers of 1024 units; the standard error over 16 samples is 2%, the tolerance 8%."""
    function = activation if callable(activation) else getattr(jax.nn, activation, jnp.tanh)
    init = jaxinit.variance_scaling(jaxinit.gain(activation) ** 2, "fan_in", "normal")
    z = jax.random.normal(key, (16, 1024))
    for k in jax.random.split(key, 2):
        z = function(z) @ init(k, (1024, 1024))
        assert abs(float(jnp.mean(z**2)) - 1) < 0.08


@pytest.mark.parametrize("place", [0.0, 0.003, 1.004, -1.9961, 0.4979, 2.31])
def test_steps_and_kinks_anywhere_are_exact(place):
    """Some steps are between an end of a quadrature panel and its outermost node, where no node sees them."""
    above, density = stats.norm.sf(place), stats.norm.pdf(place)
    step = jaxinit.gain(lambda x: jnp.where(x > place, 1.0, 0.0))
    kink = jaxinit.gain(lambda x: jnp.maximum(x - place, 0))
    np.testing.assert_allclose(step, above**-0.5, rtol=1e-9)
    np.testing.assert_allclose(kink, ((1 + place**2) * above - place * density) ** -0.5, rtol=1e-9)


CRITICAL_TANH = {0.0: 1.0, 2.01e-5: 1.0500, 1e-4: 1.0860, 1e-3: 1.1892, 1e-2: 1.4242, 0.05: 1.7610}


@pytest.mark.parametrize("bias_variance", CRITICAL_TANH)
def test_critical_tanh(bias_variance):
    point = jaxinit.critical("tanh", bias_variance=bias_variance)
    assert abs(point.weight_variance - CRITICAL_TANH[bias_variance]) < 5e-5
    sigma_w, sigma_b, chi, depth_scale = point
    assert (sigma_w**2, chi, depth_scale) == (point.weight_variance, 1.0, math.inf)
    assert math.isclose(sigma_b**2, bias_variance, rel_tol=1e-12)


@pytest.mark.parametrize(("target", "chi"), [(1.0, 1.178), (0.3, 1.0071), (0.1, 1.0001)])
def test_plain_tanh_layers_of_smaller_variance_are_less_chaotic(target, chi):
    # Weights that keep the standard deviation at `target` have the variance target² / E[tanh(target z)²].
    kept = jaxinit.gain(lambda z: jnp.tanh(target * z))
    slope = jaxinit.gain(lambda z: 1 / jnp.cosh(target * z) ** 2)
    assert (target * kept / slope) ** 2 == pytest.approx(chi, abs=5e-4)


def test_critical_tanh_with_large_biases():
    for bias_variance, sigma_w in ((1e3, 7.823575), (1e4, 13.7754), (1e6, 43.379)):
        assert math.isclose(jaxinit.critical("tanh", bias_variance).sigma_w, sigma_w, rel_tol=1e-5)


def test_critical_relu_and_kin():
    assert math.isclose(jaxinit.critical("relu").weight_variance, 2.0, rel_tol=1e-12)
    assert jaxinit.critical("relu").bias_variance == 0.0
    assert math.isclose(
        jaxinit.critical(lambda x: jnp.where(x > 0, x, 0.3 * x)).weight_variance, 2 / 1.09, rel_tol=1e-9
    )
    slopes = (jax.nn.selu(1.0), 1.0507009873554805 * 1.6732632423543772)
    expected = 2 / (float(slopes[0]) ** 2 + slopes[1] ** 2)
    assert math.isclose(jaxinit.critical("selu").weight_variance, expected, rel_tol=1e-6)


def test_two_inputs_keep_their_distance_at_criticality(key):
    """tanh at sigma_b² = 0.05: the angle of two inputs changes at rate chi, near 1 at the edge and off it elsewhere."""
    point = jaxinit.critical("tanh", 0.05)

    factors = jnp.array([1.0, 0.7, 1.5])[:, None, None]

    def layer(pairs, k):
        weights = jaxinit.variance_scaling(point.weight_variance, "fan_in", "normal")(k, (1000, 1000))
        bias = jaxinit.normal(point.sigma_b)(jax.random.fold_in(k, 1), (1000,))
        pairs = jnp.sqrt(factors) * (jnp.tanh(pairs) @ weights) + bias[None, None]
        return pairs, jnp.sum((pairs[:, 0] - pairs[:, 1]) ** 2, axis=1)

    start = jax.random.normal(key, (1, 1000)) + 1e-3 * jax.random.normal(jax.random.key(1), (2, 1000))
    _, distances = jax.lax.scan(layer, jnp.stack([start] * 3), jax.random.split(key, 30))
    at_the_edge, ordered, chaotic = (distances[-1] / distances[9]) ** (1 / 20)
    assert abs(at_the_edge - 1) < 0.03
    assert ordered < 0.93
    assert chaotic > 1.07


def test_lecun_tanh():
    np.testing.assert_allclose(jaxinit.lecun_tanh(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)
    assert jaxinit.gain("lecun_tanh") == jaxinit.gain(jaxinit.lecun_tanh)
    curvature = jax.vmap(jax.grad(jax.grad(jaxinit.lecun_tanh)))(jnp.linspace(0, 3, 301))
    assert abs(int(jnp.argmax(jnp.abs(curvature))) - 100) <= 2, "|f''| is largest at 1"


def test_selu_keeps_its_fixed_point_over_100_layers(key):
    """lecun_normal: (0, 1) attracts; after 100 layers the mean is within 0.1, the variance within 0.15."""
    normal = jax.random.normal(key, (64, 256))
    starts = jnp.stack([normal, 0.5 + 1.5 * normal])

    @jax.jit
    def moments(scales):
        def layer(h, k):
            h = jax.nn.selu(scales[:, None, None] * (h @ jaxinit.lecun_normal()(k, (256, 256))))
            return h, (h.mean((1, 2)), h.var((1, 2)))

        _, found = jax.lax.scan(layer, starts, jax.random.split(key, 100))
        return [x[-10:].mean(0) for x in found]

    means, variances = moments(jnp.ones(2))
    np.testing.assert_allclose(means, 0, atol=0.1)
    np.testing.assert_allclose(variances, 1, atol=0.15)
    _, variances = moments(jnp.full(2, 2**0.5))
    assert (variances > 2).all(), "twice the weight variance leaves the fixed point: the check can fail"
