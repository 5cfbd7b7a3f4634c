"""The matrices of `_orthonormalize` computed by NumPy: equal up to rounding, with nothing to compile.

Compiling the program that makes one 4 × 16 matrix orthonormal takes half a second, and a model has a dozen shapes. Q is
a product of reflectors (see `_reflectors`), I − V U⁻¹ Vᴴ for a panel of them, whatever multiplies the matrices.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import drawing_dtype

_PANEL = 64
_TILE = 64
"""OpenBLAS multiplies matrices on a single thread up to 2¹⁸ products of numbers."""
_LARGE = 1 << 27
"""From this size on, threads are worth waiting for."""


def converted(w: Any, out_axes: tuple[int, ...], batch_axes: tuple[int, ...], zeros_stay: bool) -> Any:
    """A weight whose matrices are made orthonormal, each by itself; matrices of zeros stay zero if asked for."""
    if w.size == 0:
        return w
    dtype = w.dtype
    in_axes = tuple(a for a in range(w.ndim) if a not in out_axes + batch_axes)
    order = batch_axes + in_axes + out_axes
    moved = np.transpose(w, order)
    fan_in, fan_out = (math.prod(w.shape[a] for a in axes) for axes in (in_axes, out_axes))
    matrices = moved.reshape(-1, fan_in, fan_out).astype(drawing_dtype(dtype))
    with np.errstate(all="ignore"):
        made = np.stack([_orthonormal(matrix, dtype, zeros_stay) for matrix in matrices])
    return np.transpose(made.reshape(moved.shape), np.argsort(order)).astype(dtype)


def _orthonormal(matrix: Any, dtype: Any, zeros_stay: bool) -> Any:
    """Orthonormal columns if the matrix is tall, else orthonormal rows, as the transpose of the tall case."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix if tall else matrix.T
    whole = _around_one(x, (0, 1))
    gram = product(whole.conj().T, whole)
    scale = np.trace(gram).real / x.shape[1]
    tolerance = max(64 * _epsilon(matrix.dtype), 4 * _epsilon(dtype))
    deviation = np.max(np.abs(gram - scale * np.eye(x.shape[1], dtype=x.dtype)))
    if deviation <= tolerance * scale and (zeros_stay or scale > 0):
        q = whole / np.sqrt(scale if scale > 0 else 1).astype(whole.real.dtype)
    else:
        q = _frame(_around_one(np.tril(x), 0))
    return q if tall else q.T


def _frame(x: Any) -> Any:
    """The product of the reflectors of the columns of a lower trapezoid, with the signs that make it Haar."""
    rows, columns = x.shape
    norms = np.sqrt(np.sum(np.real(x * x.conj()), axis=0))
    d = np.diagonal(x)
    size = np.abs(d)
    phases = np.where(size > 0, d / np.where(size > 0, size, 1), 1) if np.iscomplexobj(x) else np.where(d < 0, -1, 1)
    phases = np.where(norms > 0, phases, -1).astype(x.dtype)
    v = x.copy()
    v[np.arange(columns), np.arange(columns)] += phases * norms
    halves = np.where(norms > 0, norms * (norms + size), 1)
    q = np.eye(rows, columns, dtype=x.dtype)
    width = _PANEL if columns <= 8 * _PANEL else 4 * _PANEL
    for start in reversed(range(0, columns, width)):
        end = min(start + width, columns)
        panel = v[start:, start:end]
        upper = np.triu(product(panel.conj().T, panel), 1)
        np.fill_diagonal(upper, halves[start:end])
        q[start:, start:end] *= -phases[start:end]
        met = product(panel.conj().T, q[start:, start:])
        q[start:, start:] -= product(product(panel, _inverse(upper)), met)
    return q


def _inverse(upper: Any) -> Any:
    """The inverse of an upper triangular matrix, from blocks on the diagonal that grow: 1, 2, 4, ... columns."""
    size = len(upper)
    whole = 1 << (size - 1).bit_length()
    u = np.eye(whole, dtype=upper.dtype)
    u[:size, :size] = upper
    result = np.diag(1 / np.diagonal(u))
    width = 1
    while width < whole:
        i = np.arange(whole // (2 * width))
        blocks, inverses = (x.reshape(len(i), 2 * width, len(i), 2 * width)[i, :, i] for x in (u, result))
        first, second = inverses[:, :width, :width], inverses[:, width:, width:]
        found = result.reshape(len(i), 2 * width, len(i), 2 * width)
        found[i, :width, i, width:] = -(first @ blocks[:, :width, width:] @ second)
        width *= 2
    return result[:size, :size]


def product(a: Any, b: Any) -> Any:
    """a @ b of matrices; products of medium size run in tiles small enough that OpenBLAS starts no threads.

    Its threads spin while they wait for one another: where other programs run, or XLA compiles at the same time, a
    product of two 128 × 128 matrices on several threads may take ten milliseconds instead of a tenth of one.
    """
    rows, terms = a.shape
    columns = b.shape[1]
    size = rows * terms * columns
    if size <= _TILE**3 or size > _LARGE:
        return a @ b
    result = np.empty((rows, columns), a.dtype)
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            tile = a[i : i + _TILE, :_TILE] @ b[:_TILE, j : j + _TILE]
            for k in range(_TILE, terms, _TILE):
                tile += a[i : i + _TILE, k : k + _TILE] @ b[k : k + _TILE, j : j + _TILE]
            result[i : i + _TILE, j : j + _TILE] = tile
    return result


def _around_one(x: Any, axes: int | tuple[int, ...]) -> Any:
    """See `_orthonormalize`."""
    sizes = np.maximum(np.abs(x.real), np.abs(x.imag)) if np.iscomplexobj(x) else np.abs(x)
    largest = np.max(sizes, axis=axes, keepdims=True)
    _, exponent = np.frexp(largest)
    for step in (exponent // 2, exponent - exponent // 2):
        x = x * np.ldexp(np.ones((), largest.dtype), -step).astype(x.real.dtype)
    return x


def _epsilon(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
