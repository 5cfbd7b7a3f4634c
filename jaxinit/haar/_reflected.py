"""Haar matrices by Stewart's reflectors in panels: draw the trapezoid of Gaussians, multiply the panels out.

Only N·k − k(k − 1)/2 Gaussians are drawn for an N × k frame, and no matrix is factorised (Stewart 1980).
"""

import itertools

import jax

from jaxinit import _random
from jaxinit._typing import Array, DTypeLike
from jaxinit.haar._dispatch import one_at_a_time, panel_width
from jaxinit.haar._panels import cut, unpack, with_determinant_one
from jaxinit.haar._reflectors import frame


def sample(key: Array, batch: tuple[int, ...], rows: int, columns: int, dtype: DTypeLike, special: bool) -> Array:
    """(*batch, rows, columns) frames with rows ≥ columns; det +1 if `special`, then rows == columns."""
    layout = cut(rows, columns, panel_width(columns))
    ends = list(itertools.accumulate(panel.size for panel in layout))

    def build(draw: Array) -> Array:
        panels = [unpack(draw[..., end - panel.size : end], panel) for panel, end in zip(layout, ends, strict=True)]
        return frame(with_determinant_one(panels) if special else panels)

    def walk(draw: Array) -> Array:
        frames: Array = jax.lax.map(build, draw.reshape(-1, ends[-1]))
        return frames.reshape(*batch, rows, columns)

    draw = _random.stored_normal(key, (*batch, ends[-1]), dtype)
    if one_at_a_time(batch, columns):
        frames: Array = jax.lax.platform_dependent(draw, cpu=walk, default=build)
        return frames
    return build(draw)
