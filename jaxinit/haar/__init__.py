"""Haar-distributed orthogonal and unitary matrices: exact, batched, by matrix products alone."""

from jaxinit.haar._sampler import orthogonal as orthogonal
from jaxinit.haar._sampler import special_orthogonal as special_orthogonal
from jaxinit.haar._sampler import unitary as unitary
