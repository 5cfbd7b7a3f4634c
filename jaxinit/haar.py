"""Haar-distributed orthogonal and unitary matrices: exact, batched, by matrix products alone."""

from jaxinit._haar import orthogonal as orthogonal
from jaxinit._haar import special_orthogonal as special_orthogonal
from jaxinit._haar import unitary as unitary

__all__ = ["orthogonal", "special_orthogonal", "unitary"]
