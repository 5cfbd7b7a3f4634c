"""Orthogonal convolutions: a Haar matrix at the centre tap of the kernel, zero elsewhere.

A kernel that is orthogonal as one flattened matrix changes the norm of an image, because patches overlap; a kernel
with a single tap acts on every pixel alone and keeps the norm.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_integer, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._initializers._identity import at_centre, check_kernel
from jaxinit._initializers._orthogonal import Scale, canonical_scale, haar_columns, haar_matrix
from jaxinit._typing import Array, DTypeLike


@initializer
class delta_orthogonal(Initializer):
    r"""Convolution kernels that are orthogonal at the centre tap and zero elsewhere: they keep norms at any depth.

    .. math:: W_{c} = \text{scale} \cdot Q \text{ for the centre tap } c, \qquad 0 \text{ elsewhere}

    Q is (in, out) with orthonormal rows where in ≤ out, so the layer keeps every norm. Where in > out, which JAX
    refuses, its columns are orthonormal and the layer is a projection. Grouped kernels have one Q per group.

    Args:
      scale: a factor; or an activation, by name or as a function, whose gain is the factor.
      column_axis: -1 or -2, the axis of the matrix's columns; the distribution does not depend on it.
      dtype: default dtype of the result.
      groups: feature groups of the convolution.
      centre: which of its two middle taps a kernel of even size k uses: "lower", (k-1)//2, which padding "SAME"
        aligns with the input and JAX uses; or "upper", k//2.

    Raises:
      TypeError, ValueError: when made, on a bad scale, axis, number of groups or centre; when called, on a shape
        without one to three spatial axes, or groups that do not divide the outputs.

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
    centre: str = dataclasses.field(default="lower", kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", canonical_scale(self.scale))
        check_integer("groups", self.groups, 1)
        if self.column_axis not in (-1, -2):
            raise ValueError(f"column_axis must be -1 or -2, an axis of the matrix, got {self.column_axis!r}")
        check_choice("centre", self.centre, ("lower", "upper"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_kernel(self, shape)
        if shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} must divide the output features, the last axis of {shape}")
        size = (self.groups, shape[-2], shape[-1] // self.groups)
        matrices = haar_columns(key, size, dtype, self.scale, self.column_axis, 0)
        # (groups, in / groups, out / groups) -> (in / groups, out)
        return at_centre(jnp.moveaxis(matrices, 0, 1).reshape(shape[-2:]), shape, upper=self.centre == "upper")


@initializer
class scaled_uniform_orthogonal(Initializer):
    r"""Haar weights scaled so that a layer that changes the width keeps the mean square of its units.

    .. math:: W = \text{scale} \cdot \max\left(\sqrt{\text{out} / \text{in}}, 1\right) Q

    A wide Q has orthonormal rows and spreads the input over more units, for which the factor compensates. Convolution
    kernels have the matrix at their centre tap. Deep kernel shaping uses this initialization.

    Args:
      scale: a factor; or an activation, by name or as a function, whose gain is the factor.
      dtype: default dtype of the result.
      centre: for kernels of even size, as in `delta_orthogonal`.

    Raises:
      TypeError, ValueError: when made, on a bad scale or centre; when called, on a shape of fewer than two
        dimensions.

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
    centre: str = dataclasses.field(default="lower", kw_only=True)

    def _check(self) -> None:
        object.__setattr__(self, "scale", canonical_scale(self.scale))
        check_choice("centre", self.centre, ("lower", "upper"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*spatial, in, out)")
        inputs, outputs = shape[-2:]
        widening = dtype.type(max(math.sqrt(outputs / inputs), 1))
        matrix = haar_matrix(key, (inputs, outputs), dtype, self.scale) * widening
        return at_centre(matrix, shape, upper=self.centre == "upper")
