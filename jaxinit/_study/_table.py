"""The table of a study: one row per start, and explanations of its columns below."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxinit._study import _statistics
from jaxinit._study._comparisons import Comparison, Summary


class Tabulated(Protocol):
    """The numbers that are shown of a study."""

    @property
    def metric(self) -> str: ...
    @property
    def starts(self) -> tuple[str, ...]: ...
    @property
    def learning_rates(self) -> tuple[float, ...]: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def losses(self) -> np.ndarray: ...
    @property
    def final(self) -> Mapping[str, np.ndarray]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def best(self) -> str: ...
    def summary(self) -> Sequence[Summary]: ...
    def comparisons(self) -> Sequence[Comparison]: ...


def shown(result: Tabulated) -> Iterator[Any]:
    """What rich should print."""
    from rich.table import Table

    several_rates, several_starts = len(result.learning_rates) > 1, len(result.starts) > 1
    best, count = result.best(), len(result.seeds)
    by_pair = {frozenset((c.first, c.second)): c for c in result.comparisons()}
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    table = Table(title=f"{result.metric} after {result.losses.shape[-1]} steps, {seeds} from each start")
    table.add_column("start")
    if several_rates:
        table.add_column("rate", justify="right")
    for column in (result.metric, "95% interval", "diverged", *(["p against the best"] * several_starts)):
        table.add_column(column, justify="right")
    for row in result.summary():
        cells = [row.start]
        if several_rates:
            cells.append(" / ".join(f"{rate:g}" for rate in row.learning_rates))
        some = "" if row.finite == count else f" (of {row.finite})"
        cells += [f"{row.mean:.4g}{some}", _interval(row.low, row.high), f"{row.diverged:.0%}"]
        if several_starts:
            cells.append("best" if row.start == best else f"{by_pair[frozenset((row.start, best))].p_holm:.2g}")
        table.add_row(*cells)
    yield table
    if several_rates:
        yield _rates(result)
    yield from _remarks(result, list(by_pair.values()))


def _rates(result: Tabulated) -> Any:
    """The mean over all seeds at every learning rate."""
    from rich.table import Table

    table = Table(title=f"mean {result.metric} at each rate, runs without a finite one left out")
    table.add_column("start")
    for rate in result.learning_rates:
        table.add_column(f"{rate:g}", justify="right")
    values = result.final[result.metric].astype(np.float64)
    for start, rows in zip(result.starts, values, strict=True):
        finite = [row[np.isfinite(row)] for row in rows]
        table.add_row(start, *(f"{row.mean():.4g}" if len(row) else "–" for row in finite))
    return table


def _remarks(result: Tabulated, comparisons: list[Comparison]) -> Iterator[str]:
    count = len(result.seeds)
    if count > 1:
        yield "Interval: bootstrap (BCa) of the mean over seeds."
    if comparisons and count > 1:
        yield (
            "p: exact signed-rank test on pairs of runs with the same seed, "
            f"Holm's correction over {len(comparisons)} comparison{'s' * (len(comparisons) > 1)}."
        )
        smallest = min(1.0, 2.0 ** (1 - count) * len(comparisons))
        if smallest > 0.05:
            least = _statistics.fewest_seeds(0.05 / len(comparisons))
            yield f"With {count} seeds no p below {smallest:.2g} is possible; at least {least} seeds are necessary."
    if len(result.learning_rates) > 1 and count > 1:
        yield "Each seed is reported at the learning rate that was best for all the others."
    rate = result.settings.get("seed_steps_per_second")
    if rate:
        yield f"{rate:,.0f} seed-steps per second on {result.settings['devices']}."


def _interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"{low:.4g} … {high:.4g}"
