"""Haar matrices of few columns in large batches: every reflector unrolled, the batch on the last axis.

Stewart's recurrence column by column, Q ← H [−φ 0; 0 Q] from the last to the first (Stewart 1980), written
as elementwise sums over arrays whose last axis is the batch: processors add long vectors well and multiply
thousands of 8 × 8 matrices badly.
"""

import jax.numpy as jnp
import numpy as np

from jaxinit import _random
from jaxinit._typing import Array, DTypeLike
from jaxinit.haar._reflectors import phase_of

MOST_COLUMNS = 32
"""Each column is a dozen operations in the compiled program; beyond this, compiling takes seconds."""


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    rows, columns = max(n, m), min(n, m)
    lengths = [rows - j for j in range(columns)]
    draw = _random.stored_normal(key, (sum(lengths), *batch), dtype)
    starts = np.cumsum([0, *lengths[:-1]])
    vectors = [draw[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    if special:
        negative = sum((x[0] < 0).astype(int) for x in vectors)
        vectors[-1] = vectors[-1] * jnp.where(negative % 2 == 1, -1, 1).astype(dtype)

    # The squared norms of all vectors in one product with a matrix of zeros and ones.
    squares = jnp.real(draw * draw.conj())
    membership = np.repeat(np.eye(columns, dtype=squares.dtype), lengths, axis=1)
    norms = jnp.sqrt(jnp.tensordot(membership, squares, 1, precision="highest"))

    q = jnp.zeros((rows - columns, 0, *batch), dtype)
    for x, norm in zip(vectors[::-1], norms[::-1], strict=True):
        q = _prepend(x, norm, q)
    return jnp.moveaxis(q, (0, 1), (-1, -2) if n < m else (-2, -1))


def _prepend(x: Array, norm: Array, q: Array) -> Array:
    """H [−φ 0; 0 Q] for the reflector H of x: its first column is u = x / ‖x‖, or e₁ if x is zero.

    The reflector is I − v vᴴ / (1 + |u₁|) with v = u + φ e₁.
    """
    phase = phase_of(x[0], norm)
    u = x * (1 / jnp.where(norm > 0, norm, 1)).astype(x.dtype)
    lower = u[1:, None]
    one_plus = (1 + jnp.abs(u[0])).astype(x.dtype)
    weights = jnp.sum(lower.conj() * q, axis=0) / one_plus
    # v₁ = φ (1 + |u₁|)
    top = -phase * one_plus * weights
    right = jnp.concatenate([top[None], q - lower * weights], axis=0)
    left = jnp.concatenate([jnp.where(norm > 0, u[0], 1)[None], u[1:]])
    return jnp.concatenate([left[:, None], right], axis=1)
