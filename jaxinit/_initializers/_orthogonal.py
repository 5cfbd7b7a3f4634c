"""Orthogonal starts: kernels that keep the norm of every input, not only the norm on average.

All are thin over the Haar sampler: they say which axes make a matrix, how large it is, and where in a kernel it
goes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import haar
from jaxinit._activations import Activation, canonical_activation
from jaxinit._axes import axis_indices
from jaxinit._checks import check_choice, check_integer, check_number, check_rank
from jaxinit._dtypes import as_scalar
from jaxinit._gain import gain
from jaxinit._initializers._base import Initializer, draw_with, initializer
from jaxinit._initializers._combinators import Combinator
from jaxinit._initializers._identity import at_centre, check_kernel
from jaxinit._typing import Array, Axis, DTypeLike, Scalar

Scale = Scalar | Activation


def _canonical_scale(scale: Any) -> Any:
    """A checked number, or an activation under its one name."""
    if isinstance(scale, str) or callable(scale):
        return canonical_activation(scale)
    check_number("scale", scale)
    return scale


def _haar(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any) -> Array:
    """A Haar matrix, real or complex, times a number or the gain of an activation."""
    sample = haar.unitary if jnp.issubdtype(dtype, np.complexfloating) else haar.orthogonal
    factor = gain(scale) if isinstance(scale, str) or callable(scale) else scale
    return sample(key, shape, dtype) * as_scalar(factor, dtype)


def _haar_columns(
    key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], scale: Any, column_axis: int, batch_axis: Axis
) -> Array:
    """One Haar matrix a batch entry: its columns lie on one axis, its rows on all that are left."""
    (column,) = axis_indices("column_axis", column_axis, shape)
    batch = axis_indices("batch_axis", batch_axis, shape)
    if column in batch:
        raise ValueError(f"column_axis={column_axis} and batch_axis={batch_axis} must differ, for the shape {shape}")
    rows = tuple(axis for axis in range(len(shape)) if axis != column and axis not in batch)
    if not rows:
        raise ValueError(f"an orthogonal matrix needs two axes beside batch_axis={batch_axis}, got the shape {shape}")
    order = (*batch, *rows, column)
    sizes = tuple(shape[axis] for axis in order)
    matrices = (*sizes[: len(batch)], math.prod(sizes[len(batch) : -1]), sizes[-1])
    frames = _haar(key, matrices, dtype, scale).reshape(sizes)
    return jnp.transpose(frames, np.argsort(order).tolist())


@initializer
class orthogonal(Initializer):
    r"""Haar-distributed orthogonal weights: uniform over all orthogonal matrices.

    .. math:: W = \text{scale} \cdot Q, \qquad Q^\top Q = I \text{ or } Q Q^\top = I

    The columns lie on `column_axis` and the rows on all other axes together; whichever are fewer are orthonormal.
    Complex dtypes give unitary matrices, floats of fewer than 32 bits work (JAX raises), and with `batch_axis` each
    entry of a stack is orthogonal by itself (JAX makes one matrix of them all). The numbers are those of
    `jaxinit.haar.orthogonal`, not JAX's.

    Args:
      scale: a factor, or an activation, by name or as a function, whose gain is one.
      column_axis: the axis of the columns.
      dtype: default dtype of the result.
      batch_axis: axis or axes along which independent matrices are stacked.

    Raises:
      TypeError, ValueError: when made, on a scale that is no number or activation; when called, on a shape of fewer
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

    scale: Scale = 1.0
    column_axis: int = -1
    dtype: DTypeLike = None
    batch_axis: Axis = dataclasses.field(default=(), kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", _canonical_scale(self.scale))
        check_integer("column_axis", self.column_axis, -64)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*rows, columns)")
        return _haar_columns(key, shape, dtype, self.scale, self.column_axis, self.batch_axis)


@initializer
class unitary(Initializer):
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
      >>> bool(jnp.allclose(w.conj().T @ w, jnp.eye(4), atol=1e-5))
      True

    Reference: Arjovsky, Shah & Bengio, 2016 (arXiv:1511.06464); Mezzadri, 2007 (arXiv:math-ph/0609050).
    """

    allowed = "complex"

    scale: Scale = 1.0
    column_axis: int = -1
    dtype: DTypeLike = None
    batch_axis: Axis = dataclasses.field(default=(), kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", _canonical_scale(self.scale))
        check_integer("column_axis", self.column_axis, -64)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*rows, columns)")
        return _haar_columns(key, shape, dtype, self.scale, self.column_axis, self.batch_axis)


@initializer
class delta_orthogonal(Initializer):
    r"""Convolutions that are orthogonal at the centre tap and zero elsewhere: they keep norms at any depth.

    .. math:: W_{c} = \text{scale} \cdot Q \text{ for the centre tap } c, \qquad 0 \text{ elsewhere}

    Q is (in, out) with orthonormal rows where in ≤ out, so the layer keeps every norm; where in > out, which JAX
    refuses, its columns are orthonormal and the layer is a projection. Grouped kernels have one Q a group.

    Args:
      scale: a factor, or an activation, by name or as a function, whose gain is one.
      column_axis: -1 or -2, the axis of the matrix's columns; the distribution does not depend on it.
      dtype: default dtype of the result.
      groups: feature groups of the convolution.
      centre: a kernel of even size has no centre tap, and is refused unless this says which of its two middle taps to
        take: "lower", (k-1)//2, is the one that padding "SAME" aligns with the input, and JAX's; "upper" is k//2.

    Raises:
      TypeError, ValueError: when made, on a bad scale, axis, number of groups or centre; when called, on a shape
        without one to three spatial axes, an even size without `centre`, or groups that do not divide the outputs.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> kernel = jaxinit.delta_orthogonal()(jax.random.key(0), (3, 3, 16, 32))
      >>> int((abs(kernel).max(axis=(2, 3)) > 0).sum())
      1

    Reference: Xiao et al., 2018 (arXiv:1806.05393).
    """

    scale: Scale = 1.0
    column_axis: int = -1
    dtype: DTypeLike = None
    groups: int = dataclasses.field(default=1, kw_only=True)
    centre: str | None = dataclasses.field(default=None, kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", _canonical_scale(self.scale))
        check_integer("groups", self.groups, 1)
        if self.column_axis not in (-1, -2):
            raise ValueError(f"column_axis must be -1 or -2, an axis of the matrix, got {self.column_axis!r}")
        if self.centre is not None:
            check_choice("centre", self.centre, ("lower", "upper"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_kernel(self, shape)
        _check_centre(self, shape, self.centre)
        if shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} must divide the output features, the last axis of {shape}")
        size = (self.groups, shape[-2], shape[-1] // self.groups)
        matrices = _haar_columns(key, size, dtype, self.scale, self.column_axis, 0)
        # (groups, in / groups, out / groups) -> (in / groups, out)
        return at_centre(jnp.moveaxis(matrices, 0, 1).reshape(shape[-2:]), shape, upper=self.centre == "upper")


def _check_centre(caller: object, shape: tuple[int, ...], centre: str | None) -> None:
    """Accept odd sizes, and even ones where it was said which middle tap to take.

    Raises:
      ValueError: a kernel of even size, and nothing said.
    """
    if centre is None and any(size % 2 == 0 for size in shape[:-2]):
        raise ValueError(
            f"{caller!r} puts a matrix at the centre tap, which a kernel of even size has not, got {shape}; "
            "use an odd size, or say centre='lower' or 'upper'"
        )


@initializer
class scaled_uniform_orthogonal(Initializer):
    r"""Haar weights scaled so that a layer that narrows or widens keeps the mean square of its units.

    .. math:: W = \text{scale} \cdot \max\left(\sqrt{\text{out} / \text{in}}, 1\right) Q

    A wide Q has orthonormal rows and spreads the input over more units; the factor makes up for that. Convolution
    kernels have the matrix at their centre tap. This is the start of deep kernel shaping.

    Args:
      scale: a factor, or an activation, by name or as a function, whose gain is one.
      dtype: default dtype of the result.
      centre: for kernels of even size, as in `delta_orthogonal`.

    Raises:
      TypeError, ValueError: when made, on a bad scale or centre; when called, on a shape of fewer than two
        dimensions or an even kernel size without `centre`.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> w = jaxinit.scaled_uniform_orthogonal()(jax.random.key(0), (16, 64))
      >>> x = jax.random.normal(jax.random.key(1), (16,))
      >>> y = x @ w
      >>> round(float((y**2).mean() / (x**2).mean()), 3)
      1.0

    Reference: Martens et al., 2021 (arXiv:2110.01765).
    """

    scale: Scale = 1.0
    dtype: DTypeLike = None
    centre: str | None = dataclasses.field(default=None, kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", _canonical_scale(self.scale))
        if self.centre is not None:
            check_choice("centre", self.centre, ("lower", "upper"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*spatial, in, out)")
        _check_centre(self, shape, self.centre)
        inputs, outputs = shape[-2:]
        widening = dtype.type(max(math.sqrt(outputs / inputs), 1))
        matrix = _haar(key, (inputs, outputs), dtype, self.scale) * widening
        return at_centre(matrix, shape, upper=self.centre == "upper")


_FORMS = ("first", "hidden", "last")


@initializer
class looks_linear(Combinator):
    r"""Mirrored weights, with which a plain ReLU network computes a linear function at the start.

    .. math::
        W_\text{first} = [Q, -Q], \qquad
        W_\text{hidden} = \begin{bmatrix} Q & -Q \\ -Q & Q \end{bmatrix}, \qquad
        W_\text{last} = \begin{bmatrix} Q \\ -Q \end{bmatrix}

    for kernels stored (in, out): units come in pairs that carry the positive and the negative part of a number, which
    the next layer puts together again. After a concatenated ReLU, which makes the pairs itself, every layer but the
    first takes the "last" form. Biases must be zero.

    Args:
      init: the initializer of Q, on the kernel's shape with its doubled axes halved: `orthogonal()` for dense layers,
        `delta_orthogonal()` for convolutions, whose feature axes are the last two.
      form: "first", "hidden" or "last".

    Raises:
      TypeError, ValueError: when made, on something that is no initializer or form; when called, on an odd number of
        features on an axis that is to be doubled.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
      >>> first = jaxinit.looks_linear(form="first")(k1, (4, 8))
      >>> hidden = jaxinit.looks_linear()(k2, (8, 8))
      >>> last = jaxinit.looks_linear(form="last")(k3, (8, 4))
      >>> net = lambda x: jax.nn.relu(jax.nn.relu(x @ first) @ hidden) @ last
      >>> x, y = jnp.eye(4)[:2]
      >>> bool(jnp.allclose(net(x + y), net(x) + net(y), atol=1e-6))
      True

    Reference: Balduzzi et al., 2017 (arXiv:1702.08591).
    """

    init: Callable[..., Array] = orthogonal()
    form: str = "hidden"

    def _check(self) -> None:
        super()._check()
        check_choice("form", self.form, _FORMS)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*spatial, in, out)")
        *spatial, inputs, outputs = shape
        doubles_in, doubles_out = self.form != "first", self.form != "last"
        if (doubles_in and inputs % 2) or (doubles_out and outputs % 2):
            raise ValueError(
                f"{self!r} pairs units, so their number must be even: got {inputs} inputs and {outputs} outputs in "
                f"the shape {shape}"
            )
        half = (*spatial, inputs // (1 + doubles_in), outputs // (1 + doubles_out))
        kernel = draw_with(self.init, key, half, dtype)
        if doubles_out:
            kernel = jnp.concatenate([kernel, -kernel], axis=-1)
        return jnp.concatenate([kernel, -kernel], axis=-2) if doubles_in else kernel
