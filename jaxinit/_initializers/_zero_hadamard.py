"""ZerO: a deterministic initialization with zeros and ones, or a Hadamard transform.

Where a layer becomes wider, a Hadamard matrix between two partial identities breaks the symmetry that a plain partial
identity would leave.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._initializers._identity import at_centre
from jaxinit._typing import Array, DTypeLike


@initializer
class zero_hadamard(Initializer):
    r"""The deterministic ZerO initialization: a partial identity, or a Hadamard transform where a layer widens.

    .. math::
        W = I_{n \times m} \text{ if } m \le n, \qquad
        W = \frac{1}{\sqrt p}\, I_{n \times p} H_p I_{p \times m} \text{ if } m > n,
        \quad p = 2^{\lceil \log_2 m \rceil}

    for n inputs and m outputs, the last two axes; a convolution kernel has it at its centre tap, (k-1)//2 on each
    axis. In the paper the last layer of a residual branch and the classifier are zero instead: use `zeros_init()`
    there.

    Args:
      dtype: default dtype of the result.

    Raises:
      ValueError: when called, on a shape of fewer than two dimensions.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.zero_hadamard()(jax.random.key(0), (2, 4))
      Array([[ 0.5,  0.5,  0.5,  0.5],
             [ 0.5, -0.5,  0.5, -0.5]], dtype=float32)

    Reference: Zhao, Schäfer & Anandkumar, 2021 (arXiv:2110.12661).
    """

    random = False

    dtype: DTypeLike = None

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*spatial, in, out)")
        inputs, outputs = shape[-2:]
        matrix = jnp.eye(inputs, outputs, dtype=dtype) if outputs <= inputs else _hadamard(inputs, outputs, dtype)
        return at_centre(matrix, shape)


def _hadamard(rows: int, columns: int, dtype: np.dtype[Any]) -> Array:
    """The corner of the Sylvester-Hadamard matrix of size p, over √p.

    Its entry (i, j) is the parity of the bits that i and j share, so the whole matrix is never formed.
    """
    size = 1 << (columns - 1).bit_length()
    shared = jnp.arange(rows, dtype=np.uint32)[:, None] & jnp.arange(columns, dtype=np.uint32)[None]
    odd = jnp.bitwise_count(shared) % 2 == 1
    return jnp.where(odd, -1.0, 1.0).astype(dtype) * dtype.type(size**-0.5)
