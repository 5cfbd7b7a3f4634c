"""Interleaved timing: every contender has a turn in each round, so that noise of the machine affects all alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np

_PAUSE = 0.05
"""Seconds before each turn: idle threads of OpenBLAS and OpenMP spin for some 30 ms, which slows down the next turn."""

_TURN = 0.005
"""Seconds of counted calls in one turn, which has between one and five of them."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], seconds: float, pause: float = _PAUSE
) -> dict[str, list[float]]:
    """Times in seconds of each contender, in rounds until the budget is spent (at least three rounds).

    A contender must block until its result is there. A turn is a pause, one uncounted call, and a few counted ones,
    whose median is kept. Without a pause, which is right for accelerators, every call is counted.
    """
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 3:
        for name, run in contenders.items():
            if pause:
                time.sleep(pause)
                run()
            times[name].append(_turn(run))
    return times


def _turn(run: Callable[[], object]) -> float:
    calls: list[float] = []
    while len(calls) < 5 and sum(calls) < _TURN:
        before = time.perf_counter()
        run()
        calls.append(time.perf_counter() - before)
    return float(np.median(calls))


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of theirs / ours: above 1, ours is faster."""
    return float(np.median(np.asarray(theirs) / np.asarray(ours)))
