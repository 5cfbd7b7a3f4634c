"""Which rows are compared with one another: those that meet data, in groups of similar layers.

Growth over depth is fitted over layers that do the same at different depths: the layers of the trunk of one
tower, or those at one position of all branches. A branch that starts closed, a tower that conditions the model and a
readout have sizes of their own, so none of them is a measure of the others.
"""

from collections.abc import Sequence

import numpy as np

from jaxinit._measuring._measurements import Measurements
from jaxinit._measuring._rows import Row

TINY = 1e-30
"""Scales below this are outside the range of float32."""
FEW = 4
"""The scale of fewer numbers than these is a matter of chance."""


def counted(report: Measurements) -> np.ndarray:
    """The rows that count for growth over depth, which excludes lookups, queries and keys.

    Weights that are zero are meant to be: readouts and last layers of branches. They show nothing.
    """
    counts = [row.kind != "embed" and row.role not in ("query", "key") for row in report.rows]
    norms = np.asarray(report.weight_norm, float)
    return np.array(counts, bool) & (norms > 0).any(axis=tuple(range(norms.ndim - 1)))


def form(row: Row) -> object:
    """What is equal for rows that do the same at different depths."""
    if not row.residual:
        return row.tower, row.aside, row.normalized, row.recurrent
    return row.position, row.branch_length, row.kind, row.role, row.activation, row.normalized, row.recurrent


def alike(rows: Sequence[Row], chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen rows by their form, those of each form from the shallowest to the deepest."""
    found: dict[object, list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        found.setdefault(form(rows[i]), []).append(i)
    return [np.array(sorted(members, key=lambda i: rows[i].depth)) for members in found.values()]


def spans(rows: Sequence[Row], members: np.ndarray) -> int:
    """The number of different depths of rows."""
    return len({rows[i].depth for i in members})


def gains(report: Measurements) -> np.ndarray:
    """The output size of each layer over its input size; NaN if either is zero, or of few numbers."""
    out, taken = np.asarray(report.product_size, float), np.asarray(report.input_size, float)
    several = np.array([row.numbers >= FEW for row in report.rows], bool)
    known = counted(report) & several & (out > TINY) & (taken > TINY)
    return np.where(known, out / np.where(known, taken, 1.0), np.nan)


def ends_branch(row: Row) -> bool:
    """Whether a layer is the last one of the branch of a skip connection."""
    return row.position is not None and row.branch_length is not None and row.position == row.branch_length - 1


def reads_out(row: Row) -> bool:
    """Whether a layer is a readout or a head: no other layer and no skip connection uses its output."""
    return row.last and not row.residual
