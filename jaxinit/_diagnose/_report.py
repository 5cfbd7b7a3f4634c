"""The report of `diagnose`: one row per layer, the growth over depth, the Jacobian, and a verdict."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxinit._checks import check_number
from jaxinit._diagnose._finding import Finding, growth
from jaxinit._diagnose._gradients import gradient_scale, judged
from jaxinit._diagnose._remarks import remarks
from jaxinit._diagnose._verdict import all_clear, findings
from jaxinit._measuring import Measurements, Row, counted
from jaxinit._program import is_traced
from jaxinit._tabular import Tabular, add_path_column

COLUMNS = (
    "pre_mean",
    "pre_std",
    "post_mean",
    "post_std",
    "dead",
    "saturated",
    "similarity",
    "effective_rank",
    "gradient_std",
    "gradient_norm",
    "update_ratio",
)
_TITLES = (
    "mean",
    "std",
    "mean after",
    "std after",
    "dead",
    "saturated",
    "similarity",
    "rank",
    "gradient std",
    "|gradient|",
    "update",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagnoseReport(Measurements, Tabular):
    """What initial weights do to signals and gradients; every array has one entry per row, after mapped axes.

    Attributes:
      rows: the layers in execution order, one row for each slice of a scanned stack.
      pre_mean, pre_std: of the layer's output, over samples and units.
      post_mean, post_std: of the activation's output, or of the layer's output again where no activation follows.
      unread: leaves for which nothing is measured, and why.
      fitting: schemes that a remedy may name because the program meets their assumptions; only of schemes that make
        assumptions.
      dead: share of units whose activation is flat at every sample.
      surely_dead: share of units that would be so at other samples, too, judging by the spread of their inputs.
      saturated: share of elements where the activation has less than a twentieth of its largest slope.
      similarity: mean cosine between the activations of different samples; near 1, all samples look alike.
      effective_rank: participation ratio of the activations of up to 64 samples: how many directions they span.
      gradient_std: root mean square of the gradient at the layer's output; None for programs with a `while_loop`.
      gradient_samples: over how many samples, positions and uses that gradient is spread; None likewise.
      gradient_norm: of the gradient of the weight; None likewise.
      update_ratio: |gradient| / |weight|, the relative change by a step of unit learning rate; None likewise.
      weight_norm: Euclidean norm of the weight.
      attention_peak: for queries and keys, the mean over queries of the largest probability that attention gives; 1 if
        it is one-hot. 0 for other layers, and for a single key.
      input_size: root mean square of the layer's input; 1 for lookups.
      product_size: root mean square of the product of that input with the weight, without the bias.
      branch_share: for layers in the branch of a skip connection, the size of what the branch adds, as a share of what
        it is added to; 1 for other layers.
      leaning: how far the weights of the units are from orthogonal, or those of the inputs if these are fewer: their
        largest product, as a share of their mean square; 1 where it is not known.
      equal_units: whether all units have equal weights and equal gradients, so that they learn the same; None likewise.
      finite_output: whether all numbers that the model returns are finite.
      jacobian_mean_square: mean square of the singular values of the input–output Jacobian, estimated; None for inputs
        that are integers.
      jacobian_condition: its largest singular value over the smallest one found; None likewise.
    """

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def signal_growth(self) -> np.ndarray:
        """The factor by which the scale of the layers' outputs changes from layer to layer, fitted over depth."""
        return growth(self.pre_std, self.rows, counted(self))

    @property
    def gradient_growth(self) -> np.ndarray | None:
        """The factor by which gradients change from layer to layer on their way back, fitted over depth."""
        scale = gradient_scale(self)
        return None if scale is None else growth(scale, self.rows, judged(self), backwards=True)

    def findings(self) -> list[Finding]:
        """The faults, most serious first; for a report over seeds, the faults of its median."""
        return findings(self._median())

    def remarks(self) -> list[str]:
        """Remarks that are not faults: what starts closed or at zero, and what the verdict does not cover."""
        return list(remarks(self._median()))

    @property
    def healthy(self) -> bool:
        """Whether something was measured and nothing is wrong."""
        return bool(self.rows) and not self.findings()

    @property
    def verdict(self) -> str:
        """The faults in words: what is wrong, from which layer on, and which call would fix it; then the remarks."""
        if not self.rows:
            return "Nothing was measured: the program has no layer, that is, no product of data with a stored weight."
        found = self.findings()
        return "\n".join([*(map(str, found) if found else [all_clear(self._median())]), *self.remarks()])

    def summary(self, confidence: float = 0.95) -> "DiagnoseSummary":
        """Mean and interval over seeds of every column, for a report that was vmapped over seeds.

        Raises:
          ValueError: the report has no axis of seeds, or `confidence` is not between 0 and 1.
        """
        check_number("confidence", confidence, positive=True)
        if confidence >= 1:
            raise ValueError(f"confidence must be less than 1, such as 0.95, got {confidence}")
        if np.ndim(self.pre_std) < 2:
            raise ValueError(
                f"summary is over seeds, but this report has arrays of shape {np.shape(self.pre_std)}; vmap diagnose "
                "over seeds to get a report with an axis of seeds"
            )
        from scipy import stats

        means, halves = {}, {}
        for name in COLUMNS:
            values = getattr(self, name)
            if values is not None:
                flat = np.asarray(values).reshape(-1, len(self.rows))
                quantile = stats.t.ppf(0.5 + confidence / 2, len(flat) - 1) if len(flat) > 1 else 0.0
                means[name] = flat.mean(axis=0)
                halves[name] = quantile * flat.std(axis=0, ddof=min(1, len(flat) - 1)) / np.sqrt(len(flat))
        return DiagnoseSummary(self.rows, means, halves, confidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; infinite numbers are None."""
        own = ("surely_dead", "input_size", "product_size", "branch_share", "attention_peak", "equal_units")
        columns = (*COLUMNS, *own, "jacobian_mean_square", "jacobian_condition")
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            **{name: _plain(getattr(self, name)) for name in columns},
            "signal_growth": _plain(self.signal_growth),
            "gradient_growth": _plain(self.gradient_growth),
            "verdict": self.verdict.splitlines(),
            "unread": {leaf.path: leaf.reason for leaf in self.unread},
        }

    def _median(self) -> "DiagnoseReport":
        if np.ndim(self.pre_std) < 2:
            return self

        def median(x: Any) -> np.ndarray:
            array = np.asarray(x)
            trailing = array.shape[-1:] if array.ndim == np.ndim(self.pre_std) else ()
            return np.median(array.reshape(-1, *trailing), axis=0)

        return jax.tree.map(median, self)

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        traced = any(map(is_traced, jax.tree.leaves(self)))
        middle = self if traced else self._median()
        table = Table(title=f"{len(self.rows)} layers" + ("" if middle is self else ", medians over seeds"))
        add_path_column(table, "layer")
        table.add_column("activation")
        shown = [(name, title) for name, title in zip(COLUMNS, _TITLES, strict=True) if getattr(self, name) is not None]
        for _, title in shown:
            table.add_column(title, justify="right")
        for i, row in enumerate(self.rows):
            values = ["traced" if traced else _number(name, np.asarray(getattr(middle, name))[i]) for name, _ in shown]
            table.add_row(row.name, row.activation or "–", *values)
        yield table
        if traced:
            yield "the numbers are known only when the traced function runs: return the report, and print it then"
            return
        back = middle.gradient_growth
        yield f"outputs are multiplied by {float(middle.signal_growth):.3g} per layer" + (
            "" if back is None else f", gradients by {float(back):.3g} per layer in the backward pass"
        )
        if middle.jacobian_mean_square is not None and middle.jacobian_condition is not None:
            yield (
                f"input–output Jacobian: mean squared singular value {float(middle.jacobian_mean_square):.3g}, "
                f"condition at least {float(middle.jacobian_condition):.3g}"
            )
        yield self.verdict


@dataclasses.dataclass(frozen=True)
class DiagnoseSummary(Tabular):
    """Means over seeds, and half the widths of their intervals, by Student's t."""

    rows: tuple[Row, ...]
    means: dict[str, np.ndarray]
    halves: dict[str, np.ndarray]
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "rows": [row.name for row in self.rows],
            "confidence": self.confidence,
            "means": {name: _plain(x) for name, x in self.means.items()},
            "halves": {name: _plain(x) for name, x in self.halves.items()},
        }

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"mean ± half of the {self.confidence:.0%} interval")
        add_path_column(table, "layer")
        for name, title in zip(COLUMNS, _TITLES, strict=True):
            if name in self.means:
                table.add_column(title, justify="right")
        for i, row in enumerate(self.rows):
            table.add_row(row.name, *(f"{self.means[n][i]:.3g} ± {self.halves[n][i]:.1g}" for n in self.means))
        yield table


def _number(name: str, value: float) -> str:
    return f"{value:.0%}" if name in ("dead", "saturated") else f"{value:.3g}"


def _plain(values: Any) -> Any:
    if values is None:
        return None
    array = np.asarray(values, float).astype(object)
    array[~np.isfinite(array.astype(float))] = None
    return array.tolist()
