"""What a study says of one start over its seeds, and of two starts beside one another."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Summary:
    """One start.

    Attributes:
      start: its name.
      learning_rates: those at which its runs count; see `StudyResult.chosen_rates`.
      mean, low, high: mean of the metric over its seeds and the bootstrap interval of it, non-finite ones left out.
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
