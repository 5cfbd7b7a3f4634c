"""Haar matrices of few columns in large batches: every reflector unrolled, the batch on the last axis.

Stewart's recurrence column by column, Q ← H [−φ 0; 0 Q] from the last to the first (Stewart 1980), written
as elementwise sums over arrays whose last axis is the batch: CPUs add long vectors fast and multiply thousands of
8 × 8 matrices slowly. On a GPU products are as fast, and compile in a tenth of the time, so other
platforms multiply the same vectors as `_scanned` does.
"""

import functools
from collections.abc import Iterable
from operator import add

import jax.numpy as jnp
from jax import lax

from jaxinit._arrays import stored
from jaxinit._haar import _scanned
from jaxinit._haar._gaussians import normal_pairs
from jaxinit._typing import Array, DTypeLike

MOST_COLUMNS = 32
"""Each column takes a dozen operations in the compiled program; beyond this, compiling takes seconds."""


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""

    def vectors(key: Array) -> list[Array]:
        found = _gaussian_vectors(key, batch, max(n, m), min(n, m), dtype)
        if special:
            negative = sum((x[0] < 0).astype(int) for x in found)
            found[-1] = found[-1] * jnp.where(negative % 2 == 1, -1, 1).astype(dtype)[None]
        return found

    def unrolled(key: Array) -> Array:
        # The last reflector must not be fused with the transpose, which would repeat it for each entry.
        q, scratch = stored(lambda key: _scaled_frame(vectors(key)), key)
        return jnp.moveaxis(q / scratch[None, : q.shape[1]], (0, 1), (-1, -2) if n < m else (-2, -1))

    def scanned(key: Array) -> Array:
        whole = [jnp.pad(x, [(j, 0)] + [(0, 0)] * len(batch)) for j, x in enumerate(vectors(key))]
        q = _scanned.frame(jnp.moveaxis(jnp.stack(whole), (0, 1), (-2, -1)))
        return q if n < m else q.mT

    q: Array = lax.platform_dependent(key, cpu=unrolled, default=scanned)
    return q


def _gaussian_vectors(key: Array, batch: tuple[int, ...], rows: int, columns: int, dtype: DTypeLike) -> list[Array]:
    """`columns` arrays (rows − j, *batch); two consecutive ones share a draw of pairs."""
    lengths = [rows - j for j in range(0, columns, 2)]
    first, second = normal_pairs(key, (sum(lengths), *batch), dtype)
    vectors = []
    for j in range(columns):
        end = sum(lengths[: j // 2 + 1])
        vectors.append((second if j % 2 else first)[end - rows + j : end])
    return vectors


def _scaled_frame(vectors: list[Array]) -> tuple[Array, Array]:
    """Q of shape (rows, columns, *batch), with each column times the norm of its vector; then these norms, and more.

    Column j starts as its vector x, and is turned by the reflectors of the columns before it. The reflector
    of x is I − v vᴴ / h with v = x + φν e₁ and h = ν (ν + |x₁|). A zero vector counts as e₁.
    """
    rows, columns, batch = len(vectors[0]), len(vectors), vectors[0].shape[1:]
    squares = jnp.stack([_sum(jnp.real(x * x.conj())) for x in vectors])
    zero = squares == 0
    norms = jnp.sqrt(jnp.where(zero, 1, squares))
    vectors = [x.at[0].set(jnp.where(zero[j], 1, x[0])) for j, x in enumerate(vectors)]
    q = jnp.stack([jnp.pad(x, [(j, 0)] + [(0, 0)] * len(batch)) for j, x in enumerate(vectors)], axis=1)
    heads = jnp.stack([x[0] for x in vectors])
    sizes = jnp.abs(heads)
    halves = (1 / (norms * (norms + sizes))).astype(heads.dtype)
    # v₁ = φ (|x₁| + ν)
    phases = jnp.where(sizes > 0, heads / jnp.where(sizes > 0, sizes, 1).astype(heads.dtype), 1)
    firsts = phases * (sizes + norms).astype(heads.dtype)

    # The weights of a reflector are stored in an array of their own, or XLA's CPU fusion would compute them again for
    # every entry of Q. The norms come before them, so that the last weights too are in an array that is read twice.
    scratch = jnp.concatenate([norms.astype(q.dtype), jnp.zeros((columns, *batch), q.dtype)])
    for j in reversed(range(columns - 1)):
        products = _sum(q[i, j].conj()[None] * q[i, j + 1 :] for i in range(j + 1, rows))
        scratch = scratch.at[columns + j + 1 :].set(products * halves[j][None])
        v = jnp.concatenate([firsts[j : j + 1], q[j + 1 :, j]])
        q = q.at[j:, j + 1 :].add(-v[:, None] * scratch[None, columns + j + 1 :])
    return q, scratch


def _sum(terms: Iterable[Array]) -> Array:
    """The sum of elementwise terms, written out: XLA turns a reduction of products into slower library calls."""
    return functools.reduce(add, terms)
