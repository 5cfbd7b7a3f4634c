"""The orthonormal factor of a trapezoid of vectors, by matrix products alone.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of
lengths N, N − 1, ... is exactly Haar. The UT transform (Puglisi 1992; Joffrain et al. 2006) turns a product
of reflectors into I − V U⁻¹ Vᴴ, where U is the strictly upper part of VᴴV plus half its diagonal.

The formulas are those of wide matrices, with vectors as rows, and of the transpose of tall ones. On CPU, XLA's
products of many small matrices are fast as A B and A Bᵀ, and several times slower as Aᵀ B, which wide ones avoid.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinit._typing import Array
from jaxinit.haar._triangular import diagonal, identity, inverse, matmul


def frame(panels: Sequence[Array], tall: bool) -> Array:
    """The (..., k, N) matrix with orthonormal rows whose reflectors the panels hold; if tall, its transpose.

    Panel b is (..., w, N − o), zero before its diagonal, where o is the sum of the widths before it, or the
    transpose of that if tall; all panels but the last are equally wide. The tall matrix is the factor Q of a QR
    decomposition whose R has a positive diagonal, so no sign is left to correct. A zero vector stands for no
    reflection.

    With x a vector, d its first entry, ν = ‖x‖ and φ the sign or phase of d, the reflector of v = x + φν e₁
    takes x to −φν e₁, and vᴴv / 2 = ν² + |d|ν: nothing is ever subtracted that could cancel.
    """
    width = min(panels[0].shape[-2:])
    # All panels at once, a narrower last one filled up with zero vectors.
    grams = jnp.stack([_padded(_products(x, tall), width) for x in panels])
    tops = jnp.stack([_padded(_top(x, tall), width) for x in panels])
    # Not the diagonals of these products: XLA's CPU library adds thousands of squares one after the other.
    axis = -2 if tall else -1
    squares = jnp.stack([_lengthened(jnp.sum(jnp.real(x * x.conj()), axis=axis), width) for x in panels])
    shifts, phases, uppers = _ut_transform(grams, tops, squares)
    inverses = inverse(uppers)

    q = None
    for b in reversed(range(len(panels))):
        w = min(panels[b].shape[-2:])
        q = _reflect(panels[b], shifts[b, ..., :w], phases[b, ..., :w], inverses[b, ..., :w, :w], q, tall)
    assert q is not None
    return q


def phase_of(d: Array, norm: Array) -> Array:
    """d / |d|, +1 where d = 0, and −1 where the whole vector is zero, so that its row of the result is e₁."""
    if jnp.issubdtype(d.dtype, jnp.complexfloating):
        magnitude = jnp.abs(d)
        safe = jnp.where(magnitude > 0, magnitude, 1).astype(d.dtype)
        phase = jnp.where(magnitude > 0, d / safe, 1)
    else:
        phase = jnp.where(d < 0, -1, 1).astype(d.dtype)
    return jnp.where(norm > 0, phase, -1)


def _ut_transform(gram: Array, top: Array, squares: Array) -> tuple[Array, Array, Array]:
    """φν, φ and U of panels, from their vectors' products with one another, first w entries, and squared norms."""
    norm = jnp.sqrt(squares)
    d = diagonal(top)
    phase = phase_of(d, norm)
    shift = phase * norm.astype(d.dtype)
    # VᴴV from XᴴX without another pass over the panel: V differs from X on the diagonal only.
    strict = jnp.triu(gram + top.conj() * shift[..., None, :], 1)
    half = jnp.where(squares > 0, squares + jnp.abs(d) * norm, 1).astype(d.dtype)
    upper = strict + identity(gram, d.dtype) * half[..., None, :]
    return shift, phase, upper


def _products(x: Array, tall: bool) -> Array:
    """XᴴX, with the vectors of a panel as the columns of X."""
    return matmul(x.conj().mT, x) if tall else matmul(x.conj(), x.mT)


def _top(x: Array, tall: bool) -> Array:
    """The first w entries of each vector, one vector a row."""
    width = min(x.shape[-2:])
    square = x[..., :width, :width]
    return square.mT if tall else square


def _padded(matrix: Array, width: int) -> Array:
    margins = [(0, 0)] * (matrix.ndim - 2) + [(0, width - matrix.shape[-1])] * 2
    return jnp.pad(matrix, margins)


def _reflect(panel: Array, shift: Array, phase: Array, u_inverse: Array, q: Array | None, tall: bool) -> Array:
    """[−φ 0; 0 Q] (I − V̄ U⁻ᵀ Vᵀ), where V has the vectors x + φν e₁ as its columns; if tall its transpose."""
    width = shift.shape[-1]
    v = panel + _diagonal_matrix(shift, panel.shape[-2], panel.shape[-1])
    top = v[..., :width, :width].conj()
    if tall:
        product = top.mT * phase[..., None, :]
        if q is not None:
            product = jnp.concatenate([product, -matmul(v[..., width:, :].conj().mT, q)], axis=-1)
        reflected = matmul(v, matmul(u_inverse, product))
    else:
        product = phase[..., None] * top.mT
        if q is None:
            # The barrier keeps XLA from taking the transpose for an operand Aᵀ of the next product.
            product = lax.optimization_barrier(product)
        else:
            product = jnp.concatenate([product, -matmul(q, v[..., width:].conj().mT)], axis=-2)
        reflected = matmul(matmul(product, u_inverse.mT), v)
    border = _diagonal_matrix(-phase, *reflected.shape[-2:])
    if q is None:
        return reflected + border
    return reflected + (border + jnp.pad(q, [(0, 0)] * (q.ndim - 2) + [(width, 0)] * 2))


def _diagonal_matrix(entries: Array, rows: int, columns: int) -> Array:
    """So many rows and columns, the entries first on the diagonal and zero after them."""
    column = _lengthened(entries, rows)[..., None]
    return lax.broadcast_to_rank(jnp.eye(rows, columns, dtype=entries.dtype), column.ndim) * column


def _lengthened(vector: Array, length: int) -> Array:
    return jnp.pad(vector, [(0, 0)] * (vector.ndim - 1) + [(0, length - vector.shape[-1])])
