"""Haar-distributed orthogonal and unitary matrices, exact, batched, by matrix products alone.

In: a key, a shape and a dtype; or a weight that is to become orthonormal. Out: matrices with orthonormal columns if
they are tall, else orthonormal rows. Methods agree in distribution, not in numbers. `_sampler` checks arguments and
chooses a method. `_reflectors` draws panels of Gaussian vectors, and `_unrolled` (CPU) or `_scanned` (elsewhere)
multiplies them out. `_small` is for few columns in large batches. `_gaussians` says which Gaussian goes where.
`_orthonormalize` reads a weight as the Gaussians, and `_concrete` does the same by NumPy where the weight has a value
and nothing is compiled yet.
"""

from jaxinit._haar._concrete import converted as converted
from jaxinit._haar._concrete import product as product
from jaxinit._haar._orthonormalize import orthonormal_or_zero as orthonormal_or_zero
from jaxinit._haar._orthonormalize import orthonormalize as orthonormalize
from jaxinit._haar._sampler import orthogonal as orthogonal
from jaxinit._haar._sampler import special_orthogonal as special_orthogonal
from jaxinit._haar._sampler import unitary as unitary
