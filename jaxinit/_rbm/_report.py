"""What pretraining did to each layer, as data and as text."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxinit._program import is_traced
from jaxinit._tabular import Tabular, add_path_column
from jaxinit._typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RbmReport(Tabular):
    """One entry per pretrained layer, from the first up; under `vmap` every array has the mapped axes first.

    Attributes:
      paths: paths of the weights.
      sizes: (visible, hidden) units.
      before: mean squared reconstruction error of the untrained machine, which is near the variance of the data.
      after: the same after training.
      visible_bias: b of each machine, of shape (visible,). A feed-forward network has no leaf for it, but the
        decoder of an autoencoder starts from it.
      others: (path, reason) of the layers that are not changed.
    """

    paths: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    sizes: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    before: tuple[Array, ...]
    after: tuple[Array, ...]
    visible_bias: tuple[Array, ...]
    others: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.paths)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [
            {"path": path, "visible": visible, "hidden": hidden}
            | {name: np.asarray(getattr(self, name)[i]).tolist() for name in ("before", "after", "visible_bias")}
            for i, (path, (visible, hidden)) in enumerate(zip(self.paths, self.sizes, strict=True))
        ]
        return {"layers": rows, "others": [list(entry) for entry in self.others]}

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title="restricted Boltzmann machines: mean squared reconstruction error")
        add_path_column(table, "layer")
        for column in ("visible", "hidden", "before", "after"):
            table.add_column(column, justify="right")
        for i, (path, (visible, hidden)) in enumerate(zip(self.paths, self.sizes, strict=True)):
            table.add_row(path, str(visible), str(hidden), _shown_mean(self.before[i]), _shown_mean(self.after[i]))
        yield table
        for path, reason in self.others:
            yield f"left as it is: {path} {reason}"


def _shown_mean(values: Array) -> str:
    """One number, or the mean over mapped axes."""
    return "traced" if is_traced(values) else f"{float(np.mean(np.asarray(values))):.4g}"
