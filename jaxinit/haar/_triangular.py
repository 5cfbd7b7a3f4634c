"""The inverse of upper triangular matrices by matrix products: no LAPACK call, batched for free.

The blocks of 8 × 8 on the diagonal are D(I + M) with M strictly upper triangular, so M⁸ = 0 and
(I + M)⁻¹ = (I − M)(I + M²)(I + M⁴). They are joined from left to right in a loop: with T the inverse of what
stands left of a block column [B; C], the inverse with that column is [T, −T B C⁻¹; 0, C⁻¹].
"""

import jax.numpy as jnp
from jax import lax

from jaxinit._typing import Array, DTypeLike

BLOCK = 8
"""Columns a step of the loop has. Blocks of 16 would lose a digit: M⁸ of a 16 × 16 block is large and cancels."""


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
    # (..., count, 8, 8): the blocks of the diagonal, by a sum, for a gather would be slow.
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
    """(..., w, w) to (..., size, size) by an identity block in the lower right corner."""
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
