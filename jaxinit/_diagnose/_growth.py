"""By what factor a scale changes from layer to layer, fitted over depth."""

from collections.abc import Sequence

import numpy as np

from jaxinit._diagnose._rows import Row

TINY = 1e-30
"""Scales below this are no longer those of what float32 holds."""


def towers(rows: Sequence[Row], chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen rows of each tower, from the shallowest to the deepest; the longest tower comes first.

    What is less than three layers deep, such as gates beside one another, counts with the longest tower.
    """
    found: dict[int, list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        found.setdefault(rows[i].tower, []).append(i)
    length = {tower: len({rows[i].depth for i in members}) for tower, members in found.items()}
    longest, *others = sorted(found, key=lambda tower: -length[tower]) or [-1]
    kept = [longest, *(tower for tower in others if length[tower] >= 3)]
    joined = [i for tower, members in found.items() if tower not in kept[1:] for i in members]
    groups = [joined, *(found[tower] for tower in kept[1:])] if found else []
    return [np.array(sorted(members, key=lambda i: rows[i].depth)) for members in groups]


def inner(members: np.ndarray) -> np.ndarray:
    """Without the ends, if there are some rows: the read-in and the readout have fans of their own."""
    return members[1:-1] if len(members) > 4 else members


def growth(scales: object, rows: Sequence[Row], chosen: np.ndarray, *, backwards: bool = False) -> np.ndarray:
    """exp of the slope of log scale over depth, by least squares, with one intercept for each tower.

    Scales that float32 does not hold are left out, and zeros, as of gradients behind an argmax; if so few are left that
    there is no slope, the factor is 0 or infinite.
    """
    values = np.nan_to_num(np.asarray(scales, float), nan=np.inf)
    rise, run = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1])
    ends = np.ones(values.shape[:-1])
    for members in towers(rows, chosen):
        some = values[..., inner(members)]
        depth = np.array([rows[i].depth for i in inner(members)], float)
        held = (some > TINY) & np.isfinite(some)
        count = np.maximum(held.sum(-1, keepdims=True), 1)
        x = np.where(held, depth - (held * depth).sum(-1, keepdims=True) / count, 0.0)
        rise += (x * np.log(np.where(held, some, 1.0))).sum(-1)
        run += (x**2).sum(-1)
        largest = np.where(held, 0.0, some).max(-1, initial=0.0)
        ends = np.where(held.all(-1), ends, np.where(largest > 1, np.inf, 0.0))
    slope = rise / np.where(run > 0, run, 1.0)
    return np.where(run > 0, np.exp(-slope if backwards else slope), ends)
