"""Interleaved timing: every contender runs once per round, so that noise of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(contenders: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Times in seconds of each contender, in rounds until the budget is spent (at least three rounds).

    A contender must block until its result is there. Each is called once beforehand, uncounted.
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 3:
        for name, run in contenders.items():
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return times


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of theirs / ours: above 1, ours is faster."""
    return float(np.median(np.asarray(theirs) / np.asarray(ours)))
