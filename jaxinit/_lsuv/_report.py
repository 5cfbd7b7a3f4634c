"""What LSUV did to each layer, as data and as text."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxinit._lsuv._moments import (
    DEAD,
    NO_ROOT,
    NOT_CONVERGED,
    NOT_FINITE,
    NOT_HELD,
    NOT_REACHED,
    NOT_REPRODUCIBLE,
    ZERO,
)
from jaxinit._program import is_traced
from jaxinit._tabular import Tabular, add_path_column
from jaxinit._typing import Array

MEANINGS = {
    DEAD: "dead: its output does not vary, or only by rounding; not scaled",
    NO_ROOT: "no scale reaches the target: the bias alone varies more; not scaled",
    NOT_FINITE: "its output, or the square of it, is not finite in float32; not scaled",
    NOT_CONVERGED: "not within the tolerance after the last attempt",
    NOT_REACHED: "not reached on this batch; not scaled",
    NOT_HELD: "its dtype cannot hold the scale that would reach the target",
    ZERO: "dead: zero weights, or zero input; not scaled",
    NOT_REPRODUCIBLE: "a fresh evaluation misses the tolerance: the net amplifies rounding",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LsuvReport(Tabular):
    """One entry per layer, in execution order of first use; under `vmap` every array has the mapped axes first.

    Attributes:
      paths: paths of the weights.
      notes: for each, what is known from tracing: why it was skipped, whether it is shared; "" if there is no note.
      before: std of the layer's output, bias included, before scaling; one for each slice of a scan and each
        independent weight, or channel.
      after: the same after scaling.
      target: the target std.
      scale: the factor of the weight.
      attempts: how many evaluations of the program the layer took.
      flags: bits, explained in `problems`; 0 if all is well.
      unvisited: (path, reason) of weights that do not belong to any layer: see `jaxinit.trace_layers`.
    """

    paths: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    notes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    before: tuple[Array, ...]
    after: tuple[Array, ...]
    target: tuple[Array, ...]
    scale: tuple[Array, ...]
    attempts: tuple[Array, ...]
    flags: tuple[Array, ...]
    unvisited: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())

    def __len__(self) -> int:
        return len(self.paths)

    def problems(self) -> dict[str, list[str]]:
        """Path → what went wrong, or what was left unchanged and why, in words; other layers are absent."""
        found: dict[str, list[str]] = {}
        for path, note, flags in zip(self.paths, self.notes, self.flags, strict=True):
            bits = int(np.bitwise_or.reduce(np.asarray(flags), axis=None))
            entries = [note] if note else []
            entries += [meaning for bit, meaning in MEANINGS.items() if bits & bit]
            if entries:
                found.setdefault(path, []).extend(entries)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: a list with one entry per layer."""
        arrays = ("before", "after", "target", "scale", "attempts", "flags")
        rows = [
            {"path": path, "note": note} | {name: np.asarray(getattr(self, name)[i]).tolist() for name in arrays}
            for i, (path, note) in enumerate(zip(self.paths, self.notes, strict=True))
        ]
        return {"layers": rows, "unvisited": [list(entry) for entry in self.unvisited]}

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title="LSUV: standard deviation of each layer's output")
        add_path_column(table, "layer")
        for column in ("before", "after", "target", "scale", "attempts"):
            table.add_column(column, justify="right")
        table.add_column("remarks")
        for i, path in enumerate(self.paths):
            flags = self.flags[i]
            bits = 0 if is_traced(flags) else int(np.bitwise_or.reduce(np.asarray(flags), axis=None))
            remarks = [self.notes[i]] if self.notes[i] else []
            remarks += [meaning for bit, meaning in MEANINGS.items() if bits & bit]
            columns = (self.before, self.after, self.target, self.scale, self.attempts)
            table.add_row(path, *(_range(column[i]) for column in columns), "; ".join(remarks))
        yield table
        for path, reason in self.unvisited:
            yield f"not visited: {path}: {reason}"


def _range(values: Array) -> str:
    """One number, or the smallest and the largest of several."""
    if is_traced(values):
        return "traced"
    numbers = np.asarray(values)
    if numbers.size == 0:
        return "–"
    low, high = f"{numbers.min():.4g}", f"{numbers.max():.4g}"
    return low if low == high else f"{low} … {high}"
