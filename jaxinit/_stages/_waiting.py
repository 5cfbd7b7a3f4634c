"""A progress bar on the terminal for calls that last longer than two seconds, such as a first call of a deep model.

In pipes, notebooks and traces nothing is shown, and nothing is shown during the first two seconds.
"""

import contextlib
import contextvars
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxinit import _program as ir

_SECONDS = 2.0
_current: contextvars.ContextVar["_Bar | None"] = contextvars.ContextVar("waiting", default=None)
_is_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("quiet", default=False)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A context in which the caller waits for a result; `what` is the function that was called."""
    shows = not _is_quiet.get() and sys.stderr is not None and sys.stderr.isatty() and ir.is_outside()
    if not shows:
        yield
        return
    bar = _Bar(what)
    with quietly():
        token = _current.set(bar)
        try:
            yield
        finally:
            _current.reset(token)
            bar.stop()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """A context in which something else shows progress."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def tell(done: int, total: int) -> None:
    """How many steps out of how many are done."""
    bar = _current.get()
    if bar is not None:
        bar.tell(done, total)


class _Bar:
    """A bar that appears after a while. A timer starts it, the waiting thread ends it, and either may come first."""

    def __init__(self, what: str):
        self._what = what
        self._lock = threading.Lock()
        self._progress: Any = None
        self._steps: tuple[int, int | None] = 0, None
        self._timer = threading.Timer(_SECONDS, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with self._lock:
            if self._timer.finished.is_set():  # it is over
                return
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._what, completed=self._steps[0], total=self._steps[1])
            self._progress.start()

    def tell(self, done: int, total: int) -> None:
        with self._lock:
            self._steps = done, total
            if self._progress is not None:
                self._progress.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
