"""The orthonormal factor of a lower trapezoid of vectors, by matrix products alone.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of
lengths N, N − 1, ... is exactly Haar. The UT transform (Puglisi 1992; Joffrain et al. 2006) turns a product
of reflectors into I − V U⁻¹ Vᴴ, where U is the strictly upper part of VᴴV plus half its diagonal.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxinit._typing import Array
from jaxinit.haar._triangular import inverse, matmul, pad_with_identity


def frame(panels: Sequence[Array], transposed: bool = False) -> Array:
    """The (..., N, k) frame Q with orthonormal columns whose reflectors the panels hold, or its transpose.

    Panel b is (..., N − o, w), zero above its diagonal, where o is the sum of the widths before it; all
    panels but the last are equally wide. Q is the factor of a QR decomposition whose R has a positive
    diagonal, so no sign is left to correct. A zero vector stands for no reflection.

    With x a vector, d its first entry, ν = ‖x‖ and φ the sign or phase of d, the reflector of v = x + φν e₁
    takes x to −φν e₁, and vᴴv / 2 = ν² + |d|ν: nothing is ever subtracted that could cancel.
    """
    shifts, signs, uppers = zip(*[_ut_transform(panel) for panel in panels], strict=True)
    width = panels[0].shape[-1]
    inverses = inverse(jnp.stack([pad_with_identity(u, width) for u in uppers], axis=-3))

    q = None
    for b in reversed(range(len(panels))):
        rows, w = panels[b].shape[-2:]
        v = panels[b] + jnp.eye(rows, w, dtype=panels[b].dtype) * shifts[b][..., None, :]
        q = _reflect(v, inverses[..., b, :w, :w], _bordered(q, signs[b], rows), transposed)
    assert q is not None
    return q


def phase_of(diagonal: Array, norm: Array) -> Array:
    """d / |d|, +1 where d = 0, and −1 where the whole vector is zero, so that its column of Q is e₁."""
    if jnp.issubdtype(diagonal.dtype, jnp.complexfloating):
        magnitude = jnp.abs(diagonal)
        safe = jnp.where(magnitude > 0, magnitude, 1).astype(diagonal.dtype)
        phase = jnp.where(magnitude > 0, diagonal / safe, 1)
    else:
        phase = jnp.where(diagonal < 0, -1, 1).astype(diagonal.dtype)
    return jnp.where(norm > 0, phase, -1)


def _ut_transform(x: Array) -> tuple[Array, Array, Array]:
    """φν, −φ and U of one panel."""
    width = x.shape[-1]
    gram = matmul(x.conj().mT, x)
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1).real
    norm = jnp.sqrt(squares)
    top = x[..., :width, :]
    d = jnp.diagonal(top, axis1=-2, axis2=-1)
    phase = phase_of(d, norm)
    e = phase * norm.astype(x.dtype)
    # VᴴV from XᴴX without another pass over the panel: V differs from X on the diagonal only.
    strict = jnp.triu(gram + top.conj().mT * e[..., None, :], 1)
    half = jnp.where(squares > 0, squares + jnp.abs(d) * norm, 1).astype(x.dtype)
    upper = strict + jnp.eye(width, dtype=x.dtype) * half[..., None, :]
    return e, -phase, upper


def _bordered(q: Array | None, signs: Array, rows: int) -> Array:
    """[diag(signs) 0; 0 Q]."""
    width = signs.shape[-1]
    columns = width + (0 if q is None else q.shape[-1])
    margins = [(0, 0)] * (signs.ndim - 1)
    border = jnp.eye(rows, columns, dtype=signs.dtype) * jnp.pad(signs, [*margins, (0, columns - width)])[..., None, :]
    return border if q is None else border + jnp.pad(q, [*margins, (width, 0), (width, 0)])


def _reflect(v: Array, u_inverse: Array, q: Array, transposed: bool) -> Array:
    """(I − V U⁻¹ Vᴴ) Q."""
    return q - matmul(v, matmul(u_inverse, matmul(v.conj().mT, q)))
