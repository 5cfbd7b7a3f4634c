"""How the Gaussian vectors of Stewart's algorithm are arranged in one draw.

Vector j of a frame of k vectors of length N needs N − j Gaussians. The vectors are cut into panels. Two consecutive
panels share a draw of pairs: one uses the first number of each pair, the other the second. So few numbers are
drawn in vain: those left of the diagonal of each panel, and a square for the second panel of each two.

`jax.random` makes one number from the two words of a hash. The numbers of a Haar matrix are this package's own,
so both words are used, by Box & Muller's transform (1958): with u and t uniform on (0, 1),

    √(−2 ln u) cos 2πt  and  √(−2 ln u) sin 2πt

are independent standard normals.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit._arrays import random, stored, threefry2x32
from jaxinit._typing import Array, DTypeLike


class Panel(NamedTuple):
    """The position of one panel: its first row and column, and how many rows and columns it has."""

    offset: int
    rows: int
    width: int


def cut(rows: int, columns: int, width: int) -> list[Panel]:
    """Panels of `width` columns, the last one narrower if necessary, for a frame of rows ≥ columns."""
    return [Panel(offset, rows - offset, min(width, columns - offset)) for offset in range(0, columns, width)]


def draw(key: Array, batch: tuple[int, ...], layout: list[Panel], tall: bool, dtype: DTypeLike) -> list[Array]:
    """The Gaussian vectors of each panel, (*batch, width, rows), zero before its diagonal; transposed if tall."""
    width = layout[0].width
    lengths = [panel.rows for panel in layout[::2]]
    shape = (sum(lengths), width) if tall else (width, sum(lengths))
    pairs = normal_pairs(key, (*batch, *shape), dtype)
    panels = []
    for index, panel in enumerate(layout):
        end = sum(lengths[: index // 2 + 1])
        start = end - panel.rows
        if tall:
            panels.append(jnp.tril(pairs[index % 2][..., start:end, : panel.width]))
        else:
            panels.append(jnp.triu(pairs[index % 2][..., : panel.width, start:end]))
    return panels


def trapezoid(panels: Sequence[Array], tall: bool) -> Array:
    """The vectors of all panels as the rows of one (*batch, k, N) matrix, zero before its diagonal."""
    rows = [panel.mT for panel in panels] if tall else list(panels)
    length = rows[0].shape[-1]
    whole = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(length - x.shape[-1], 0)]) for x in rows]
    return jnp.concatenate(whole, axis=-2) if len(whole) > 1 else whole[0]


def with_determinant_one(panels: list[Array]) -> list[Array]:
    """The panels of a square frame, with the sign of the last Gaussian set so that det Q = +1.

    det Q is the product of the signs of all panels' diagonals (zero counts as positive), and the last
    Gaussian vector has one entry, of which only the sign matters: this is Haar on SO(n).
    """
    diagonals = [jnp.diagonal(panel, axis1=-2, axis2=-1) for panel in panels]
    negative = sum(jnp.sum(d < 0, axis=-1) for d in diagonals)
    sign = jnp.where(negative % 2 == 1, -1, 1).astype(panels[0].dtype)
    return [*panels[:-1], panels[-1].at[..., -1, -1].multiply(sign)]


def normal_pairs(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Array, Array]:
    """Two independent arrays of standard normals; for a complex dtype E|z|² = 1. Both are kept in memory on CPU."""
    dtype = np.dtype(dtype)
    if dtype.itemsize // (1 + (dtype.kind == "c")) != 4 or not _is_threefry(key) or math.prod(shape) >= 2**32:
        draws = random.stored_normal(key, (2, *shape), dtype)
        return draws[0], draws[1]
    if dtype.kind == "c":
        first, second = (_stored_complex(k, shape) * dtype.type(math.sqrt(0.5)) for k in jax.random.split(key))
        return first, second
    pair = _stored_complex(key, shape)
    return pair.real, pair.imag


def _is_threefry(key: Array) -> bool:
    return jax.random.key_impl(key) == "threefry2x32" and jax.random.key_data(key).shape == (2,)


def _stored_complex(key: Array, shape: tuple[int, ...]) -> Array:
    draw = functools.partial(_complex_normal, shape)
    pair: Array = lax.platform_dependent(key, cpu=functools.partial(stored, draw), default=draw)
    return pair


def _complex_normal(shape: tuple[int, ...], key: Array) -> Array:
    """One standard normal in the real and one in the imaginary part: one array, so that the hash is computed once."""
    first, second = threefry2x32(jax.random.key_data(key), shape)
    radius = jnp.sqrt(-2 * jnp.log(_fraction(first)))
    # The angle is a quarter of the circle, chosen by two bits, plus an angle within it, from −π/4 to π/4.
    cosine, sine = _cosine_and_sine((_fraction(second << np.uint32(2)) - np.float32(0.5)) * np.float32(math.pi / 2))
    quarter = second >> np.uint32(30)
    radius = jnp.where(quarter >= 2, -radius, radius)
    turned = quarter % 2 == 1
    return lax.complex(jnp.where(turned, -sine, cosine) * radius, jnp.where(turned, cosine, sine) * radius)


def _fraction(word: Array) -> Array:
    """The upper 23 bits of a word as the middle of one of 2²³ equal parts of (0, 1)."""
    return (word >> np.uint32(9)).astype(np.int32).astype(np.float32) * np.float32(2**-23) + np.float32(2**-24)


def _cosine_and_sine(angle: Array) -> tuple[Array, Array]:
    """Their power series, to float32's rounding for |angle| ≤ π/4; XLA's CPU compiler does not vectorise its own."""
    square = angle * angle
    cosine, sine = jnp.ones_like(angle), jnp.ones_like(angle)
    for power in (8, 6, 4, 2):
        cosine = 1 - cosine * square * np.float32(1 / (power * (power - 1)))
        sine = 1 - sine * square * np.float32(1 / (power * (power + 1)))
    return cosine, angle * sine
