"""What a study says about one start over its seeds, and about two starts compared: functions of arrays.

A score is the metric with its sign chosen so that more is better, and -inf where it is not finite.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinit._study import _statistics


@dataclasses.dataclass(frozen=True)
class Summary:
    """One start.

    Attributes:
      start: its name.
      learning_rates: those at which its runs count; see `StudyResult.chosen_rates`.
      mean, low, high: mean of the metric over its seeds and its bootstrap interval, without non-finite values.
      finite: how many of its seeds have a finite metric.
      diverged: share of its seeds that diverged.
    """

    start: str
    learning_rates: tuple[float, ...]
    mean: float
    low: float
    high: float
    finite: int
    diverged: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two starts, seed by seed.

    Attributes:
      first, second: their names.
      difference, low, high: mean of first − second over the seeds where both are finite, and its bootstrap interval.
      p: of the exact signed-rank test, in which a non-finite metric is the worst.
      p_holm: the same with Holm's correction for all comparisons that were made with it.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def chosen_rates(score: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Starts × seeds, the index of the learning rate at which a run counts.

    If the best of several rates were judged by the same seeds that are reported, it would look better than it is. So
    each seed is reported at the rate that is best for all the others: no seed influences its own rate. The best rate
    is the one at which the fewest of them diverge, and among those the one with the best mean of the rest.

    Args:
      score, diverged: starts × learning rates × seeds.
    """
    score = np.where(diverged, -np.inf, score)
    _, rates, count = score.shape
    seeds = np.arange(count)
    judges = [np.delete(seeds, seed) if count > 1 else seeds for seed in seeds]
    return np.array([[min(range(rates), key=lambda r: _badness(own[r, others])) for others in judges] for own in score])


def at_rates(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Starts × rates × seeds × ... at the rate that was chosen for each start and seed."""
    starts, seeds = np.indices(chosen.shape)
    return values[starts, chosen, seeds]


def best(score: np.ndarray) -> int:
    """The start with the fewest lost runs, and among those the best mean, from values of starts × seeds."""
    return min(range(len(score)), key=lambda i: _badness(score[i]))


def summaries(
    names: Sequence[str],
    rates: Sequence[Sequence[float]],
    values: np.ndarray,
    diverged: np.ndarray,
    level: float,
) -> list[Summary]:
    """One entry per start, from its values and which runs diverged, both starts × seeds."""
    entries = []
    for name, own_rates, own, lost in zip(names, rates, values, diverged, strict=True):
        finite = own[np.isfinite(own)]
        mean = float(finite.mean()) if len(finite) else float("nan")
        low, high = _statistics.interval(finite, level)
        entries.append(Summary(name, tuple(own_rates), mean, float(low), float(high), len(finite), float(lost.mean())))
    return entries


def comparisons(
    names: Sequence[str], pairs: Sequence[tuple[int, int]], values: np.ndarray, score: np.ndarray, level: float
) -> list[Comparison]:
    """One entry per pair of starts, from values and scores, both starts × seeds; Holm's correction over all pairs."""
    found, p_values = [], []
    for i, j in pairs:
        # Two runs that are both lost are equal; infinity minus infinity would be NaN.
        lost = np.isneginf(score[i]) & np.isneginf(score[j])
        p_values.append(_statistics.signed_rank(np.where(lost, 0, score[i] - np.where(lost, 0, score[j]))))
        both = np.isfinite(values[i]) & np.isfinite(values[j])
        difference = values[i, both] - values[j, both]
        mean = float(difference.mean()) if both.any() else float("nan")
        found.append((i, j, mean, *_statistics.interval(difference, level)))
    corrected = _statistics.holm(np.array(p_values))
    return [
        Comparison(names[i], names[j], mean, float(low), float(high), p, float(q))
        for (i, j, mean, low, high), p, q in zip(found, p_values, corrected, strict=True)
    ]


def _badness(score: np.ndarray) -> tuple[int, float]:
    """Smaller is better: the number of lost scores, then the mean of the others."""
    finite = np.isfinite(score)
    return int((~finite).sum()), -float(score[finite].mean()) if finite.any() else 0.0
