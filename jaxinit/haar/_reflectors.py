"""The orthonormal factor of a lower trapezoid of vectors, by matrix products alone.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of
lengths N, N − 1, ... is exactly Haar. The UT transform (Puglisi 1992; Joffrain et al. 2006) turns a product
of reflectors into I − V U⁻¹ Vᴴ, where U is the strictly upper part of VᴴV plus half its diagonal.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxinit._typing import Array
from jaxinit.haar._triangular import diagonal, inverse, matmul


def frame(panels: Sequence[Array], transposed: bool = False) -> Array:
    """The (..., N, k) frame Q with orthonormal columns whose reflectors the panels hold, or its transpose.

    Panel b is (..., N − o, w), zero above its diagonal, where o is the sum of the widths before it; all
    panels but the last are equally wide. Q is the factor of a QR decomposition whose R has a positive
    diagonal, so no sign is left to correct. A zero vector stands for no reflection.

    With x a vector, d its first entry, ν = ‖x‖ and φ the sign or phase of d, the reflector of v = x + φν e₁
    takes x to −φν e₁, and vᴴv / 2 = ν² + |d|ν: nothing is ever subtracted that could cancel.
    """
    width = panels[0].shape[-1]
    # All panels at once, a narrower last one filled up with zero vectors.
    grams = jnp.stack([_padded(matmul(x.conj().mT, x), width) for x in panels])
    tops = jnp.stack([_padded(x[..., : x.shape[-1], :], width) for x in panels])
    shifts, signs, uppers = _ut_transform(grams, tops)
    inverses = inverse(uppers)

    q = None
    for b in reversed(range(len(panels))):
        x = panels[b]
        rows, w = x.shape[-2:]
        v = x + jnp.eye(rows, w, dtype=x.dtype) * shifts[b, ..., None, :w]
        q = _reflect(v, inverses[b, ..., :w, :w], _bordered(q, signs[b, ..., :w], rows, transposed), transposed)
    assert q is not None
    return q


def phase_of(d: Array, norm: Array) -> Array:
    """d / |d|, +1 where d = 0, and −1 where the whole vector is zero, so that its column of Q is e₁."""
    if jnp.issubdtype(d.dtype, jnp.complexfloating):
        magnitude = jnp.abs(d)
        safe = jnp.where(magnitude > 0, magnitude, 1).astype(d.dtype)
        phase = jnp.where(magnitude > 0, d / safe, 1)
    else:
        phase = jnp.where(d < 0, -1, 1).astype(d.dtype)
    return jnp.where(norm > 0, phase, -1)


def _ut_transform(gram: Array, top: Array) -> tuple[Array, Array, Array]:
    """φν, −φ and U of panels X, from XᴴX and their first w rows."""
    squares = diagonal(gram).real
    norm = jnp.sqrt(squares)
    d = diagonal(top)
    phase = phase_of(d, norm)
    shift = phase * norm.astype(d.dtype)
    # VᴴV from XᴴX without another pass over the panel: V differs from X on the diagonal only.
    strict = jnp.triu(gram + top.conj().mT * shift[..., None, :], 1)
    half = jnp.where(squares > 0, squares + jnp.abs(d) * norm, 1).astype(d.dtype)
    upper = strict + jnp.eye(gram.shape[-1], dtype=d.dtype) * half[..., None, :]
    return shift, -phase, upper


def _padded(matrix: Array, width: int) -> Array:
    margins = [(0, 0)] * (matrix.ndim - 2) + [(0, width - matrix.shape[-1])] * 2
    return jnp.pad(matrix, margins)


def _bordered(q: Array | None, signs: Array, rows: int, transposed: bool) -> Array:
    """[diag(signs) 0; 0 Q], or the transpose with Qᵀ in place of Q."""
    width = signs.shape[-1]
    margins = [(0, 0)] * (signs.ndim - 1)
    if q is None:
        columns = width
    else:
        columns = width + q.shape[-2 if transposed else -1]
        q = jnp.pad(q, [*margins, (width, 0), (width, 0)])
    signs = jnp.pad(signs, [*margins, (0, columns - width)])
    if transposed:
        border = jnp.eye(columns, rows, dtype=signs.dtype) * signs[..., :, None]
    else:
        border = jnp.eye(rows, columns, dtype=signs.dtype) * signs[..., None, :]
    return border if q is None else border + q


def _reflect(v: Array, u_inverse: Array, q: Array, transposed: bool) -> Array:
    """(I − V U⁻¹ Vᴴ) Q, or the transpose with Qᵀ in place of Q."""
    if transposed:
        return q - matmul(matmul(matmul(q, v.conj()), u_inverse.mT), v.mT)
    return q - matmul(v, matmul(u_inverse, matmul(v.conj().mT, q)))
