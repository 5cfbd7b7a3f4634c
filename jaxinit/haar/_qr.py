"""Haar matrices by QR of a Gaussian matrix, the reference that the other methods are tested against.

A QR routine is free to choose the signs of R's diagonal, and LAPACK's choice makes Q not Haar; multiplying
the columns of Q by the phases of that diagonal makes the factorisation unique and Q Haar (Mezzadri 2007,
arXiv:math-ph/0609050).
"""

import jax.numpy as jnp

from jaxinit import _random
from jaxinit._typing import Array, DTypeLike
from jaxinit.haar._reflectors import phase_of


def sample(key: Array, batch: tuple[int, ...], n: int, m: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, n, m) matrices with orthonormal columns, or rows if n < m; det +1 if `special`, then n == m."""
    gaussian = _random.normal(key, (*batch, max(n, m), min(n, m)), dtype)
    q, r = jnp.linalg.qr(gaussian)
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    q = q * phase_of(diagonal, jnp.ones_like(diagonal, dtype=diagonal.real.dtype))[..., None, :]
    if special:
        sign = jnp.sign(jnp.linalg.det(q))
        q = q.at[..., -1].multiply(sign[..., None])
    return q.mT if n < m else q
