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

    A scale that float32 does not hold ends the fit, as nothing is known of what comes after; if so little is left that
    there is no slope, the factor is 0 or infinite.
    """
    values = np.nan_to_num(np.asarray(scales, float), nan=np.inf)
    rise, run = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1])
    ends = np.ones(values.shape[:-1])
    for members in towers(rows, chosen):
        along = inner(members)
        depth = np.array([rows[i].depth for i in along], float)
        if backwards:
            along, depth = along[::-1], -depth[::-1]
        some = values[..., along]
        held = np.logical_and.accumulate((some > TINY) & np.isfinite(some), axis=-1)
        count = np.maximum(held.sum(-1, keepdims=True), 1)
        logs = np.log(np.where(held, some, 1.0))
        x = np.where(held, depth - (held * depth).sum(-1, keepdims=True) / count, 0.0)
        rise += (x * logs).sum(-1)
        run += (x**2).sum(-1)
        lost = ~held.all(-1)
        ends = np.where(lost, np.where(_first_lost(some, held) > 1, np.inf, 0.0), ends)
    return np.where(run > 0, np.exp(rise / np.where(run > 0, run, 1.0)), ends)


def _first_lost(values: np.ndarray, held: np.ndarray) -> np.ndarray:
    at = np.argmin(held, axis=-1)[..., None]
    return np.take_along_axis(values, at, -1)[..., 0] if values.shape[-1] else np.zeros(values.shape[:-1])
