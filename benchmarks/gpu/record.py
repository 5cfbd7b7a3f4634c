"""The JSON file of a run with limited time: written after every row, with errors caught and time divided.

A row that fails is kept with its traceback, and a row for which no time is left is kept with that reason; the rest goes
on. The sections' deadlines follow one another, so time that one section leaves is used by later ones.
"""

import json
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from rich.console import Console

Row = dict[str, Any]


class Compiles:
    """Counts the programs that XLA has compiled in this process, and the seconds that took."""

    def __init__(self) -> None:
        self.programs, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.programs += 1
            self.seconds += duration

    def since(self, programs: int, seconds: float) -> Row:
        """What was compiled since the counts had these values."""
        return {"programs": self.programs - programs, "compile_s": self.seconds - seconds}


COMPILES = Compiles()


class Record:
    """One run's results.

    Args:
      path: the JSON file.
      machine: what it was measured on.
      seconds: of the whole run; after that no row starts.
    """

    def __init__(self, path: pathlib.Path, machine: Mapping[str, Any], seconds: float) -> None:
        self.path, self.report = path, {"machine": dict(machine), "sections": {}}
        self.console = Console(width=150)
        self._began = time.perf_counter()
        self._end = self._began + seconds
        self._deadline = self._began
        self.save()

    def left(self) -> float:
        """Seconds until the section's deadline."""
        return min(self._deadline, self._end) - time.perf_counter()

    def section(self, name: str, seconds: float, rows: Iterable[tuple[str, Callable[[], Row]]]) -> None:
        """Runs the rows of a section, until this many seconds after the deadline of the section before it.

        Args:
          name: of the section.
          seconds: its budget. A row that has begun is finished.
          rows: the name of each row, and the function that returns its figures.
        """
        self._deadline += seconds
        found: Row = {}
        began = time.perf_counter()
        entry = self.report["sections"][name] = {"budget_s": seconds, "began_s": began - self._began, "rows": found}
        for row, measure in rows:
            found[row] = self._measured(measure)
            entry["seconds"] = time.perf_counter() - began
            self.save()
            state = next((word for word in ("skipped", "failed") if word in found[row]), "done")
            style = "dim" if state == "done" else "bold red"
            self.console.print(f"{self._since():6.1f} s  {name}: {row}  {state}", style=style, highlight=False)

    def _measured(self, measure: Callable[[], Row]) -> Row:
        if self.left() <= 0:
            return {"skipped": "the section's time was spent"}
        began, before = time.perf_counter(), (COMPILES.programs, COMPILES.seconds)
        try:
            row = measure()
        except Exception:  # whatever it is, the other rows are still wanted
            row = {"failed": traceback.format_exc()}
        return row | {"seconds": time.perf_counter() - began, **COMPILES.since(*before)}

    def _since(self) -> float:
        return time.perf_counter() - self._began

    def save(self) -> None:
        """Writes the results so far; the file is complete at any moment."""
        self.report["seconds"] = self._since()
        self.report["compiled"] = COMPILES.since(0, 0.0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.report, indent=1) + "\n")
        unfinished.replace(self.path)
