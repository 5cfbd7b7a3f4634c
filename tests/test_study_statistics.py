"""Statistics of studies: the interval covers, the test is exact, Holm keeps the level, and the power is as promised.

Keys are fixed. Shares of repetitions are checked within four standard errors, so that a right method fails any one of
them with a probability below 1e-4.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxinit._study._statistics import fewest_seeds, holm, interval, seeds_needed, signed_rank


def within(share, expected, repetitions, slack=0.0):
    """Whether a share of repetitions is as expected, up to four standard errors and the slack."""
    return abs(share - expected) <= slack + 4 * math.sqrt(expected * (1 - expected) / repetitions)


@pytest.mark.parametrize(
    ("name", "n", "slack"),
    [("normal", 8, 0.01), ("normal", 16, 0.005), ("exponential", 16, 0.03), ("exponential", 64, 0.015)],
)
def test_interval_covers_the_mean(name, n, slack):
    random = np.random.default_rng(1)
    values = random.normal(1.0, 1.0, (n, 2000)) if name == "normal" else random.exponential(1.0, (n, 2000))
    low, high = interval(values, resamples=999)
    assert within(((low <= 1) & (high >= 1)).mean(), 0.95, 2000, slack)


def test_plain_percentiles_would_not_cover():
    values = np.random.default_rng(1).normal(1.0, 1.0, (8, 2000))
    rows = np.random.default_rng(2).integers(0, 8, (999, 8))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975], axis=0)
    assert not within(((low <= 1) & (high >= 1)).mean(), 0.95, 2000, 0.01)


def test_interval_is_scipys_at_its_level():
    values = np.random.default_rng(3).exponential(1.0, 20)
    tail = stats.norm.cdf(-math.sqrt(20 / 19) * stats.t.ppf(0.975, 19))
    level, rng = 1 - 2 * tail, np.random.default_rng(0)
    expected = stats.bootstrap((values,), np.mean, confidence_level=level, n_resamples=50_000, rng=rng)
    found = interval(values, resamples=50_000)
    assert found[0] == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert found[1] == pytest.approx(expected.confidence_interval.high, abs=0.02)


def test_interval_of_equal_values_and_of_one():
    low, high = interval(np.full((6, 2), 0.3))
    assert low == pytest.approx([0.3, 0.3])
    assert high == pytest.approx([0.3, 0.3])
    assert np.isnan(interval(np.array([1.0]))).all()


@pytest.mark.parametrize("differences", [[1, 2, 3, -4, 5], [1, 1, -1, 2, 2, 0], [3, -3, 0, 0], [np.inf, 1, -2, np.inf]])
def test_signed_rank_is_exact_with_ties_and_infinities(differences):
    differences = np.array(differences, float)
    ranks = stats.rankdata(np.abs(differences[differences != 0]))
    observed = ranks[differences[differences != 0] > 0].sum()
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product([0, 1], repeat=len(ranks))
    ]
    tails = np.mean(np.array(sums) <= observed), np.mean(np.array(sums) >= observed)
    assert signed_rank(differences) == pytest.approx(min(1, 2 * min(tails)))


def test_signed_rank_of_many_pairs_meets_the_exact_one():
    differences = np.random.default_rng(0).normal(0.15, 1, 201)
    assert signed_rank(differences) == pytest.approx(signed_rank(differences[:200]), rel=0.3)
    assert signed_rank(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-2)
    assert signed_rank(np.zeros(5)) == 1


def test_signed_rank_keeps_its_level():
    random = np.random.default_rng(2)
    p_values = np.array([signed_rank(row) for row in random.standard_cauchy((2000, 10))])
    assert (p_values <= 0.05).mean() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_holm_controls_the_error_of_the_family():
    random = np.random.default_rng(3)
    outcomes = random.normal(size=(1000, 12, 5))
    outcomes[:, :, 0] += 1.5  # one start is better, the other four are the same
    any_false, any_uncorrected, found = 0, 0, 0
    for runs in outcomes:
        pairs = list(itertools.combinations(range(5), 2))
        p_values = np.array([signed_rank(runs[:, i] - runs[:, j]) for i, j in pairs])
        null = np.array([i > 0 for i, _ in pairs])
        any_false += (holm(p_values)[null] <= 0.05).any()
        any_uncorrected += (p_values[null] <= 0.05).any()
        found += (holm(p_values)[~null] <= 0.05).mean()
    assert any_false / 1000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)
    assert any_uncorrected / 1000 > 0.12
    assert found / 1000 > 0.5


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert holm(np.array([])).shape == (0,)


@pytest.mark.parametrize(("effect", "power"), [(0.5, 0.8), (0.8, 0.9), (1.2, 0.8)])
def test_seeds_needed_have_the_power(effect, power):
    n = seeds_needed(1.0, effect, power)
    differences = np.random.default_rng(4).normal(effect, 1.0, (2000, n))
    found = np.mean([signed_rank(row) <= 0.05 for row in differences])
    assert within(found, power, 2000, 0.03)
    fewer = np.mean([signed_rank(row) <= 0.05 for row in differences[:, : round(0.7 * n)]])
    assert not within(fewer, power, 2000, 0.03)


def test_no_fewer_seeds_than_the_test_can_use():
    assert fewest_seeds(0.05) == 6
    assert signed_rank(np.ones(6)) <= 0.05 < signed_rank(np.ones(5))
    assert seeds_needed(0.0, 1.0) == seeds_needed(1.0, 100.0) == 6
