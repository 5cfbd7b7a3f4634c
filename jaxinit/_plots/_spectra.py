"""Spectra of weights, of Jacobians and of Haar matrices, with the laws of random matrix theory beside them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._plots._style import COLORS, GREY, axes_or_new


def singular_values(matrix: Any, ax: Any = None) -> Any:
    """Draws a histogram of the singular values of a matrix, with the law for Gaussian entries of the same variance.

    For a square matrix that is the quarter-circle law, otherwise the Marchenko–Pastur law; orthogonal weights
    have a single peak instead.

    Args:
      matrix: a matrix, or a stack of matrices (*, n, m).
      ax: axes to draw on; new ones by default.

    Returns:
      The axes.

    Raises:
      ValueError: fewer than two dimensions.

    Example:
      >>> import jax, jaxinit.plot
      >>> ax = jaxinit.plot.singular_values(jax.random.normal(jax.random.key(0), (64, 64)))
      >>> ax.get_xlabel()
      'singular value'
    """
    matrix = np.asarray(matrix)
    if matrix.ndim < 2:
        raise ValueError(f"singular_values needs matrices, of two dimensions or more, got the shape {matrix.shape}")
    ax = axes_or_new(ax)
    values = np.linalg.svd(matrix, compute_uv=False).ravel()
    top = max(float(values.max()), 1e-30)
    ax.hist(values, bins=50, range=(0, 1.05 * top), density=True, color=COLORS[0], alpha=0.6, label="singular values")
    n, m = max(matrix.shape[-2:]), min(matrix.shape[-2:])
    scale = matrix.std() * n**0.5
    low, high = (abs(scale * (1 + sign * (m / n) ** 0.5)) for sign in (-1, 1))
    if high > 0:
        x = np.linspace(max(low, 1e-9 * high), high, 400)
        density = np.sqrt(np.maximum((high**2 - x**2) * (x**2 - low**2), 0)) / (np.pi * (m / n) * x * scale**2)
        label = "quarter-circle law" if m == n else "law of Marchenko and Pastur"
        ax.plot(x, density, color=COLORS[1], linewidth=2, label=label)
        ax.set_xlim(0, max(1.05 * top, 1.05 * high))
        # For orthogonal matrices one bin is as high as the axes; the law should stay readable beside it.
        ax.set_ylim(0, min(1.3 * ax.get_ylim()[1], 12 * density.max()))
    ax.set(xlabel="singular value", ylabel="density")
    ax.legend(frameon=False, fontsize=8)
    return ax


def jacobian(params: Any, apply_fn: Callable[[Any, Any], Any], x: Any, ax: Any = None) -> Any:
    """Draws the singular values of the input–output Jacobian at one sample, as `singular_values` does.

    Args:
      params: parameters of the model.
      apply_fn: function of (params, batch).
      x: a batch of one array; the full Jacobian is computed at its first sample.
      ax: axes to draw on; new ones by default.

    Returns:
      The axes.

    Example:
      >>> import jax, jaxinit.plot
      >>> w = jaxinit.orthogonal()(jax.random.key(0), (16, 16))
      >>> ax = jaxinit.plot.jacobian(w, lambda w, x: x @ w, jax.numpy.ones((2, 16)))
      >>> ax.get_title(loc="left")
      'Input–output Jacobian: condition 1'
    """
    sample = jnp.asarray(x)[:1]
    matrix = jax.jit(jax.jacrev(lambda s: jnp.ravel(apply_fn(params, s))))(sample)
    matrix = np.asarray(matrix).reshape(matrix.shape[0], -1)
    ax = singular_values(matrix, ax)
    values = np.linalg.svd(matrix, compute_uv=False)
    condition = values[0] / values[-1] if values[-1] > 0 else np.inf
    ax.set_title(f"Input–output Jacobian: condition {condition:.3g}", fontsize=9, loc="left")
    return ax


def eigenvalues(matrices: Any, ax: Any = None) -> Any:
    """Draws the eigenvalues of orthogonal or unitary matrices on the unit circle.

    Those of Haar matrices repel each other and are evenly spread; without the sign correction they are not.

    Args:
      matrices: a square matrix, or a stack of them.
      ax: axes to draw on; new ones by default.

    Returns:
      The axes.

    Raises:
      ValueError: the matrices are not square.

    Example:
      >>> import jax, jaxinit.plot
      >>> ax = jaxinit.plot.eigenvalues(jaxinit.haar.orthogonal(jax.random.key(0), (32, 32)))
      >>> ax.get_aspect()
      1.0
    """
    matrices = np.asarray(matrices)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"eigenvalues needs square matrices, got the shape {matrices.shape}")
    ax = axes_or_new(ax)
    values = np.linalg.eigvals(matrices).ravel()
    angles = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angles), np.sin(angles), color=GREY, linewidth=0.8)
    many = len(values) > 500
    ax.scatter(values.real, values.imag, s=4 if many else 16, color=COLORS[0], alpha=0.5 if many else 0.9, linewidth=0)
    ax.set_aspect("equal")
    ax.set(xlabel="real part", ylabel="imaginary part")
    return ax
