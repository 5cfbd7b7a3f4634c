"""The result of a study: the numbers of every run, and what they say about the starts."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxinit._study import _comparisons, _statistics
from jaxinit._study._comparisons import Comparison, Summary
from jaxinit._study._metrics import LOSS
from jaxinit._study._records import Plan, Records
from jaxinit._study._table import shown
from jaxinit._tabular import Tabular


@dataclasses.dataclass(frozen=True, eq=False)
class StudyResult(Tabular):
    """What `jaxinit.study` found; prints as a table.

    Attributes:
      starts: names of the starts.
      seeds: numbers of the seeds.
      learning_rates: the learning rates.
      losses: training loss of the batch before each step, starts × learning rates × seeds × steps.
      initial: metric → its values before training, starts × seeds × ...
      final: metric → its values after training, starts × learning rates × seeds × ...; "loss" is the mean training
        loss of the last tenth of the steps.
      metric: the metric by which starts are compared.
      maximize: whether more of it is better.
      diverged_above: final loss above which a run counts as diverged; None for twice the loss at its first step.
      settings: steps, batch size, versions, device, seed-steps per second and the like.
    """

    starts: tuple[str, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    losses: np.ndarray = dataclasses.field(repr=False)
    initial: dict[str, np.ndarray] = dataclasses.field(repr=False)
    final: dict[str, np.ndarray] = dataclasses.field(repr=False)
    metric: str
    maximize: bool
    diverged_above: float | None
    settings: dict[str, Any] = dataclasses.field(repr=False)
    _plan: Plan = dataclasses.field(repr=False)

    def diverged(self) -> np.ndarray:
        """Starts × learning rates × seeds, whether a run diverged.

        A run diverged if a loss or the metric is not finite, or if the final loss is above `diverged_above`, by default
        above first + |first|, where first is the loss at its own first step (so twice that loss if it is positive).
        """
        first = self.losses[..., 0].astype(np.float64)
        limit = first + np.abs(first) if self.diverged_above is None else self.diverged_above
        finite = np.isfinite(self.losses).all(axis=-1) & np.isfinite(self.final[self.metric])
        return ~(finite & (self.final[LOSS] <= limit))

    def chosen_rates(self) -> np.ndarray:
        """Starts × seeds, the index of the learning rate at which a run counts: the best for all the other seeds.

        If the best of several rates were judged by the same seeds that are reported, it would look better than it is.
        So no seed influences its own rate. The best rate is the one at which the fewest runs diverge, and among those
        the one with the best mean of the rest.
        """
        return _comparisons.chosen_rates(self._score(), self.diverged())

    def values(self) -> np.ndarray:
        """Starts × seeds, the metric at the chosen learning rates."""
        return _comparisons.at_rates(self.final[self.metric], self.chosen_rates())

    def curves(self) -> np.ndarray:
        """Starts × seeds × steps, the training losses at the chosen learning rates."""
        return _comparisons.at_rates(self.losses, self.chosen_rates())

    def summary(self, level: float = 0.95) -> list[Summary]:
        """Summarizes each start, with one entry per start.

        Args:
          level: confidence level of the intervals.
        """
        chosen = self.chosen_rates()
        rates = [[self.learning_rates[r] for r in np.unique(own)] for own in chosen]
        diverged = _comparisons.at_rates(self.diverged(), chosen)
        return _comparisons.summaries(self.starts, rates, self.values().astype(np.float64), diverged, level)

    def comparisons(self, reference: str | None = None, level: float = 0.95) -> list[Comparison]:
        """Compares starts in pairs, with Holm's correction over the comparisons that are returned.

        Equal seeds of two starts share their random key and the order of their samples. The null hypothesis is that,
        for every seed, a coin flip decided which of the two starts had which result.

        Args:
          reference: compare every start only with this one; by default all pairs are compared.
          level: confidence level of the intervals, which are not corrected.
        """
        if reference is None:
            pairs = [(i, j) for i in range(len(self.starts)) for j in range(i + 1, len(self.starts))]
        else:
            j = self._index(reference)
            pairs = [(i, j) for i in range(len(self.starts)) if i != j]
        score = _comparisons.at_rates(self._score(), self.chosen_rates())
        return _comparisons.comparisons(self.starts, pairs, self.values().astype(np.float64), score, level)

    def best(self) -> str:
        """The start with the fewest non-finite metrics, and among those the best mean."""
        return self.starts[_comparisons.best(_comparisons.at_rates(self._score(), self.chosen_rates()))]

    def seeds_needed(
        self, effect: float, first: str, second: str, *, power: float = 0.8, alpha: float = 0.05, comparisons: int = 1
    ) -> int:
        """Computes how many seeds are needed to find a difference of this size between two starts.

        Uses the standard deviation of their paired differences in this study, which n seeds determine to about
        1/sqrt(2n): the answer from 16 seeds may be a third too large or too small.

        Args:
          effect: the mean difference of the metric to be found.
          first, second: the starts.
          power: the probability of finding it.
          alpha: level of the two-sided test.
          comparisons: how many comparisons share the level.

        Raises:
          ValueError: the effect is not positive, a start is unknown, or fewer than two seeds have a finite metric.
        """
        if not (np.isfinite(effect) and effect > 0):
            raise ValueError(f"effect must be a positive number, the difference in {self.metric!r}, got {effect}")
        if not (0 < power < 1 and 0 < alpha < 1 and comparisons >= 1):
            raise ValueError(
                "power and alpha must be between 0 and 1, and comparisons 1 or more, got "
                f"power={power}, alpha={alpha}, comparisons={comparisons}"
            )
        values = self.values().astype(np.float64)
        difference = values[self._index(first)] - values[self._index(second)]
        difference = difference[np.isfinite(difference)]
        if len(difference) < 2:
            raise ValueError(
                f"at least two seeds with a finite {self.metric!r} from both starts are needed to know how it spreads, "
                f"got {len(difference)}; run more seeds"
            )
        return _statistics.seeds_needed(float(difference.std(ddof=1)), effect, power, alpha / comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: what the table shows, every value of the metric, and the settings."""
        diverged, values = self.diverged(), self.final[self.metric]
        return {
            "metric": self.metric,
            "maximize": self.maximize,
            "seeds": list(self.seeds),
            "learning_rates": list(self.learning_rates),
            "summary": [dataclasses.asdict(entry) for entry in self.summary()],
            "comparisons": [dataclasses.asdict(entry) for entry in self.comparisons()],
            "values": {start: values[i].tolist() for i, start in enumerate(self.starts)},
            "diverged": {start: diverged[i].tolist() for i, start in enumerate(self.starts)},
            "settings": self.settings,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result to an npz file, either as a whole or not at all.

        `load` reads it. To continue the study with more seeds or starts, pass the file as `path=`; this requires that
        the study had a path, too, because only such a study records which programs computed the numbers.
        """
        records = Records(self._plan, self.starts, self.seeds)
        records.done[:] = True
        records.losses = self.losses
        records.initial = {name: values for name, values in self.initial.items() if name != LOSS}
        records.final = {name: values for name, values in self.final.items() if name != LOSS}
        names = ("metric", "maximize", "diverged_above")
        facts = {name: value for name, value in self.settings.items() if name not in self._plan.settings}
        records.write(path, {"settings": facts, **{name: getattr(self, name) for name in names}})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StudyResult":
        """Reads a result that `save`, or `jaxinit.study(path=...)`, wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is damaged, not a study, or a study that was interrupted.
        """
        records, facts = Records.read(path)
        if not records.done.all():
            raise ValueError(
                f"{path} is a study that was interrupted: {records.done.sum()} of its {records.done.size} runs are "
                "finished; call jaxinit.study again with this path to complete it"
            )
        try:
            return result_of(records, **facts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is a damaged study of jaxinit ({error!r})") from error

    def _score(self) -> np.ndarray:
        """The metric with its sign chosen so that more is better, and -inf where it is not finite."""
        values = self.final[self.metric].astype(np.float64)
        return np.where(np.isfinite(values), values if self.maximize else -values, -np.inf)

    def _index(self, start: str) -> int:
        if start not in self.starts:
            raise ValueError(f"a start must be one of {list(self.starts)}, got {start!r}")
        return self.starts.index(start)

    def _shown(self) -> Iterator[Any]:
        yield from shown(self)


def result_of(
    records: Records, *, metric: str, maximize: bool, diverged_above: float | None, settings: dict[str, Any]
) -> StudyResult:
    """The result of complete records."""
    losses = records.losses
    assert losses is not None
    steps = losses.shape[-1]
    last = losses[..., -max(1, steps // 10) :].astype(np.float64).mean(axis=-1)
    return StudyResult(
        starts=records.starts,
        seeds=records.seeds,
        learning_rates=records.plan.learning_rates,
        losses=losses,
        initial={LOSS: losses[:, 0, :, 0], **records.initial},
        final={LOSS: last, **records.final},
        metric=metric,
        maximize=maximize,
        diverged_above=diverged_above,
        settings={**records.plan.settings, **settings},
        _plan=records.plan,
    )
