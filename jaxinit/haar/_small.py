"""Haar matrices of few columns in large batches: every reflector unrolled, the batch on the last axis.

Stewart's recurrence column by column, Q ← H [−φ 0; 0 Q] from the last to the first (Stewart 1980), written
as elementwise sums over arrays whose last axis is the batch: processors add long vectors well and multiply
thousands of 8 × 8 matrices badly.
"""

import jax.numpy as jnp

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
    vectors = [draw[sum(lengths[:j]) : sum(lengths[: j + 1])] for j in range(columns)]
    if special:
        negative = sum((x[0] < 0).astype(int) for x in vectors)
        vectors[-1] = vectors[-1] * jnp.where(negative % 2 == 1, -1, 1).astype(dtype)

    q = _unit(vectors[-1])[1][:, None]
    for x in reversed(vectors[:-1]):
        q = _prepend(x, q)
    return jnp.moveaxis(q, (0, 1), (-1, -2) if n < m else (-2, -1))


def _unit(x: Array) -> tuple[Array, Array]:
    """The norm of a vector, and the vector divided by it (e₁ if it is zero)."""
    norm = jnp.sqrt(jnp.sum(jnp.real(x * x.conj()), axis=0))
    unit = x / jnp.where(norm > 0, norm, 1).astype(x.dtype)
    return norm, unit.at[0].add(jnp.where(norm > 0, 0, 1).astype(x.dtype))


def _prepend(x: Array, q: Array) -> Array:
    """H [−φ 0; 0 Q] for the reflector H of x: its first column is x / ‖x‖.

    With u = x / ‖x‖ the reflector is I − v vᴴ / (1 + |u₁|), v = u + φ e₁.
    """
    norm, u = _unit(x)
    phase = phase_of(x[0], norm)
    lower = u[1:, None]
    one_plus = (1 + jnp.abs(u[0])).astype(x.dtype)
    weights = jnp.sum(lower.conj() * q, axis=0) / one_plus
    # v₁ = φ (1 + |u₁|)
    top = -phase * one_plus * weights
    right = jnp.concatenate([top[None], q - lower * weights], axis=0)
    return jnp.concatenate([u[:, None], right], axis=1)
