"""HiPPO-LegS: the state matrices that let a linear recurrence remember its whole past.

The state holds the coefficients of the past input in scaled Legendre polynomials, x' = Ax + Bu.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike


@initializer
class hippo_legs(Initializer):
    r"""The HiPPO-LegS state matrix A, or its input vector B.

    .. math::
        A_{nk} = -\begin{cases} \sqrt{(2n+1)(2k+1)} & n > k \\ n + 1 & n = k \\ 0 & n < k \end{cases},
        \qquad B_n = \sqrt{2n+1}

    A acts on column states, x' = Ax + Bu; a layer that computes x @ W needs its transpose. Leading axes are a batch
    of the same matrix or vector.

    Args:
      matrix: "A" for shapes (*batch, N, N), "B" for shapes (*batch, N).
      dtype: default dtype of the result.

    Raises:
      ValueError: an unknown matrix; when called, on a shape that is not square, for "A".

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.hippo_legs()(jax.random.key(0), (2, 2))
      Array([[-1.       ,  0.       ],
             [-1.7320508, -2.       ]], dtype=float32)

    Reference: Gu, Dao, Ermon, Rudra & Ré, 2020 (arXiv:2008.07669).
    """

    random = False

    matrix: str = "A"
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_choice("matrix", self.matrix, ("A", "B"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        index = np.arange(shape[-1] if shape else 0, dtype=np.float64)
        root = np.sqrt(2 * index + 1)
        if self.matrix == "B":
            check_rank(self, shape, 1, "(*batch, N)")
            return jnp.broadcast_to(jnp.asarray(root.astype(dtype)), shape)
        check_rank(self, shape, 2, "(*batch, N, N)")
        if shape[-1] != shape[-2]:
            raise ValueError(f"{self!r} fills square matrices (*batch, N, N), got {shape}")
        state = np.tril(-root[:, None] * root, k=-1) - np.diag(index + 1)
        return jnp.broadcast_to(jnp.asarray(state.astype(dtype)), shape)
