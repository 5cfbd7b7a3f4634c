"""Identity matrices and identity convolutions: layers that return their input unchanged."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import as_scalar
from jaxinit._checks import check_integer, check_number, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike, Scalar


@initializer
class identity(Initializer):
    r"""The identity matrix times `scale`, in the last two axes.

    .. math:: W_{ij} = \text{scale} \cdot \delta_{ij}

    A rectangular matrix has ones on its main diagonal; leading axes are a batch of the same matrix. With zero
    biases this is the recurrent kernel of an IRNN.

    Args:
      scale: the diagonal entries; a JAX scalar may be traced.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: scale is not a finite number; when called, on a shape of fewer than two dimensions.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.identity()(jax.random.key(0), (2, 3))
      Array([[1., 0., 0.],
             [0., 1., 0.]], dtype=float32)

    Reference: Le, Jaitly & Hinton, 2015 (arXiv:1504.00941).
    """

    random = False
    allowed = "any"

    scale: Scalar = 1.0
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("scale", self.scale)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*batch, in, out)")
        return jnp.broadcast_to(jnp.eye(shape[-2], shape[-1], dtype=dtype) * as_scalar(self.scale, dtype), shape)


@initializer
class dirac(Initializer):
    r"""A convolution kernel that returns its input: an identity at the centre tap, zero elsewhere.

    .. math:: W_{c, i, o} = 1 \text{ for the centre tap } c \text{ and } o = i \text{ within the group}

    The centre of a kernel axis of size k is (k-1)//2, where the output of padding "SAME" aligns with the input,
    so even sizes are the identity too (PyTorch uses k//2, which shifts by one). Where a group has more outputs
    than inputs, the surplus outputs are zero; where it has fewer, the surplus inputs are dropped.

    Args:
      groups: feature groups of the convolution.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: groups is not a positive integer; when called, on a shape without one to three spatial
        axes, or whose output features the groups do not divide.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.dirac()(jax.random.key(0), (3, 1, 1)).reshape(-1)
      Array([0., 1., 0.], dtype=float32)

    Reference: Zagoruyko & Komodakis, DiracNets, 2017 (arXiv:1706.00388).
    """

    random = False
    allowed = "any"

    groups: int = 1
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_integer("groups", self.groups, 1)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        *_, features_in, features_out = shape
        check_kernel(self, shape)
        if features_out % self.groups:
            raise ValueError(
                f"groups must divide the output features, the last axis of {shape}, got groups={self.groups}"
            )
        per_group = jnp.eye(features_in, features_out // self.groups, dtype=dtype)
        return at_centre(jnp.tile(per_group, (1, self.groups)), shape)


def check_kernel(caller: object, shape: tuple[int, ...]) -> None:
    """Checks that a shape is that of a convolution kernel with one to three spatial axes.

    Raises:
      ValueError: it has a different number of axes.
    """
    if not 3 <= len(shape) <= 5:
        raise ValueError(
            f"{caller!r} fills convolution kernels (*spatial, in, out) of one to three spatial axes, got {shape}"
        )


def at_centre(matrix: Array, shape: tuple[int, ...], *, upper: bool = False) -> Array:
    """A kernel of this shape that is zero except at its centre tap, which is `matrix`.

    If the size is even, the tap is the lower of the two middle taps, or the upper one.
    """
    centre = tuple((size - (not upper)) // 2 for size in shape[:-2])
    return jnp.zeros(shape, matrix.dtype).at[centre].set(matrix)
