"""Orthogonal and unitary weights: they keep the norm of every input, not only the norm on average.

A thin layer over the Haar sampler that decides which axes form a matrix, and how large it is.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _haar
from jaxinit._arrays import as_scalar, axis_indices
from jaxinit._checks import check_integer, check_number, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._numbers import Activation, canonical_activation, gain
from jaxinit._typing import Array, Axis, DTypeLike, Scalar

Scale = Scalar | Activation


def canonical_scale(scale: Any) -> Any:
    """A checked number, or an activation under its canonical name."""
    if isinstance(scale, str) or callable(scale):
        return canonical_activation(scale)
    check_number("scale", scale)
    return scale


def haar_matrix(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any) -> Array:
    """A Haar matrix, real or complex, times a number or the gain of an activation."""
    sample = _haar.unitary if jnp.issubdtype(dtype, np.complexfloating) else _haar.orthogonal
    factor = gain(scale) if isinstance(scale, str) or callable(scale) else scale
    return sample(key, shape, dtype) * as_scalar(factor, dtype)


def haar_columns(
    key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any, column_axis: int, batch_axis: Axis
) -> Array:
    """One Haar matrix per batch entry: its columns are along one axis, its rows along all that are left."""
    (column,) = axis_indices("column_axis", column_axis, shape)
    batch = axis_indices("batch_axis", batch_axis, shape)
    if column in batch:
        raise ValueError(f"column_axis={column_axis} and batch_axis={batch_axis} must differ, for the shape {shape}")
    rows = tuple(axis for axis in range(len(shape)) if axis != column and axis not in batch)
    if not rows:
        raise ValueError(f"an orthogonal matrix needs two axes besides batch_axis={batch_axis}, got the shape {shape}")
    order = (*batch, *rows, column)
    sizes = tuple(shape[axis] for axis in order)
    matrices = (*sizes[: len(batch)], math.prod(sizes[len(batch) : -1]), sizes[-1])
    frames = haar_matrix(key, matrices, dtype, scale).reshape(sizes)
    return jnp.transpose(frames, np.argsort(order).tolist())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _HaarMatrix(Initializer):
    """What orthogonal and unitary weights share; a subclass says which dtypes it makes."""

    scale: Scale = 1.0
    column_axis: int = -1
    dtype: DTypeLike = None
    batch_axis: Axis = dataclasses.field(default=(), kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", canonical_scale(self.scale))
        check_integer("column_axis", self.column_axis, -64)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*rows, columns)")
        return haar_columns(key, shape, dtype, self.scale, self.column_axis, self.batch_axis)


@initializer
class orthogonal(_HaarMatrix):
    r"""Haar-distributed orthogonal weights: uniform over all orthogonal matrices.

    .. math:: W = \text{scale} \cdot Q, \qquad Q^\top Q = I \text{ or } Q Q^\top = I

    The columns are along `column_axis` and the rows along all other axes together; whichever are fewer are orthonormal.
    Complex dtypes yield unitary matrices, and floats of fewer than 32 bits work (JAX raises). With `batch_axis` each
    slice of a stack is orthogonal by itself (JAX makes one matrix of them all). The numbers are those of
    `jaxinit.haar.orthogonal`, not JAX's.

    A matrix that is sharded over devices is orthogonal as a whole, so every device computes all of it before it keeps
    its shard. If the matrix is too large for that, `jaxinit.blocked(jaxinit.orthogonal(), axis, devices)` draws the
    columns (or rows) of each device as an orthogonal matrix of their own, and each device computes its own alone.

    Args:
      scale: a factor; or an activation, by name or as a function, whose gain is the factor.
      column_axis: the axis of the columns.
      dtype: default dtype of the result.
      batch_axis: axis or axes along which independent matrices are stacked.

    Raises:
      TypeError, ValueError: when made, on a scale that is not a number or activation; when called, on a shape of fewer
        than two dimensions, or axes that do not fit it.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> w = jaxinit.orthogonal()(jax.random.key(0), (8, 4))
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(4), atol=1e-5))
      True
      >>> jaxinit.orthogonal("tanh", batch_axis=0)(jax.random.key(0), (12, 64, 64)).shape
      (12, 64, 64)

    Reference: Saxe, McClelland & Ganguli, 2014 (arXiv:1312.6120).
    """


@initializer
class unitary(_HaarMatrix):
    r"""Haar-distributed unitary weights, complex64 by default.

    .. math:: W = \text{scale} \cdot Q, \qquad Q^* Q = I \text{ or } Q Q^* = I

    Args:
      scale, column_axis, dtype, batch_axis: as in `orthogonal`.

    Raises:
      TypeError, ValueError: as `orthogonal`, and on a dtype that is not complex.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> w = jaxinit.unitary()(jax.random.key(0), (4, 4))
      >>> bool(jnp.allclose(w.conj().T @ w, jnp.eye(4, dtype=w.dtype), atol=1e-5))
      True

    Reference: Arjovsky, Shah & Bengio, 2016 (arXiv:1511.06464); Mezzadri, 2007 (arXiv:math-ph/0609050).
    """

    allowed = "complex"
