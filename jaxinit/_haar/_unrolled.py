"""The frame of reflectors in panels, written out panel by panel: the orthonormal factor of a trapezoid, by products.

The UT transform (Puglisi 1992; Joffrain et al. 2006) turns a product of reflectors into I − V U⁻¹ Vᴴ, where U is the
strictly upper part of VᴴV plus half its diagonal.

The formulas are those of wide matrices, with vectors as rows, and of the transpose of tall ones. On CPU, XLA's
products of many small matrices are fast as A B and A Bᵀ, and several times slower as Aᵀ B, which wide ones avoid.

Upper triangular matrices are inverted by products, too. The blocks of 8 × 8 on the diagonal are D(I + M) with M
strictly upper triangular, so M⁸ = 0 and (I + M)⁻¹ = (I − M)(I + M²)(I + M⁴). They are joined from left to right in a
loop: if T is the inverse of everything left of a block column [B; C], the inverse including that column is
[T, −T B C⁻¹; 0, C⁻¹].
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinit._typing import Array, DTypeLike

BLOCK = 8
"""Columns per step of the loop. Blocks of 16 would lose a digit: M⁸ of a 16 × 16 block is large and cancels."""


def frame(panels: Sequence[Array], tall: bool) -> Array:
    """The matrix of `_reflectors.frame`, from the last panel to the first.

    With x a vector, d its first entry, ν = ‖x‖ and φ the sign or phase of d, the reflector of v = x + φν e₁
    takes x to −φν e₁, and vᴴv / 2 = ν² + |d|ν: nothing is ever subtracted that could cancel.
    """
    width = min(panels[0].shape[-2:])
    # All panels at once, with a narrower last one padded with zero vectors.
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
    """φν, φ and U of panels, from the inner products of their vectors, first w entries, and squared norms."""
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
            # The barrier keeps XLA from treating the transpose as an operand Aᵀ of the next product.
            product = lax.optimization_barrier(product)
        else:
            product = jnp.concatenate([product, -matmul(q, v[..., width:].conj().mT)], axis=-2)
        reflected = matmul(matmul(product, u_inverse.mT), v)
    border = _diagonal_matrix(-phase, *reflected.shape[-2:])
    if q is None:
        return reflected + border
    return reflected + (border + jnp.pad(q, [(0, 0)] * (q.ndim - 2) + [(width, 0)] * 2))


def _diagonal_matrix(entries: Array, rows: int, columns: int) -> Array:
    """A matrix of this shape with these entries on its diagonal, and zeros elsewhere."""
    column = _lengthened(entries, rows)[..., None]
    return lax.broadcast_to_rank(jnp.eye(rows, columns, dtype=entries.dtype), column.ndim) * column


def _lengthened(vector: Array, length: int) -> Array:
    return jnp.pad(vector, [(0, 0)] * (vector.ndim - 1) + [(0, length - vector.shape[-1])])


def matmul(a: Array, b: Array) -> Array:
    """a @ b in full precision: TF32 or bf16 passes would ruin orthogonality."""
    product: Array = jnp.matmul(a, b, precision="highest")
    return product


def diagonal(matrix: Array) -> Array:
    """The diagonals of square matrices. jnp.diagonal is a gather, which XLA's CPU fusion repeats in every reader."""
    return jnp.sum(jnp.where(identity(matrix, bool), matrix, 0), axis=-1)


def identity(like: Array, dtype: DTypeLike) -> Array:
    """The identity of the size of square matrices, with axes of size one for those of the batch."""
    return lax.broadcast_to_rank(jnp.eye(like.shape[-1], dtype=dtype), like.ndim)


def inverse(upper: Array) -> Array:
    """The inverse of (..., w, w) upper triangular matrices with a nonzero diagonal."""
    *batch, width, _ = upper.shape
    if width <= BLOCK:
        return _inverse_of_block(upper)
    count = -(-width // BLOCK)
    upper = pad_with_identity(upper, count * BLOCK)
    # (..., count, 8, 8): the blocks of the diagonal, by a sum, because a gather would be slow.
    squares = upper.reshape(*batch, count, BLOCK, count, BLOCK)
    on_diagonal = lax.broadcast_to_rank(jnp.eye(count, dtype=bool)[:, None, :, None], squares.ndim)
    inverses = _inverse_of_block(jnp.sum(jnp.where(on_diagonal, squares, 0), axis=-2))
    start = jnp.where(on_diagonal, inverses[..., None, :], 0).reshape(upper.shape)
    inverses = jnp.moveaxis(inverses, -3, 0)
    row = lax.broadcast_to_rank(jnp.arange(count * BLOCK)[:, None], upper.ndim)

    def join(block: Array, whole: Array) -> Array:
        column = lax.dynamic_slice_in_dim(upper, block * BLOCK, BLOCK, axis=-1)
        above = jnp.where(row < block * BLOCK, -column, 0)
        corner = matmul(matmul(whole, above), lax.dynamic_index_in_dim(inverses, block, keepdims=False))
        filled = lax.dynamic_slice_in_dim(whole, block * BLOCK, BLOCK, axis=-1) + corner
        return lax.dynamic_update_slice_in_dim(whole, filled, block * BLOCK, axis=-1)

    whole: Array = lax.fori_loop(1, count, join, start)
    return whole[..., :width, :width]


def pad_with_identity(matrix: Array, size: int) -> Array:
    """Pads (..., w, w) to (..., size, size) by an identity block in the lower right corner."""
    width = matrix.shape[-1]
    if width == size:
        return matrix
    margins = [(0, 0)] * (matrix.ndim - 2) + [(0, size - width)] * 2
    corner = jnp.diag((jnp.arange(size) >= width).astype(matrix.dtype))
    return jnp.pad(matrix, margins) + lax.broadcast_to_rank(corner, matrix.ndim)


def _inverse_of_block(upper: Array) -> Array:
    one = identity(upper, upper.dtype)
    pivots = diagonal(upper)
    m = jnp.triu(upper, 1) / pivots[..., :, None]
    m2 = matmul(m, m)
    m4 = matmul(m2, m2)
    product: Array = matmul(matmul(one - m, one + m2), one + m4)
    product = product / pivots[..., None, :]
    return product
