"""The progress bar of a study, with seed-steps per second."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(shown: bool, total: int, done: int) -> Iterator[Callable[[str, int], None]]:
    """Yields a function to tell of progress: the start in training, and how many seed-steps it took since.

    Args:
      shown: whether there is a bar at all.
      total: seed-steps of the study.
      done: those that came from disk.
    """
    if not shown:
        yield lambda start, taken: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} seed-steps/s" if task.speed else "compiling")

    columns = (TextColumn("{task.description:24}", markup=False), BarColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=done)

        def advanced(start: str, taken: int) -> None:
            progress.update(task, description=start, advance=taken)

        yield advanced
