"""The principal components of what layers take on a batch, measured in one evaluation of the program.

The second moments about the mean are merged use by use, as Chan et al. do, so that a large mean costs no precision.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinit._arrays import drawing_dtype
from jaxinit._evaluate import Watch, measure
from jaxinit._lora._adapters import Adapter
from jaxinit._reading import Traced
from jaxinit._typing import Array


def principal_components(traced: Traced, batch: Any, adapters: list[Adapter]) -> list[Array]:
    """The first principal components of the inputs of each adapter, as (slices, inputs, rank)."""
    start: dict[Any, Any] = {}
    watched: dict[Any, list[tuple[Any, tuple[int, ...], int]]] = {}
    for adapter in adapters:
        (entry,) = adapter.pair.first.entries
        contracted = entry.equation.params["dimension_numbers"][0][1 - entry.weight]
        weight, size = adapter.first.weight, adapter.first.shape[1]
        stack = tuple(f.size for f in weight.stack)
        wide = drawing_dtype(entry.data.dtype)
        start[weight] = jnp.zeros(stack), jnp.zeros((*stack, size), wide), jnp.zeros((*stack, size, size), wide)
        watched.setdefault(entry.data, []).append((weight, contracted, size))

    def watch(about: list[tuple[Any, tuple[int, ...], int]]) -> Watch:
        return lambda value, states: {
            weight: _merged(states[weight], _rows(value, dims, size)) for weight, dims, size in about
        }

    _, states = measure(
        traced.analysis,
        [*map(jnp.asarray, traced.leaves), *map(jnp.asarray, jax.tree.leaves(batch))],
        (),
        lambda used, state, y, u: (state, y),
        start=start,
        watched={atom: watch(about) for atom, about in watched.items()},
    )
    found = []
    for adapter in adapters:
        slices, size, rank = adapter.first.shape
        squares = states[adapter.first.weight][2].reshape(slices, size, size)
        vectors = jnp.linalg.eigh(squares)[1][..., ::-1][..., :rank]
        largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), -2, keepdims=True), -2)
        # An eigenvector has either sign.
        found.append(vectors * jnp.conj(largest) / jnp.abs(largest))
    return found


def _rows(value: Array, dims: tuple[int, ...], size: int) -> Array:
    """The inputs of a product as (samples, features)."""
    return jnp.moveaxis(value, dims, range(-len(dims), 0)).reshape(-1, size)


def _merged(state: tuple[Array, Array, Array], rows: Array) -> tuple[Array, Array, Array]:
    """Count, mean and sum of squared deviations, with more rows (Chan et al.)."""
    count, mean, squares = state
    rows = rows.astype(mean.dtype)
    more = jnp.asarray(rows.shape[0], count.dtype)
    own = jnp.mean(rows, 0)
    centred = rows - own[None]
    step = own - mean
    total = jnp.maximum(count + more, 1)
    squares = squares + centred.conj().T @ centred + jnp.outer(step.conj(), step) * (count * more / total)
    return count + more, mean + step * (more / total), squares
