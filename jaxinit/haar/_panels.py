"""How the Gaussian vectors of Stewart's algorithm lie in one flat draw, with no number drawn in vain.

Column j of an N × k frame needs N − j Gaussians: a lower trapezoid. It is cut into panels of columns. Of
each panel, the square on top is a triangle, and the rows of the triangle are folded in pairs, a long one
with a short one, into a rectangle; the rows below are a rectangle already.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxinit._typing import Array


class Panel(NamedTuple):
    """The place of one panel: its first row and column, and how many rows and columns it has."""

    offset: int
    rows: int
    width: int

    @property
    def size(self) -> int:
        """How many Gaussians the panel needs."""
        return self.rows * self.width - self.width * (self.width - 1) // 2


def cut(rows: int, columns: int, width: int) -> list[Panel]:
    """Panels of `width` columns, the last one narrower if need be, for a frame of rows ≥ columns."""
    return [Panel(offset, rows - offset, min(width, columns - offset)) for offset in range(0, columns, width)]


def unpack(draw: Array, panel: Panel) -> Array:
    """The (..., rows, width) panel, zero above its diagonal, from its (..., size) share of the draw."""
    *batch, _ = draw.shape
    _, rows, width = panel
    odd = width % 2
    # Row j of the triangle, reversed, completes row width − 2 + odd − j; with an odd width the last is complete.
    size = width * (width + 1) // 2
    folded = draw[..., :size].reshape(*batch, (width + odd) // 2, width + 1 - odd)
    upper = jnp.flip(folded[..., odd:, 1 - odd :], axis=-1)
    lower = jnp.flip(folded[..., :width], axis=-2)
    triangle = jnp.tril(jnp.concatenate([upper, lower], axis=-2))
    below = draw[..., size:].reshape(*batch, rows - width, width)
    return jnp.concatenate([triangle, below], axis=-2)


def with_determinant_one(panels: list[Array]) -> list[Array]:
    """The panels of a square frame, the sign of the last Gaussian set so that det Q = +1.

    det Q is the product of the signs of all panels' diagonals (zero counts as positive), and the last
    Gaussian vector has one entry, of which only the sign matters: this is Haar on SO(n).
    """
    diagonals = [jnp.diagonal(panel, axis1=-2, axis2=-1) for panel in panels]
    negative = sum(jnp.sum(d < 0, axis=-1) for d in diagonals)
    sign = jnp.where(negative % 2 == 1, -1, 1).astype(panels[0].dtype)
    return [*panels[:-1], panels[-1].at[..., -1, -1].multiply(sign)]
