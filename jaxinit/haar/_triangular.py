"""The inverse of upper triangular matrices by matrix products: no LAPACK call, batched for free.

[A B; 0 C]⁻¹ = [A⁻¹, −A⁻¹BC⁻¹; 0, C⁻¹], applied from blocks of at most 8 × 8 upwards. A block is
D(I + M) with M strictly upper triangular, so M⁸ = 0 and (I + M)⁻¹ = (I − M)(I + M²)(I + M⁴).
"""

import jax.numpy as jnp

from jaxinit._typing import Array

LARGEST_BLOCK = 8
"""Blocks of 16 would save one level and lose a digit: M⁸ of a 16 × 16 block is large and cancels."""


def matmul(a: Array, b: Array) -> Array:
    """a @ b in full precision: TF32 or bf16 passes would ruin orthogonality."""
    product: Array = jnp.matmul(a, b, precision="highest")
    return product


def diagonal(matrix: Array) -> Array:
    """The diagonals of square matrices. jnp.diagonal is a gather, which XLA's CPU fusion repeats in every reader."""
    return jnp.sum(jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), matrix, 0), axis=-1)


def inverse(upper: Array) -> Array:
    """The inverse of (..., w, w) upper triangular matrices with a nonzero diagonal."""
    width = upper.shape[-1]
    if width <= LARGEST_BLOCK:
        return _inverse_of_blocks(upper)
    half = (width + 1) // 2
    upper = pad_with_identity(upper, 2 * half)
    inverses = inverse(jnp.stack([upper[..., :half, :half], upper[..., half:, half:]]))
    corner = -matmul(matmul(inverses[0], upper[..., :half, half:]), inverses[1])
    top = jnp.concatenate([inverses[0], corner], axis=-1)
    bottom = jnp.concatenate([jnp.zeros_like(corner), inverses[1]], axis=-1)
    whole: Array = jnp.concatenate([top, bottom], axis=-2)
    return whole[..., :width, :width]


def pad_with_identity(matrix: Array, size: int) -> Array:
    """(..., w, w) to (..., size, size) by an identity block in the lower right corner."""
    width = matrix.shape[-1]
    if width == size:
        return matrix
    margins = [(0, 0)] * (matrix.ndim - 2) + [(0, size - width)] * 2
    identity = jnp.diag((jnp.arange(size) >= width).astype(matrix.dtype))
    return jnp.pad(matrix, margins) + identity


def _inverse_of_blocks(upper: Array) -> Array:
    identity = jnp.eye(upper.shape[-1], dtype=upper.dtype)
    pivots = diagonal(upper)
    m = jnp.triu(upper, 1) / pivots[..., :, None]
    m2 = matmul(m, m)
    m4 = matmul(m2, m2)
    product: Array = matmul(matmul(identity - m, identity + m2), identity + m4)
    product = product / pivots[..., None, :]
    return product
