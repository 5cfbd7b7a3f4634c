"""An orthonormal matrix computed from a weight's own entries: no key, no factorisation.

The lower trapezoid of the weight's (fan-in, fan-out) matrix is read as the Gaussian vectors of Stewart's
algorithm (1980), so a Gaussian weight becomes exactly Haar; a matrix that is already orthonormal up to scale is kept.
"""

import functools
import math

import jax.numpy as jnp

from jaxinit._arrays import drawing_dtype, jitted_alone, layout, with_automatic_axes
from jaxinit._haar._gaussians import cut
from jaxinit._haar._reflectors import fewest_panels_width, frame
from jaxinit._haar._unrolled import identity, matmul
from jaxinit._typing import Array, Axis


def orthonormalize(w: Array, in_axis: Axis = -2, out_axis: Axis = -1, batch_axis: Axis = ()) -> Array:
    """Replaces each matrix of a weight by an orthonormal one computed from its entries.

    Let W be the (fan-in, fan-out) matrix of the weight. The result has WᵀW = I if it is tall and WWᵀ = I if
    it is wide. For independent standard Gaussian entries of any common scale it is exactly Haar. For W
    with WᵀW = cI up to rounding it is W/√c. A zero or rank-deficient W yields some orthonormal matrix.

    Args:
      w: a floating or complex array of at least two dimensions.
      in_axis: the input axis or axes.
      out_axis: the output axis or axes.
      batch_axis: axes along which the matrices are independent. Axes that are not named are the receptive
        field and belong to the fan-in.

    Returns:
      An array of the shape and dtype of `w`.

    Raises:
      ValueError: if there are fewer than two dimensions, or an axis is out of range or named twice.
      TypeError: if `w` is not floating or complex.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> w = jaxinit.orthonormalize(jax.random.normal(jax.random.key(0), (5, 3)))
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(3), atol=1e-5))
      True

    Reference:
      Stewart, 1980, "The efficient generation of random orthogonal matrices with an application to condition
      estimators", SIAM J. Numer. Anal. 17(3).
    """
    return orthonormal_or_zero(w, in_axis, out_axis, batch_axis, zeros_stay=False)


def orthonormal_or_zero(w: Array, in_axis: Axis, out_axis: Axis, batch_axis: Axis, *, zeros_stay: bool = True) -> Array:
    """As `orthonormalize`, but a matrix of zeros, which prefers no direction, stays zero if asked for."""
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.inexact):
        raise TypeError(f"orthonormalize expects a floating or complex weight, got dtype {w.dtype}; cast it first")
    axes = layout(w.shape, in_axis, out_axis, batch_axis)
    if axes.is_lookup_table:
        raise ValueError("orthonormalize needs an input axis that is not also the output axis")
    if w.size == 0:
        return w
    orthonormal: Array = _orthonormalized(w, out_axes=axes.out_axes, batch_axes=axes.batch_axes, zeros_stay=zeros_stay)
    return orthonormal


@functools.partial(jitted_alone, static_argnames=("out_axes", "batch_axes", "zeros_stay"))
def _orthonormalized(w: Array, *, out_axes: tuple[int, ...], batch_axes: tuple[int, ...], zeros_stay: bool) -> Array:
    convert = functools.partial(_converted, out_axes=out_axes, batch_axes=batch_axes, zeros_stay=zeros_stay)
    result: Array = with_automatic_axes(convert, w, like=w)
    return result


def _converted(w: Array, *, out_axes: tuple[int, ...], batch_axes: tuple[int, ...], zeros_stay: bool) -> Array:
    in_axes = tuple(a for a in range(w.ndim) if a not in out_axes + batch_axes)
    order = batch_axes + in_axes + out_axes
    moved = jnp.transpose(w, order)
    batch = tuple(w.shape[a] for a in batch_axes)
    fan_in, fan_out = (math.prod(w.shape[a] for a in axes) for axes in (in_axes, out_axes))
    matrix = moved.reshape(*batch, fan_in, fan_out).astype(drawing_dtype(w.dtype))

    frames = _orthonormal(matrix, w.dtype, zeros_stay)
    back = tuple(order.index(a) for a in range(w.ndim))
    result: Array = jnp.transpose(frames.reshape(moved.shape), back).astype(w.dtype)
    return result


def _orthonormal(matrix: Array, dtype: jnp.dtype, zeros_stay: bool) -> Array:
    """Orthonormal columns if the matrices are tall, else orthonormal rows."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    rows, columns = max(matrix.shape[-2:]), min(matrix.shape[-2:])
    trapezoid = jnp.tril(matrix) if tall else jnp.triu(matrix)
    # A reflector depends on the direction of its vector alone, so each vector may be scaled by itself.
    vectors = _around_one(trapezoid, -2 if tall else -1)
    # The matrix as a whole keeps the ratios of its entries.
    matrix = _around_one(matrix, (-2, -1))

    gram = matmul(matrix.conj().mT, matrix) if tall else matmul(matrix, matrix.conj().mT)
    scale = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None].real / columns
    isotropic = scale.astype(matrix.dtype) * identity(gram, matrix.dtype)
    deviation = jnp.max(jnp.abs(gram - isotropic), axis=(-2, -1), keepdims=True)
    # The rounding of an orthonormal matrix is that of its own dtype, and of the products that made it.
    tolerance = max(64 * _epsilon(matrix.dtype), 4 * _epsilon(dtype))
    keep = deviation <= tolerance * scale
    if not zeros_stay:
        keep &= scale > 0

    panels = []
    for offset, _, width in cut(rows, columns, fewest_panels_width(columns)):
        end = offset + width
        panels.append(vectors[..., offset:, offset:end] if tall else vectors[..., offset:end, offset:])
    kept = matrix / jnp.sqrt(jnp.where(scale > 0, scale, 1)).astype(matrix.dtype)
    return jnp.where(keep, kept, frame(panels, tall))


def _around_one(x: Array, axes: int | tuple[int, ...]) -> Array:
    """x scaled so that its largest entry along these axes is between ½ and 1: squares must not overflow or vanish.

    The scale is a power of two, which changes no digit, applied in two steps: the reciprocal of a huge number is
    subnormal, and would be flushed to zero.
    """
    # Not the absolute value of complex numbers, because it may overflow.
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    sizes = jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)) if is_complex else jnp.abs(x)
    largest = jnp.max(sizes, axis=axes, keepdims=True)
    _, exponent = jnp.frexp(largest)
    for step in (exponent // 2, exponent - exponent // 2):
        x = x * jnp.exp2(-step.astype(largest.dtype)).astype(x.dtype)
    return x


def _epsilon(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
