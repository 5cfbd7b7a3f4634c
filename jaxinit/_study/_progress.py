"""The progress bar of a study: which start is being compiled or trained, and how long the rest takes at this speed.

It is only for terminals. In pipes, files and notebooks nothing is shown.
"""

import contextlib
import datetime
import sys
from collections.abc import Iterator
from typing import Any

from jaxinit._stages import quietly


class Progress:
    """The interface by which a study reports its progress; this class reports nothing."""

    def compiling(self, start: str) -> None:
        """The programs of a start are being compiled."""

    def training(self, start: str) -> None:
        """Seeds of a start are in training."""

    def took(self, seed_steps: int, rate: float) -> None:
        """Reports seed-steps that were taken, and the overall rate per second."""


class _Bar(Progress):
    def __init__(self, bar: Any, total: int, done: int):
        self._bar, self._left = bar, total - done
        self._task = bar.add_task("", total=total, completed=done, state="")

    def compiling(self, start: str) -> None:
        self._bar.update(self._task, description=start, state="compiling")

    def training(self, start: str) -> None:
        self._bar.update(self._task, description=start, state="training")

    def took(self, seed_steps: int, rate: float) -> None:
        self._left -= seed_steps
        left = datetime.timedelta(seconds=round(self._left / rate))
        self._bar.update(self._task, advance=seed_steps, state=f"training, {rate:,.0f} seed-steps/s, {left} left")


@contextlib.contextmanager
def progress_bar(wanted: bool, total: int, done: int) -> Iterator[Progress]:
    """The progress bar, or the class that reports nothing.

    Args:
      wanted: whether a bar is shown on a terminal.
      total: seed-steps of the study.
      done: seed-steps that were loaded from disk.
    """
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:24}", markup=False), BarColumn(), TextColumn("{task.fields[state]}"))
    with quietly(), Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars, total, done)
