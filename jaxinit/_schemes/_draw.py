"""Draws in the layout of use: matrices of (receptive field, fan-in, fan-out), one for each independent weight."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import drawing_dtype, folded_in
from jaxinit._initializers import VarianceScaling, draw_from, scaled
from jaxinit._reading import Layer, Weight, in_order_of_view, spread_over_leaf
from jaxinit._schemes._made_weights import drawn_mixed
from jaxinit._schemes._roles import Matrix, matrix_fan_in
from jaxinit._stages import computed
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a matrix is drawn from, and with which key; by a scheme's rule, or by the user's override.

    `by_slice` holds factors for the slices of a stack.
    """

    init: Callable[..., Array]
    key: Array
    matrix: Matrix
    is_rule: bool = True
    by_slice: tuple[float, ...] = ()


class KeyWords(NamedTuple):
    """A key as its words, from which NumPy derives those of other keys; and whether keys are typed."""

    words: Array
    typed: bool


def key_for(key: Array | KeyWords, path: str) -> Array:
    """A key that depends only on the leaf's path: other leaves do not change it."""
    number = np.uint32(zlib.crc32(path.encode()))
    if not isinstance(key, KeyWords):
        return jax.random.fold_in(key, number)

    def by_jax(words: Array) -> list[Array]:
        return [jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), number))]

    (words,) = computed(by_jax, lambda words: [folded_in(words, int(number))], [key.words], like=[key.words])
    return jax.random.wrap_key_data(words, impl="threefry2x32") if key.typed else words


def draw_weight(draws: Sequence[Draw], layer: Layer, weight: Weight, dtype: Any) -> Array:
    """A weight of a layer's shape, drawn in the layout in which the layer uses it."""
    first = draws[0]
    if layer.view is None and layer.kind != "embed" and not first.matrix.is_gain and first.is_rule:
        factors = spread_over_leaf(weight, (), jnp.asarray(first.by_slice)) if first.by_slice else None
        return drawn_mixed(first.init, first.key, layer, dtype, factors)
    if layer.view is None or layer.in_axes is None or layer.out_axes is None:
        return draw_from(first.init, first.key, layer.shape, dtype)
    assert layer.batch_axes is not None
    assert layer.stack_axes is not None
    view = layer.view
    batch = layer.stack_axes + layer.batch_axes
    taps = tuple(a for a in range(len(view)) if a not in batch + layer.in_axes + layer.out_axes)
    order = batch + taps + layer.in_axes + layer.out_axes
    count = math.prod(view[a] for a in batch)
    n_in, n_out = (math.prod(view[a] for a in axes) for axes in (layer.in_axes, layer.out_axes))
    kernel = (*(view[a] for a in taps), n_in, n_out)

    def part(draw: Draw, key: Array, shape: tuple[int, ...], factor: Array | None) -> Array:
        init = _seen(draw.init, layer)
        if factor is None:
            return draw_from(init, key, shape, dtype)
        wide = drawing_dtype(dtype)
        return (draw_from(init, key, shape, wide) * factor.astype(wide)).astype(dtype)

    def matrix(keys: Sequence[Array], factors: Sequence[Array | None]) -> Array:
        if len(draws) == 1 and first.matrix.rows is None and first.matrix.columns is None:
            return part(first, keys[0], kernel, factors[0])
        result = jnp.zeros(kernel, dtype)
        for draw, key, factor in zip(draws, keys, factors, strict=True):
            rows = np.arange(*(draw.matrix.rows or (0, n_in)))
            columns = np.arange(n_out) if draw.matrix.columns is None else np.array(draw.matrix.columns)
            drawn = part(draw, key, (*kernel[:-2], len(rows), len(columns)), factor)
            result = result.at[..., rows[:, None], columns].set(drawn)
        return result

    if count == 1:
        drawn = matrix([draw.key for draw in draws], [None] * len(draws))
    else:
        members = math.prod(view[a] for a in layer.batch_axes)
        by_slice = [_by_slice(draw, weight, members) for draw in draws]
        drawn = jax.vmap(matrix)([jax.random.split(draw.key, count) for draw in draws], by_slice)
    back = np.argsort(order).tolist()
    return jnp.transpose(drawn.reshape(tuple(view[a] for a in order)), back).reshape(layer.shape)


def _by_slice(draw: Draw, weight: Weight, members: int) -> Array | None:
    """The factor of each matrix of a stack, of which each slice has some members."""
    if not draw.by_slice:
        return None
    return jnp.repeat(in_order_of_view(weight, jnp.asarray(draw.by_slice)).reshape(-1), members)


def _seen(init: Callable[..., Array], layer: Layer) -> Callable[..., Array]:
    """The program may sum over fewer inputs than the kernel has, as with a dilated input, or over more."""
    if not isinstance(init, VarianceScaling):
        return init
    share = layer.fan_in / (layer.receptive_field * matrix_fan_in(layer))
    return init if share == 1 else scaled(init, share**-0.5)
