"""The orthonormal factor of a lower trapezoid of vectors, by matrix products alone.

Stewart (1980): the sign-corrected product of the Householder reflectors of independent Gaussian vectors of
lengths N, N − 1, ... is exactly Haar. The UT transform (Puglisi 1992; Joffrain et al. 2006) turns a product
of reflectors into I − V U⁻¹ Vᴴ, where U is the strictly upper part of VᴴV plus half its diagonal.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxinit._typing import Array
from jaxinit.haar._triangular import inverse, matmul, pad_with_identity


def frame(panels: Sequence[Array]) -> Array:
    """The (..., N, k) frame Q with orthonormal columns whose reflectors the panels hold.

    Panel b is (..., N − o, w), zero above its diagonal, where o is the sum of the widths before it; all
    panels but the last are equally wide. Q is the factor of a QR decomposition whose R has a positive
    diagonal, so no sign is left to correct. A zero vector stands for no reflection.

    With x a vector, d its first entry, ν = ‖x‖ and φ the sign or phase of d, the reflector of v = x + φν e₁
    takes x to −φν e₁, and vᴴv / 2 = ν² + |d|ν: nothing is ever subtracted that could cancel.
    """
    vectors, phases, uppers = zip(*[_ut_transform(panel) for panel in panels], strict=True)
    width = panels[0].shape[-1]
    inverses = inverse(jnp.stack([pad_with_identity(u, width) for u in uppers], axis=-3))

    q = None
    for b in reversed(range(len(panels))):
        w = panels[b].shape[-1]
        q = _apply(vectors[b], inverses[..., b, :w, :w], -phases[b], q)
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
    """V, φ and U of one panel."""
    rows, width = x.shape[-2:]
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
    identity = jnp.eye(width, dtype=x.dtype)
    upper = strict + identity * half[..., None, :]
    v = x + jnp.eye(rows, width, dtype=x.dtype) * e[..., None, :]
    return v, phase, upper


def _apply(v: Array, u_inverse: Array, signs: Array, q: Array | None) -> Array:
    """(I − V U⁻¹ Vᴴ) [diag(signs) 0; 0 Q], one product of the panel with everything to its right."""
    rows, width = v.shape[-2:]
    weights = -matmul(u_inverse, v[..., :width, :].conj().mT) * signs[..., None, :]
    if q is None:
        return matmul(v, weights) + jnp.eye(rows, width, dtype=v.dtype) * signs[..., None, :]
    rest = -matmul(u_inverse, matmul(v[..., width:, :].conj().mT, q))
    columns = width + q.shape[-1]
    change = matmul(v, jnp.concatenate([weights, rest], axis=-1))
    margins = [(0, 0)] * (q.ndim - 2)
    unchanged = jnp.pad(q, [*margins, (width, 0), (width, 0)])
    signs = jnp.pad(signs, [*margins, (0, columns - width)])
    return change + unchanged + jnp.eye(rows, columns, dtype=v.dtype) * signs[..., None, :]
