"""The normals of the Haar samplers: two from each hash, with the law and the independence that the samplers need.

False-alarm rate of every p-value: 1e-6, with fixed keys. The tests are shown to reject wrong pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxinit._haar._gaussians import _cosine_and_sine, normal_pairs

FALSE_ALARM = 1e-6
SAMPLES = 400_000


def independence(first, second):
    """p-value of the χ² test on an 8 × 8 table of the two numbers' octants."""
    edges = st.norm.ppf(np.linspace(0, 1, 9)[1:-1])
    table = np.histogram2d(np.digitize(first, edges), np.digitize(second, edges), bins=(8, 8))[0]
    return st.chisquare(table.ravel()).pvalue


def test_both_numbers_of_a_pair_are_standard_normal_and_independent(key):
    first, second = (np.asarray(x, np.float64) for x in normal_pairs(key, (SAMPLES,), jnp.float32))
    assert st.kstest(first, "norm").pvalue > FALSE_ALARM
    assert st.kstest(second, "norm").pvalue > FALSE_ALARM
    assert independence(first, second) > FALSE_ALARM
    assert independence(first[1:], second[:-1]) > FALSE_ALARM
    # Two numbers with one radius but angles on half of the circle are normal and not independent.
    assert independence(first, np.abs(second) * np.sign(first)) < 1e-12


def test_the_tails_reach_beyond_five_deviations(key):
    first, second = (np.asarray(x, np.float64) for x in normal_pairs(key, (2000, 2000), jnp.float32))
    draws = np.concatenate([first.ravel(), second.ravel()])
    expected = 2 * st.norm.sf(4.5) * draws.size
    assert st.poisson.cdf((abs(draws) > 4.5).sum(), expected) > FALSE_ALARM
    assert st.poisson.sf((abs(draws) > 4.5).sum() - 1, expected) > FALSE_ALARM
    assert abs(draws).max() > 5


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "float64"])
def test_other_dtypes_have_unit_variance_and_circular_symmetry(key, dtype):
    with jax.enable_x64(True):
        for x in normal_pairs(key, (SAMPLES // 4,), dtype):
            assert x.dtype == dtype
            parts = np.asarray(x)[None] if x.dtype.kind == "f" else np.stack([x.real, x.imag]) * np.sqrt(2)
            for part in parts:
                assert st.kstest(part, "norm").pvalue > FALSE_ALARM


def test_cosine_and_sine_are_exact_to_rounding():
    angle = np.linspace(-np.pi / 4, np.pi / 4, 10_001, dtype=np.float32)
    cosine, sine = _cosine_and_sine(jnp.asarray(angle))
    np.testing.assert_allclose(cosine, np.cos(angle.astype(np.float64)), atol=1.5e-7)
    np.testing.assert_allclose(sine, np.sin(angle.astype(np.float64)), atol=1.5e-7)


def test_raw_and_typed_keys_give_the_same_and_other_generators_their_own(key):
    typed = normal_pairs(key, (3, 4), jnp.float32)
    raw = normal_pairs(jax.random.key_data(key), (3, 4), jnp.float32)
    np.testing.assert_array_equal(np.stack(typed), np.stack(raw))
    other = normal_pairs(jax.random.key(0, impl="rbg"), (3, 4), jnp.float32)
    np.testing.assert_array_equal(np.stack(other), jax.random.normal(jax.random.key(0, impl="rbg"), (2, 3, 4)))
