"""The frame of `_reflectors` on accelerators: panels of one shape, multiplied in one loop.

XLA tunes every product of a new shape when it compiles for a GPU, for a second or more where the matrices are large,
and each panel of `_unrolled` has a shape of its own. Here each vector keeps its N entries, with zeros before its
diagonal, so that all panels are (w, N), the last one filled up with zero vectors, which mean no reflection:

    Q ← Q − (Q V̄) (U⁻ᵀ Vᵀ),  from the last panel to the first, where Q is (k, N) and starts as −φ on its diagonal.

Rows before a panel meet only zeros of V, so they keep their initial values until their own panel comes. A square matrix
needs three times the arithmetic of `_unrolled`, but only five shapes of products, however large it is.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxinit._haar._unrolled import diagonal, identity, matmul, phase_of
from jaxinit._typing import Array

WIDTHS = ((1024, 128), (math.inf, 256))
BATCHED_WIDTHS = ((64, 16), (256, 32), (1024, 128), (math.inf, 256))
"""(most columns, panel width), as in `_reflectors`, but these change numbers only by rounding. Fewer panels mean
fewer kernel launches; batches of square matrices pay more for the products of the inverse."""


def frame(x: Array) -> Array:
    """The (..., k, N) matrix with orthonormal rows, whose reflectors are those of the rows of x.

    x is zero before its diagonal. Formulas as in `_unrolled.frame`: v = x + φν e₁ and vᴴv / 2 = ν² + |d|ν.
    """
    *batch, columns, rows = x.shape
    width = panel_width(math.prod(batch), rows, columns)
    norm = jnp.sqrt(jnp.sum(jnp.real(x * x.conj()), axis=-1))
    d = diagonal(x[..., :columns])
    phase = phase_of(d, norm)
    half = jnp.where(norm > 0, norm * (norm + jnp.abs(d)), 1).astype(x.dtype)
    one = lax.broadcast_to_rank(jnp.eye(columns, rows, dtype=x.dtype), x.ndim)
    vectors = x + one * (phase * norm.astype(x.dtype))[..., None]

    v = _in_panels(vectors, width, -2, 0)
    strict = jnp.triu(matmul(v.conj(), v.mT), 1)
    upper = strict + identity(strict, x.dtype) * _in_panels(half, width, -1, 1)[..., None, :]
    w = matmul(inverse(upper).mT, v)
    q = -one * phase[..., None]
    if len(v) == 1:
        # Q V̄ without a product: Q is still diagonal.
        return q + matmul(phase[..., None] * vectors[..., :columns].conj().mT, w[0])

    def reflect(q: Array, panel: tuple[Array, Array]) -> tuple[Array, None]:
        v, w = panel
        return q - matmul(matmul(q, v.conj().mT), w), None

    found: Array = lax.scan(reflect, q, (v, w), reverse=True)[0]
    return found


def inverse(upper: Array) -> Array:
    """The inverse of (..., w, w) upper triangular matrices, from blocks on the diagonal that double: 1, 2, 4, ...

    [A B; 0 C]⁻¹ = [A⁻¹ −A⁻¹BC⁻¹; 0 C⁻¹], for all blocks of a size at once: let T be the matrix of the blocks' inverses;
    then it is T − T B T, where B has the entries of U between two blocks that are joined. All products have one shape.
    """
    width = upper.shape[-1]
    index = jnp.arange(width, dtype=jnp.int32)
    # Entry (i, j) is between two blocks of 2ˢ when s is the highest bit in which i and j differ.
    step_of = 31 - lax.clz(index[:, None] ^ index[None])

    def join(found: Array, step: Array) -> tuple[Array, None]:
        between = jnp.where(lax.broadcast_to_rank(step_of == step, upper.ndim), upper, 0)
        return found - matmul(matmul(found, between), found), None

    start = identity(upper, upper.dtype) / diagonal(upper)[..., None, :]
    steps = jnp.arange((width - 1).bit_length(), dtype=jnp.int32)
    found: Array = lax.scan(join, start, steps)[0]
    return found


def panel_width(matrices: int, rows: int, columns: int) -> int:
    """The panel width with which matrices of rows ≥ columns are multiplied."""
    square_batch = matrices > 1 and rows < 4 * columns
    widths = BATCHED_WIDTHS if square_batch else WIDTHS
    return min(columns, next(width for most, width in widths if columns <= most))


def _in_panels(x: Array, width: int, axis: int, filling: float) -> Array:
    """Cuts an axis, padded if necessary, into panels: (panels, ..., width, ...)."""
    axis += x.ndim
    missing = -x.shape[axis] % width
    margins = [(0, missing if a == axis else 0) for a in range(x.ndim)]
    padded = jnp.pad(x, margins, constant_values=filling)
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], -1, width, *x.shape[axis + 1 :]), axis, 0)
