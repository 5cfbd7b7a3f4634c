"""What is added to the output of a layer, biases and noise, and segments of the output that belong to no weight."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._arrays import with_automatic_axes
from jaxinit._reading import Use
from jaxinit._typing import Array


def total(use: Use, terms: Sequence[Array], shape: tuple[int, ...], is_noise: bool) -> Array | None:
    """The sum of a use's biases, or of the noise among them; of size 1 where a bias does not vary.

    Args:
      use: the use of a layer.
      terms: its biases, scaled.
      shape: that of the output.
      is_noise: which of them are added.
    """
    repeated = [axis for axis in range(len(shape)) if axis not in use.bias_dims and not is_noise]
    found = None
    for bias, term in zip(use.biases, terms, strict=True):
        if bias.is_noise != is_noise:
            continue
        for move in bias.moves:
            where_to = [atom.value for atom in move.inputs[1:] if isinstance(atom, ir.Constant)]
            (term,) = move.bind(jnp.broadcast_to(term, move.inputs[0].shape), *where_to)
        term = jnp.reshape(term, (1,) * len(shape)) if jnp.ndim(term) == 0 else term
        # What is not recomputed need not be stored.
        term = with_automatic_axes(functools.partial(_once, repeated), term)
        term = term if bias.sign == 1 else -term
        found = term if found is None else found + term
    return found


def _once(axes: Sequence[int], bias: Array) -> Array:
    """The first entry of each axis along which a bias does not vary."""
    for axis in axes:
        bias = lax.slice_in_dim(bias, 0, 1, axis=axis) if bias.shape[axis] > 1 else bias
    return bias


def segment(u: Array, bias: Array | None, axis: int, start: int, stop: int) -> Array:
    """A segment of a layer's output that belongs to no weight."""
    piece = cut(u, axis, start, stop)
    return piece if bias is None else piece + cut(bias, axis, start, stop)


def cut(x: Array, axis: int, start: int, stop: int) -> Array:
    """A segment of an output, or of a bias, which has size 1 where it does not vary."""
    return x if x.shape[axis] == 1 else lax.slice_in_dim(x, start, stop, axis=axis)
