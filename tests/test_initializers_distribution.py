"""The draws have the law that the docstrings state.

Kolmogorov-Smirnov and moment tests on fixed keys; each rejects a correct sampler with probability 1e-6, so the whole
file does so with probability below 1e-4. The last tests show that wrong samplers are caught at the same sample sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxinit

SAMPLES = 200_000
FALSE_ALARM = 1e-6
ROUNDING = {"float32": 1e-6, "float64": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}
"""Dtypes, and the relative rounding by which a discrete law may differ from the continuous one."""


def _pvalue(samples, cdf):
    return stats.kstest(np.asarray(samples, np.float64).reshape(-1), cdf).pvalue


def _truncated(lower, upper, scale):
    return stats.truncnorm(lower, upper, scale=scale).cdf


SHAPE = (400, 500)
FAN = 400
LAWS = [
    (jaxinit.normal(0.3), stats.norm(scale=0.3).cdf),
    (jaxinit.uniform(0.3), stats.uniform(scale=0.3).cdf),
    (jaxinit.truncated_normal(0.3, None, -1.0, 2.0), _truncated(-1, 2, 0.3)),
    (jaxinit.variance_scaling(1.5, "fan_out", "normal"), stats.norm(scale=np.sqrt(1.5 / 500)).cdf),
    (jaxinit.glorot_uniform(), stats.uniform(-np.sqrt(6 / 900), 2 * np.sqrt(6 / 900)).cdf),
    (jaxinit.lecun_uniform(), stats.uniform(-np.sqrt(3 / FAN), 2 * np.sqrt(3 / FAN)).cdf),
    (jaxinit.he_uniform(), stats.uniform(-np.sqrt(6 / FAN), 2 * np.sqrt(6 / FAN)).cdf),
    (jaxinit.he_normal(), _truncated(-2, 2, np.sqrt(2 / FAN) / stats.truncnorm(-2, 2).std())),
    (jaxinit.siren(), stats.uniform(-np.sqrt(6 / FAN) / 30, 2 * np.sqrt(6 / FAN) / 30).cdf),
    (jaxinit.siren(first=True), stats.uniform(-1 / FAN, 2 / FAN).cdf),
    (jaxinit.random_walk("linear"), stats.norm(scale=np.exp(1 / (2 * FAN)) / np.sqrt(FAN)).cdf),
    (jaxinit.scaled(jaxinit.normal(0.3), -2.0), stats.norm(scale=0.6).cdf),
]


# One draw of each kind in every dtype; smaller floats are the rounded float32 draws for all initializers alike.
KINDS = (jaxinit.normal(0.3), jaxinit.glorot_uniform(), jaxinit.he_normal())
CASES = [(init, cdf, dtype) for init, cdf in LAWS for dtype in (ROUNDING if init in KINDS else ("float32",))]


@pytest.mark.parametrize(("init", "cdf", "dtype"), CASES, ids=[f"{init!r}-{dtype}" for init, _, dtype in CASES])
def test_law(init, cdf, dtype, key, x64):
    samples = np.asarray(init(key, SHAPE, dtype), np.float64)
    assert _pvalue(samples, cdf) > FALSE_ALARM
    # Mean and variance against the exact law, each within five standard errors and what rounding may add.
    reach = samples.std()
    quantiles, step = np.linspace(samples.min() - reach, samples.max() + reach, 200_001, retstep=True)
    middle, mass = (quantiles[1:] + quantiles[:-1]) / 2, np.diff(cdf(quantiles))
    mean = (middle * mass).sum()
    variance = ((middle - mean) ** 2 * mass).sum()
    assert abs(samples.mean() - mean) < 5 * np.sqrt(variance / SAMPLES) + ROUNDING[dtype] * abs(mean) + step
    spread = np.sqrt(np.var((samples - samples.mean()) ** 2) / SAMPLES)
    assert abs(samples.var() - variance) < 5 * spread + 2 * ROUNDING[dtype] * variance + step**2


@pytest.mark.parametrize("name", ["normal", "uniform", "truncated_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
def test_variance_is_scale_over_fan(name, mode, key):
    """All modes and distributions, real and complex: within five standard errors at 40,000 draws."""
    init = jaxinit.variance_scaling(1.7, mode, name)
    fan_in, fan_out = init.fans((100, 400))
    fan = {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
        "fan_geo_avg": (fan_in * fan_out) ** 0.5,
    }
    for dtype in (jnp.float32, jnp.complex64):
        draws = np.asarray(init(key, (100, 400), dtype))
        assert abs(np.mean(np.abs(draws) ** 2) * fan[mode] / 1.7 - 1) < 5 * np.sqrt(2 / 40_000)
        assert abs(draws.mean()) < 5 * np.sqrt(1.7 / fan[mode] / 40_000)


def test_chrono_law(key):
    """The exponential of a forget bias is uniform on [1, T - 1]; in bfloat16 rounding of the logarithm would show."""
    bias = np.asarray(jaxinit.chrono(50, gates="f")(key, SHAPE), np.float64)
    assert _pvalue(np.exp(bias), stats.uniform(1, 48).cdf) > FALSE_ALARM


RINGS = {"lru_ring": (0.5, 0.99, lambda nu: np.exp(-np.exp(nu))), "rg_lru": (0.9, 0.999, lambda w: 1 / (1 + np.exp(w)))}


@pytest.mark.parametrize("name", RINGS)
def test_squared_moduli_are_uniform_on_a_ring(name, key):
    """Squared moduli are not uniform if the modulus itself is drawn uniformly; that wrong sampler is caught."""
    low, high, modulus = RINGS[name]
    draws = np.asarray(getattr(jaxinit, name)(low, high)(key, SHAPE), np.float64)
    uniform = stats.uniform(low**2, high**2 - low**2).cdf
    assert _pvalue(modulus(draws) ** 2, uniform) > FALSE_ALARM
    wrong = np.asarray(jax.random.uniform(key, SHAPE, jnp.float32, low, high), np.float64)
    assert _pvalue(wrong**2, uniform) < FALSE_ALARM


def test_phases_and_normalizers_of_a_ring(key):
    theta = np.asarray(jaxinit.lru_ring(max_phase=0.3, part="theta")(key, SHAPE), np.float64)
    assert _pvalue(np.exp(theta), stats.uniform(0, 0.3).cdf) > FALSE_ALARM
    nu, gamma = (np.asarray(jaxinit.lru_ring(0.5, 0.9, part=part)(key, SHAPE), np.float64) for part in ("nu", "gamma"))
    np.testing.assert_allclose(np.exp(2 * gamma), 1 - np.exp(-2 * np.exp(nu)), rtol=1e-5)


@pytest.mark.parametrize(
    ("through", "g"), [("identity", lambda w: w), ("exp", np.exp), ("softplus", lambda w: np.log1p(np.exp(w)))]
)
def test_step_sizes_are_uniform_in_their_logarithm(through, g, key):
    draws = np.asarray(jaxinit.log_uniform(1e-3, 1e-1, through)(key, SHAPE), np.float64)
    assert _pvalue(np.log10(g(draws)), stats.uniform(-3, 2).cdf) > FALSE_ALARM
    assert _pvalue(g(draws), stats.uniform(1e-3, 0.099).cdf) < FALSE_ALARM


def test_complex_draws_are_round(key):
    """The angle is uniform and independent of the modulus; the square of the modulus has its law."""
    for name, modulus_cdf in (
        ("normal", stats.expon.cdf),
        ("uniform", stats.uniform(scale=2).cdf),
        ("truncated_normal", lambda t: np.clip((1 - np.exp(-t)) / (1 - np.exp(-4)), 0, 1)),
    ):
        z = np.asarray(jaxinit.variance_scaling(FAN, "fan_in", name)(key, SHAPE, jnp.complex64)).reshape(-1)
        if name == "truncated_normal":
            z = z * np.sqrt(1 - 4 * np.exp(-4) / (1 - np.exp(-4)))
        assert _pvalue(np.angle(z), stats.uniform(-np.pi, 2 * np.pi).cdf) > FALSE_ALARM
        assert _pvalue(np.abs(z) ** 2, modulus_cdf) > FALSE_ALARM
        assert stats.pearsonr(np.angle(z), np.abs(z)).pvalue > FALSE_ALARM


def test_keys_and_blocks_are_independent(key):
    """Correlations between keys, gates and batch entries, at 40,000 pairs each."""
    shape = (100, 400)
    first, second = (np.asarray(jaxinit.he_normal()(k, shape)).reshape(-1) for k in jax.random.split(key))
    assert stats.pearsonr(first, second).pvalue > FALSE_ALARM
    gates = jaxinit.blocked(jaxinit.he_normal(), -1, 2)(key, (100, 800))
    assert (
        stats.pearsonr(*(np.asarray(gate).reshape(-1) for gate in np.split(np.asarray(gates), 2, -1))).pvalue
        > FALSE_ALARM
    )
    stacked = np.asarray(jaxinit.he_normal(batch_axis=0)(key, (2, *shape)))
    assert stats.pearsonr(stacked[0].reshape(-1), stacked[1].reshape(-1)).pvalue > FALSE_ALARM


def test_half_precision_has_its_tails_and_all_its_values(key):
    """JAX's bfloat16 normal has 128 values, none beyond 2.9; this one has the tails of a normal."""
    draws = np.asarray(jaxinit.normal(1.0)(key, (1_000_000,), jnp.bfloat16), np.float64)
    assert len(np.unique(draws)) > 2000
    assert abs(draws.mean()) < 5 / 1000
    assert abs((np.abs(draws) > 3).mean() - 2 * stats.norm.sf(3)) < 5 * np.sqrt(0.0027 / 1e6) + 0.0027 * 0.02


class TestWrongSamplersAreCaught:
    def test_half_precision_of_jax(self, key):
        draws = jax.nn.initializers.normal(0.3)(key, SHAPE, jnp.bfloat16)
        assert _pvalue(draws, stats.norm(scale=0.3).cdf) < FALSE_ALARM

    def test_a_standard_deviation_four_percent_off(self, key):
        wrong = jaxinit.normal(0.3 * 1.04)(key, SHAPE)
        assert _pvalue(wrong, stats.norm(scale=0.3).cdf) < FALSE_ALARM

    def test_truncation_without_correction(self, key):
        wrong = jaxinit.truncated_normal(np.sqrt(2 / FAN))(key, SHAPE)
        assert _pvalue(wrong, LAWS[7][1]) < FALSE_ALARM

    def test_draws_that_share_a_four_hundredth_of_their_variance(self, key):
        """A correlation of 1/20 between keys is ten standard errors at the sample size that is used above."""
        draws, others = (np.asarray(jaxinit.he_normal()(k, (100, 400))).reshape(-1) for k in jax.random.split(key))
        assert stats.pearsonr(draws, 0.05 * draws + (1 - 0.05**2) ** 0.5 * others).pvalue < FALSE_ALARM
