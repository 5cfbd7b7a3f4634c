"""What all finders share: the class of findings, and the factor by which a scale changes from layer to layer."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxinit._measuring import TINY, Row, alike, spans


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
      fault: "overflow", "not finite", "zero weights", "blank batch", "equal samples", "equal units", "dead",
        "saturated", "one-hot attention", "outlier", "exploding signal", "vanishing signal", "scale",
        "exploding gradient", "vanishing gradient", "no gradient" or "ordered".
      layer: the layer where it begins.
      what: the fault in words.
      remedy: the call that would fix it; or, where no initialization does, what else would.
    """

    fault: str
    layer: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} Try {self.remedy}."


def inner(rows: Sequence[Row], members: np.ndarray) -> np.ndarray:
    """All members but the ends of a trunk, if there are enough: read-in and readout have fans of their own."""
    if len(members) <= 3 or rows[int(members[0])].residual:
        return members
    return members[1:-1]


def compared(rows: Sequence[Row], chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen rows in groups of similar layers at several depths, or all of them if there are no such groups."""
    found = [inner(rows, members) for members in alike(rows, chosen)]
    several = [members for members in found if spans(rows, members) > 1]
    if several or not found:
        return several
    trunk = chosen & np.array([not row.residual for row in rows], bool)
    members = np.flatnonzero(trunk).tolist()
    return [np.array(sorted(members, key=lambda i: rows[i].depth))] if len(members) > 1 else []


def growth(scales: object, rows: Sequence[Row], chosen: np.ndarray, *, backwards: bool = False) -> np.ndarray:
    """exp of the slope of log scale over depth, by least squares, with one intercept for each group of similar rows.

    Scales outside the range of float32 are left out, and so are zeros, as of gradients behind an argmax. If too few are
    left for a slope, the factor is 0 or infinite.
    """
    values = np.nan_to_num(np.asarray(scales, float), nan=np.inf)
    rise, run = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1])
    ends = np.ones(values.shape[:-1])
    for members in compared(rows, chosen):
        some = values[..., members]
        depth = np.array([rows[i].depth for i in members], float)
        held = (some > TINY) & np.isfinite(some)
        count = np.maximum(held.sum(-1, keepdims=True), 1)
        x = np.where(held, depth - (held * depth).sum(-1, keepdims=True) / count, 0.0)
        rise += (x * np.log(np.where(held, some, 1.0))).sum(-1)
        run += (x**2).sum(-1)
        largest = np.where(held, 0.0, some).max(-1, initial=0.0)
        ends = np.where(held.all(-1), ends, np.where(largest > 1, np.inf, 0.0))
    slope = rise / np.where(run > 0, run, 1.0)
    return np.where(run > 0, np.exp(-slope if backwards else slope), ends)


def change(scale: np.ndarray, rows: Sequence[Row], chosen: np.ndarray) -> float | None:
    """By what factor a scale changes over all layers, from the ends of each group of similar rows; None if unknown."""
    rise, run = 0.0, 0
    for members in compared(rows, chosen & (scale > TINY) & np.isfinite(scale)):
        first, last = int(members[0]), int(members[-1])
        rise += float(np.log(scale[last] / scale[first]))
        run += rows[last].depth - rows[first].depth
    if not run:
        return None
    depths = [rows[i].depth for i in np.flatnonzero(chosen).tolist()]
    return float(np.exp(rise / run * (max(depths) - min(depths))))
