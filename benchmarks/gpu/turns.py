"""Timing on an accelerator: programs' first calls, one call at a time, and calls in a queue."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from _timing import interleaved

from gpu.record import COMPILES, Row

QUEUE = 20
"""How many calls are issued in a row before waiting for them."""

SHORT = 2e-3
"""Seconds below which a call is also timed in a queue, which hides the time to dispatch it."""


class Contender(NamedTuple):
    """A function that starts work and returns at once, and one that waits for its result."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready

    def run(self) -> Any:
        """One call that is waited for."""
        return self.wait(self.start())

    def queue(self) -> Any:
        """Many calls, then one wait for all."""
        return self.wait([self.start() for _ in range(QUEUE)])


def first_call(run: Callable[[], Any]) -> tuple[Any, Row]:
    """The result of the call, its seconds, and how many programs it compiled in which part of them."""
    before = COMPILES.programs, COMPILES.seconds
    began = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, {"first_s": time.perf_counter() - began, **COMPILES.since(*before)}


def medians(contenders: Mapping[str, Contender], seconds: float) -> dict[str, Row]:
    """Median milliseconds of a call that is waited for, and of one in a queue if it is short, in turns."""
    times = interleaved({name: c.run for name, c in contenders.items()}, seconds, pause=0)
    found: dict[str, Row] = {name: {"ms": 1e3 * float(np.median(t))} for name, t in times.items()}
    short = {name: c for name, c in contenders.items() if np.median(times[name]) < SHORT}
    if short:
        times = interleaved({name: c.queue for name, c in short.items()}, seconds, pause=0)
        for name, t in times.items():
            found[name]["queued_ms"] = 1e3 * float(np.median(t)) / QUEUE
    return found


def jitted(
    function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any] | None = None
) -> tuple[Contender, Any, Row]:
    """A jitted function ready to be timed, the result of its first call, and how long that took."""
    program = jax.jit(function, compiler_options=dict(options) if options else None)
    result, row = first_call(lambda: program(*arguments))
    return Contender(lambda: program(*arguments)), result, row
