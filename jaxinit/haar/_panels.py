"""How the Gaussian vectors of Stewart's algorithm lie in one draw.

Vector j of a frame of k vectors of length N needs N − j Gaussians. The vectors are cut into panels; two panels
in a row share a draw of pairs, one taking the first and one the second number of each, so that few numbers are
drawn in vain: those left of the diagonal of each panel, and a square for the second panel of each two.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxinit._typing import Array, DTypeLike
from jaxinit.haar._pairs import normal_pairs


class Panel(NamedTuple):
    """The place of one panel: its first row and column, and how many rows and columns it has."""

    offset: int
    rows: int
    width: int


def cut(rows: int, columns: int, width: int) -> list[Panel]:
    """Panels of `width` columns, the last one narrower if need be, for a frame of rows ≥ columns."""
    return [Panel(offset, rows - offset, min(width, columns - offset)) for offset in range(0, columns, width)]


def draw(key: Array, batch: tuple[int, ...], layout: list[Panel], tall: bool, dtype: DTypeLike) -> list[Array]:
    """The Gaussian vectors of each panel, (*batch, width, rows), zero before its diagonal; transposed if tall."""
    width = layout[0].width
    lengths = [panel.rows for panel in layout[::2]]
    shape = (sum(lengths), width) if tall else (width, sum(lengths))
    pairs = normal_pairs(key, (*batch, *shape), dtype)
    panels = []
    for index, panel in enumerate(layout):
        end = sum(lengths[: index // 2 + 1])
        start = end - panel.rows
        if tall:
            panels.append(jnp.tril(pairs[index % 2][..., start:end, : panel.width]))
        else:
            panels.append(jnp.triu(pairs[index % 2][..., : panel.width, start:end]))
    return panels


def with_determinant_one(panels: list[Array]) -> list[Array]:
    """The panels of a square frame, the sign of the last Gaussian set so that det Q = +1.

    det Q is the product of the signs of all panels' diagonals (zero counts as positive), and the last
    Gaussian vector has one entry, of which only the sign matters: this is Haar on SO(n).
    """
    diagonals = [jnp.diagonal(panel, axis1=-2, axis2=-1) for panel in panels]
    negative = sum(jnp.sum(d < 0, axis=-1) for d in diagonals)
    sign = jnp.where(negative % 2 == 1, -1, 1).astype(panels[0].dtype)
    return [*panels[:-1], panels[-1].at[..., -1, -1].multiply(sign)]
