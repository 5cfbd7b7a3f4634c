"""Haar matrices by Stewart's reflectors: which Gaussians a key gives, and how a platform multiplies them out.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of lengths N,
N − 1, ... is exactly Haar. The numbers of a key follow from where its Gaussians go; the product is the same, up to
rounding, in whatever panels it is taken. On CPU these are the panels that were drawn, `_unrolled`; elsewhere they have
one shape, `_scanned`, because each new shape takes long to compile there.
"""

import math
from collections.abc import Sequence

from jax import lax

from jaxinit._haar import _scanned, _unrolled
from jaxinit._haar._gaussians import cut, draw, trapezoid, with_determinant_one
from jaxinit._typing import Array, DTypeLike

PANEL_WIDTHS = ((64, 16), (256, 64), (1024, 128), (math.inf, 256))
"""(most columns, panel width); the first row that fits counts. Too wide a panel spends a CPU's time on the inverse of
U, too narrow a one on thin products; and each panel adds to the time of compiling. On every platform they decide which
Gaussian goes where, so a change of them changes the numbers of a key."""
BATCHED_WIDTHS = ((32, 8), (64, 16), (128, 32), (1024, 128), (math.inf, 256))
"""The same for batches, whose products are made one matrix after another: thin ones cost them less."""


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    rows, columns = max(n, m), min(n, m)
    panels = draw(key, batch, cut(rows, columns, panel_width(batch, rows, columns)), n > m, dtype)
    return frame(with_determinant_one(panels) if special else panels, n > m)


def panel_width(batch: tuple[int, ...], rows: int, columns: int) -> int:
    """Columns a panel is drawn with, for matrices of rows ≥ columns."""
    square_batch = math.prod(batch) > 1 and rows < 4 * columns
    return next(width for most, width in (BATCHED_WIDTHS if square_batch else PANEL_WIDTHS) if columns <= most)


def fewest_panels_width(columns: int) -> int:
    """The panel width of a matrix that is converted, not drawn: its numbers do not depend on the width.

    One matrix of a network is converted once, so the time of compiling counts: a quarter to a half less than with the
    panels of the sampler, while running takes up to a fifth longer, and half as long again for batches.
    """
    return min(max(-(-columns // 2), 128), 256)


def frame(panels: Sequence[Array], tall: bool) -> Array:
    """The (..., k, N) matrix with orthonormal rows whose reflectors the panels hold; if tall, its transpose.

    Panel b is (..., w, N − o), zero before its diagonal, where o is the sum of the widths before it, or the
    transpose of that if tall; all panels but the last are equally wide. The tall matrix is the factor Q of a QR
    decomposition whose R has a positive diagonal, so no sign is left to correct. A zero vector stands for no
    reflection.
    """

    def unrolled(*panels: Array) -> Array:
        return _unrolled.frame(panels, tall)

    def scanned(*panels: Array) -> Array:
        q = _scanned.frame(trapezoid(panels, tall))
        return q.mT if tall else q

    # The platform stays open until the program is lowered, and then only its own branch remains.
    q: Array = lax.platform_dependent(*panels, cpu=unrolled, default=scanned)
    return q
