"""Haar matrices by Stewart's reflectors in panels: draw the trapezoid of Gaussians, multiply the panels out.

Little more than N·k − k(k − 1)/2 Gaussians are drawn for an N × k frame, and no matrix is factorised (Stewart 1980).
"""

from jaxinit._typing import Array, DTypeLike
from jaxinit.haar._dispatch import panel_width
from jaxinit.haar._panels import cut, draw, with_determinant_one
from jaxinit.haar._reflectors import frame


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    rows, columns = max(n, m), min(n, m)
    panels = draw(key, batch, cut(rows, columns, panel_width(batch, rows, columns)), n > m, dtype)
    return frame(with_determinant_one(panels) if special else panels, n > m)
