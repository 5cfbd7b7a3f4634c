"""Draws in the layout of use: matrices of (receptive field, fan-in, fan-out), one for each independent weight."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._initializers import scaled
from jaxinit._initializers._variance_scaling import VarianceScaling
from jaxinit._layers import Layer
from jaxinit._typing import Array


def key_for(key: Array, path: str) -> Array:
    """A key of the leaf's own: other leaves come and go without changing it."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))


def matrix_fan_in(layer: Layer) -> int:
    """The input features of a layer's kernel, taps aside."""
    if layer.view is None or layer.in_axes is None:
        return layer.shape[-2] if len(layer.shape) > 1 else 1
    return math.prod(layer.view[a] for a in layer.in_axes)


def draw_weight(init: Callable[..., Array], key: Array, layer: Layer, dtype: Any) -> Array:
    """A weight of a layer's shape, drawn as the layer uses it."""
    if layer.view is None and layer.kind != "embed" and len(layer.shape) > 2:
        count = math.prod(layer.shape[:-2])
        draws = jax.vmap(lambda key: init(key, layer.shape[-2:], dtype))(jax.random.split(key, count))
        return draws.reshape(layer.shape)
    if layer.view is None or not layer.in_axes or not layer.out_axes:
        return init(key, layer.shape, dtype)
    assert layer.batch_axes is not None
    assert layer.stack_axes is not None
    view = layer.view
    batch = layer.stack_axes + layer.batch_axes
    taps = tuple(a for a in range(len(view)) if a not in batch + layer.in_axes + layer.out_axes)
    order = batch + taps + layer.in_axes + layer.out_axes
    sizes = tuple(view[a] for a in order)
    count = math.prod(view[a] for a in batch)
    n_in, n_out = (math.prod(view[a] for a in axes) for axes in (layer.in_axes, layer.out_axes))
    kernel = (*(view[a] for a in taps), n_in, n_out)
    if isinstance(init, VarianceScaling) and layer.kind == "conv":
        # With a dilated input a unit sees fewer taps than the kernel has.
        seen = layer.fan_in / (layer.receptive_field * n_in)
        init = init if seen == 1 else scaled(init, seen**-0.5)
    if count == 1:
        drawn = init(key, kernel, dtype)
    else:
        drawn = jax.vmap(lambda key: init(key, kernel, dtype))(jax.random.split(key, count))
    back = np.argsort(order).tolist()
    return jnp.transpose(drawn.reshape(sizes), back).reshape(layer.shape)
