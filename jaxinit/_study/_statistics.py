r"""Statistics of studies: an interval for a mean, a paired test, Holm's correction, and the number of seeds to run.

Few seeds and skewed outcomes (a run that diverges is an outlier, not noise) rule out methods that assume normality:
- the interval is the bootstrap's BCa interval, at a wider level that corrects for the narrowness of resampling,
  :math:`\alpha' = \Phi(-\sqrt{n / (n - 1)}\, t_{1 - \alpha / 2,\, n - 1})` in each tail;
- the test is Wilcoxon's signed-rank test with its exact distribution, including ties. Its null hypothesis is that, for
  every seed, a coin flip decided which of the two starts had which result;
- Holm's step-down correction keeps the chance of any false claim among all comparisons below the level.

References: Efron, 1987, "Better bootstrap confidence intervals"; Hesterberg, 2015, "What teachers should know about
the bootstrap"; Wilcoxon, 1945; Holm, 1979, "A simple sequentially rejective multiple test procedure".
"""

import math

import numpy as np

_RESAMPLES = 9999
_LARGE = 200
"""The number of pairs from which the signed-rank statistic is practically normal."""


def interval(values: np.ndarray, level: float = 0.95, resamples: int = _RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the BCa bootstrap interval for the mean over the first axis; NaN for fewer than two values.

    Args:
      values: finite numbers of shape (n, ...), each column by itself.
      level: confidence level.
      resamples: number of bootstrap samples, drawn with a fixed seed.
    """
    from scipy.special import ndtr, ndtri
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    n, shape = len(values), values.shape[1:]
    if n < 2:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    columns = values.reshape(n, -1)
    mean = columns.mean(axis=0)
    centred = columns - mean
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    means = np.sort(counts @ centred / n, axis=0)
    # Sums in a different order round differently: values this close to the mean count as ties.
    tie = 1e-12 * np.abs(centred).max(axis=0)
    below = ((means < -tie).sum(axis=0) + 0.5 * (np.abs(means) <= tie).sum(axis=0)) / resamples
    bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    scale = (centred**2).sum(axis=0) ** 1.5
    acceleration = np.divide((centred**3).sum(axis=0), 6 * scale, out=np.zeros_like(scale), where=scale > 0)
    tail = -math.sqrt(n / (n - 1)) * t.ppf((1 + level) / 2, n - 1)
    bounds = []
    for z in (tail, -tail):
        shifted = bias + z
        denominator = 1 - acceleration * shifted
        # Beyond its pole the correction is undefined; the extreme resample is the best available bound.
        adjusted = np.where(denominator > 0, bias + shifted / np.where(denominator > 0, denominator, 1), z * np.inf)
        position = ndtr(adjusted) * (resamples - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, resamples - 1)
        column = np.arange(columns.shape[1])
        bounds.append(mean + means[low, column] + (position - low) * (means[high, column] - means[low, column]))
    return bounds[0].reshape(shape), bounds[1].reshape(shape)


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test for paired differences, which may be infinite but not NaN.

    Pairs without a difference are dropped; ties share their mean rank. Given the sizes of the differences, the
    distribution under the null hypothesis is that of independent random signs and is computed, not approximated.
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    differences = np.asarray(differences, np.float64)
    differences = differences[differences != 0]
    n = len(differences)
    if n == 0:
        return 1.0
    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(int)
    positive = int(doubled[differences > 0].sum())
    total = int(doubled.sum())
    if n > _LARGE:
        # Half a unit as the continuity correction, in the units of undoubled ranks.
        deviation = max(abs(positive - total / 2) - 1, 0) / math.sqrt((doubled.astype(float) ** 2).sum() / 4)
        return float(2 * ndtr(-deviation))
    probabilities = np.zeros(total + 1)
    probabilities[0] = 1
    for rank in doubled:
        probabilities[rank:] = (probabilities[rank:] + probabilities[: total + 1 - rank]) / 2
        probabilities[:rank] /= 2
    # The distribution is symmetric about total / 2.
    return float(min(1.0, 2 * probabilities[: min(positive, total - positive) + 1].sum()))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: with at most the probability of the level, any claim below that level is false."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def fewest_seeds(alpha: float) -> int:
    """The smallest number of pairs with which the signed-rank test can reach a level: 2^(1 - n) ≤ alpha."""
    return math.ceil(1 - math.log2(alpha))


def seeds_needed(stddev: float, effect: float, power: float = 0.8, alpha: float = 0.05) -> int:
    r"""The number of pairs with which the signed-rank test finds a mean difference with a given power.

    The power of a t-test on 3/π·n pairs, which is the efficiency of the signed-rank test for normal differences;
    it is more efficient if their tails are heavier.

    Args:
      stddev: standard deviation of the paired differences.
      effect: the mean difference to be found, positive.
      power: the probability of finding it.
      alpha: two-sided level of the test.
    """
    from scipy.stats import nct, t

    least = fewest_seeds(alpha)
    if stddev == 0:
        return least

    def enough(n: int) -> bool:
        worth = 3 / math.pi * n
        critical = t.ppf(1 - alpha / 2, worth - 1)
        return bool(nct.sf(critical, worth - 1, math.sqrt(worth) * effect / stddev) >= power)

    high = least
    while not enough(high):
        high *= 2
    low = high // 2 if high > least else least
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return max(high, least)
