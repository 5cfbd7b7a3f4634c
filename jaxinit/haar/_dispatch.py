"""Which method and which panel width a shape gets: the table behind `method="auto"`.

Both decide which Gaussian goes where, so they depend on the shape alone: a key gives the same matrix, up to
rounding, on every platform. The figures are those of `benchmarks/haar.py`, kept in
`benchmarks/results/haar-cpu-*.json`.
"""

import math

SMALL_COLUMNS = 16
SMALL_BATCH = 8
"""From this many matrices of at most 16 columns on, "small" beats the panels."""

PANEL_WIDTHS = ((64, 16), (256, 64), (1024, 128), (math.inf, 256))
"""(most columns, panel width); the first row that fits counts. Too wide a panel spends its time on the
inverse of U, too narrow a one on thin products; and each panel adds to the time of compiling."""
BATCHED_WIDTHS = ((32, 8), (64, 16), (128, 32), (1024, 128), (math.inf, 256))
"""The same for batches, whose products are made one matrix after another: thin ones cost them less."""


def method_for(batch: tuple[int, ...], columns: int) -> str:
    """The method that "auto" stands for."""
    if columns <= SMALL_COLUMNS and math.prod(batch) >= SMALL_BATCH:
        return "small"
    return "reflectors"


def panel_width(batch: tuple[int, ...], rows: int, columns: int) -> int:
    """Columns a panel of the "reflectors" method has, for matrices of rows ≥ columns."""
    square_batch = math.prod(batch) > 1 and rows < 4 * columns
    return next(width for most, width in (BATCHED_WIDTHS if square_batch else PANEL_WIDTHS) if columns <= most)


def fewest_panels_width(columns: int) -> int:
    """The panel width of a matrix that is converted, not drawn: its numbers do not depend on the width.

    One matrix of a network is converted once, so the time of compiling counts: a quarter to a half less than with the
    panels of the sampler, while running takes up to a fifth longer, and half as long again for batches.
    """
    return min(max(-(-columns // 2), 128), 256)
