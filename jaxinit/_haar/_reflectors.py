"""Haar matrices by Stewart's reflectors: which Gaussians belong to a key, and how a platform multiplies them out.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of lengths N,
N − 1, ... is exactly Haar. The numbers of a key depend on where its Gaussians go; the product is the same, up to
rounding, for any choice of panels. On CPU the panels are those that were drawn, `_unrolled`; elsewhere they have
one shape, `_scanned`, because each new shape takes long to compile there.
"""

import math
from collections.abc import Sequence

from jax import lax

from jaxinit._haar import _scanned, _unrolled
from jaxinit._haar._gaussians import cut, draw, trapezoid, with_determinant_one
from jaxinit._typing import Array, DTypeLike

PANEL_WIDTHS = ((64, 16), (256, 64), (1024, 128), (math.inf, 256))
"""(most columns, panel width); the first row that fits counts. If a panel is too wide, a CPU spends its time on the
inverse of U; if it is too narrow, on thin products; and each panel adds to compile time. On every platform these widths
decide which Gaussian goes where, so changing them changes the numbers of a key."""
BATCHED_WIDTHS = ((32, 8), (64, 16), (128, 32), (1024, 128), (math.inf, 256))
"""The same for batches, whose products are computed one matrix after another, so that thin ones cost less."""


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    rows, columns = max(n, m), min(n, m)
    panels = draw(key, batch, cut(rows, columns, panel_width(batch, rows, columns)), n > m, dtype)
    return frame(with_determinant_one(panels) if special else panels, n > m)


def panel_width(batch: tuple[int, ...], rows: int, columns: int) -> int:
    """The panel width with which matrices of rows ≥ columns are drawn."""
    square_batch = math.prod(batch) > 1 and rows < 4 * columns
    return next(width for most, width in (BATCHED_WIDTHS if square_batch else PANEL_WIDTHS) if columns <= most)


def fewest_panels_width(columns: int) -> int:
    """The panel width for a matrix that is converted, not drawn: its numbers do not depend on the width.

    Each matrix of a network is converted once, so compile time counts: it is a quarter to a half less than with the
    panels of the sampler, while running takes up to a fifth longer, and up to half as long again for batches.
    """
    return min(max(-(-columns // 2), 128), 256)


def frame(panels: Sequence[Array], tall: bool) -> Array:
    """The (..., k, N) matrix with orthonormal rows whose reflectors the panels hold; if tall, its transpose.

    Panel b is (..., w, N − o), zero before its diagonal, where o is the sum of the widths before it, or the
    transpose of that if tall; all panels but the last are equally wide. The tall matrix is the factor Q of a QR
    decomposition whose R has a positive diagonal, so there is no sign left to correct. A zero vector means no
    reflection.
    """

    def unrolled(*panels: Array) -> Array:
        return _unrolled.frame(panels, tall)

    def scanned(*panels: Array) -> Array:
        q = _scanned.frame(trapezoid(panels, tall))
        return q.mT if tall else q

    # The platform is decided when the program is lowered, and then only its own branch remains.
    q: Array = lax.platform_dependent(*panels, cpu=unrolled, default=scanned)
    return q
