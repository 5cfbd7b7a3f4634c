"""The samplers draw from Haar measure, and these tests distinguish it from similar laws.

Every claim is a p-value with a fixed key. A claim fails below 1e-6, so a correct sampler fails one of the
N claims of this file with probability about N · 1e-6 over keys, and never for the keys used here. The wrong
sampler (QR without the sign correction) must fall below 1e-12 on the same statistics and sample sizes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxinit import haar

FALSE_ALARM = 1e-6
POWER = 1e-12
SAMPLES = 20_000
METHODS = ["reflectors", "small", "qr"]


def mean_p_value(values, expected):
    """Two-sided p-value of the sample mean under the central limit theorem."""
    values = np.asarray(values, np.float64)
    z = (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)) + 1e-300)
    return 2 * st.norm.sf(abs(z))


def trace_claims(q):
    """E tr Q = 0, E tr² = 1, E tr⁴ = 3 and E tr Q² = 1 on O(n), n ≥ 4."""
    trace = np.trace(q, axis1=1, axis2=2)
    return {
        "E tr": mean_p_value(trace, 0),
        "E tr^2": mean_p_value(trace**2, 1),
        "E tr^4": mean_p_value(trace**4, 3),
        "E tr Q^2": mean_p_value(np.einsum("bij,bji->b", q, q), 1),
    }


def determinant_claim(q):
    """det Q is +1 in half of the draws."""
    positive = int((np.linalg.det(q) > 0).sum())
    return {"det": st.binomtest(positive, len(q), 0.5).pvalue}


def entry_claims(q):
    """q_ij is symmetric and q_ij² ~ Beta(1/2, (n − 1)/2), at corners and inside."""
    _, rows, columns = q.shape
    law = st.beta(0.5, (max(rows, columns) - 1) / 2)
    positions = [(0, 0), (rows // 2, columns // 3), (rows - 1, 0), (rows - 1, columns - 1)]
    claims = {f"square {p}": st.kstest(q[:, *p] ** 2, law.cdf).pvalue for p in positions}
    signs = {f"sign {p}": st.binomtest(int((q[:, *p] > 0).sum()), len(q), 0.5).pvalue for p in positions}
    return claims | signs


def invariance_claims(q):
    """U Q and Q U have the law of Q: two halves of the sample, one of them rotated, by a functional of Q."""
    n = q.shape[-1]
    u = np.asarray(haar.orthogonal(jax.random.key(99), (n, n)), np.float64)
    weights = np.arange(n * n).reshape(n, n) + 1.0

    def functional(x):
        return np.einsum("ij,bij->b", weights, x**3)

    first, second = q[: len(q) // 2], q[len(q) // 2 :]
    return {
        "left": st.ks_2samp(functional(first), functional(u @ second)).pvalue,
        "right": st.ks_2samp(functional(first), functional(second @ u)).pvalue,
    }


def spacing_claim(q, peer):
    """The spacings of neighbouring eigenangles have the law of SciPy's."""

    def spacings(x):
        angles = np.sort(np.angle(np.linalg.eigvals(x)), axis=1)
        # One spacing per matrix: spacings of one matrix are dependent.
        return angles[:, 2] - angles[:, 1]

    return {"spacing": st.ks_2samp(spacings(q), spacings(peer)).pvalue}


def refuted(claims):
    return {name: p for name, p in claims.items() if p < FALSE_ALARM}


@functools.cache
def draws(method, n, samples=SAMPLES, seed=0):
    return np.asarray(haar.orthogonal(jax.random.key(seed), (samples, n, n), method=method), np.float64)


@functools.cache
def uncorrected_qr(n, samples=SAMPLES):
    """LAPACK's Q without correction, as many initializers used it."""
    gaussian = np.random.default_rng(0).normal(size=(samples, n, n))
    return np.linalg.qr(gaussian)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [4, 7])
def test_orthogonal_is_haar(method, n):
    q = draws(method, n)
    claims = trace_claims(q) | determinant_claim(q) | entry_claims(q) | invariance_claims(q)
    assert refuted(claims) == {}


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize("claims", [trace_claims, determinant_claim, entry_claims, invariance_claims])
def test_the_claims_reject_qr_without_sign_correction(claims, n):
    assert min(claims(uncorrected_qr(n)).values()) < POWER


def test_orthogonal_of_several_panels_is_haar():
    """80 columns are two panels of 64 and 16; 500 matrices."""
    q = draws("reflectors", 80, samples=500)
    assert refuted(trace_claims(q) | determinant_claim(q) | entry_claims(q) | invariance_claims(q)) == {}


@pytest.mark.slow
def test_orthogonal_of_several_wide_panels_is_haar():
    """800 columns are seven panels of 128, the last one narrower; 500 matrices."""
    q = np.concatenate([draws("reflectors", 800, samples=50, seed=s) for s in range(10)])
    assert refuted(trace_claims(q) | entry_claims(q)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_is_haar_in_a_million_draws(method):
    q = draws(method, 5, samples=1_000_000, seed=7)
    assert refuted(trace_claims(q) | determinant_claim(q) | entry_claims(q) | invariance_claims(q)) == {}


FRAMES = [(7, 3), (3, 7), (5, 1), (1, 5), (40, 34)]


@pytest.mark.parametrize(("method", "shape"), [(m, s) for m in METHODS for s in FRAMES if m != "small" or min(s) <= 32])
def test_frames_have_the_law_of_haar_columns(method, shape):
    q = np.asarray(haar.orthogonal(jax.random.key(1), (5_000, *shape), method=method), np.float64)
    assert refuted(entry_claims(q)) == {}


def test_eigenangle_spacing_is_scipys():
    q = draws("reflectors", 6)
    peer = st.ortho_group.rvs(6, size=5_000, random_state=0)
    assert refuted(spacing_claim(q, peer)) == {}
    assert spacing_claim(uncorrected_qr(6), peer)["spacing"] < POWER


@pytest.mark.parametrize("method", METHODS)
def test_matrices_of_a_batch_and_of_two_keys_are_independent(method):
    """The correlations between all entries of neighbours: 16 × 16 of them, Bonferroni-corrected."""
    q = draws(method, 4).reshape(SAMPLES, 16)
    other = draws(method, 4, seed=1).reshape(SAMPLES, 16)
    for first, second in ((q[::2], q[1::2]), (q, other), (q[:-1], other[1:])):
        z = (first.T @ second / math.sqrt(len(first))) * 4
        assert 256 * 2 * st.norm.sf(abs(z).max()) > FALSE_ALARM


@pytest.mark.parametrize("method", METHODS)
def test_special_orthogonal_is_haar_on_rotations(method):
    """On SO(4): det = +1, E tr = 0, E tr² = 1 and the entry law of O(4)."""
    q = np.asarray(haar.special_orthogonal(jax.random.key(2), (SAMPLES, 4, 4), method=method), np.float64)
    np.testing.assert_allclose(np.linalg.det(q), 1, atol=1e-5)
    trace = np.trace(q, axis1=1, axis2=2)
    claims = {"E tr": mean_p_value(trace, 0), "E tr^2": mean_p_value(trace**2, 1)}
    assert refuted(claims | entry_claims(q) | invariance_claims(q)) == {}


def unitary_claims(u):
    """E|tr U|^{2j} = j! for j ≤ n, E tr = 0, |u_ij|² ~ Beta(1, n − 1), uniform phases."""
    n = u.shape[-1]
    trace = np.trace(u, axis1=1, axis2=2)
    claims = {f"E|tr|^{2 * j}": mean_p_value(abs(trace) ** (2 * j), math.factorial(j)) for j in (1, 2, 3)}
    claims |= {"E Re tr": mean_p_value(trace.real, 0), "E Im tr": mean_p_value(trace.imag, 0)}
    for position in ((0, 0), (1, 2), (n - 1, 0), (n - 1, n - 1)):
        entry = u[:, *position]
        claims[f"square {position}"] = st.kstest(abs(entry) ** 2, st.beta(1, n - 1).cdf).pvalue
        claims[f"phase {position}"] = st.kstest(np.angle(entry), st.uniform(-np.pi, 2 * np.pi).cdf).pvalue
    return claims


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [3, 5])
def test_unitary_is_haar(method, n):
    u = np.asarray(haar.unitary(jax.random.key(3), (SAMPLES, n, n), method=method))
    assert refuted(unitary_claims(u)) == {}


def test_the_unitary_claims_reject_qr_without_phase_correction():
    rng = np.random.default_rng(1)
    gaussian = rng.normal(size=(SAMPLES, 5, 5)) + 1j * rng.normal(size=(SAMPLES, 5, 5))
    claims = unitary_claims(np.linalg.qr(gaussian)[0])
    assert claims["E Re tr"] < POWER
    assert claims["phase (4, 4)"] < POWER or claims["phase (0, 0)"] < POWER


def test_unitary_eigenangle_spacing_is_scipys():
    u = np.asarray(haar.unitary(jax.random.key(4), (SAMPLES, 6, 6)))
    assert refuted(spacing_claim(u, st.unitary_group.rvs(6, size=5_000, random_state=0))) == {}


def test_every_method_draws_the_same_law():
    """Two-sample tests of a functional of all entries between the methods."""
    weights = jnp.arange(16.0).reshape(4, 4) + 1
    values = {m: np.einsum("ij,bij->b", weights, draws(m, 4) ** 3) for m in METHODS}
    for other in ("small", "qr"):
        assert st.ks_2samp(values["reflectors"], values[other]).pvalue > FALSE_ALARM
