"""The Threefry-2x32 hash, written so that XLA's CPU compiler turns it into one vectorised loop.

The i-th random word of a key is the xor of the two outputs of twenty rounds of add, rotate and xor over the
counter (0, i): the numbers of `jax.random` in partitionable mode, which runs the same rounds as a loop over
arrays in memory. Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit._typing import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)  # from Skein's key schedule: no key makes all three subkeys zero


def threefry2x32(key_words: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The two outputs of the hash for the counters (0, 0), (0, 1), ... in C order over `shape`.

    Args:
        key_words: the key, two 32-bit words, shape (2,).
        shape: fewer than 2³² elements, so that the counter's first word stays 0.
    """
    subkeys = _subkeys(key_words)
    return _rounds(subkeys, jnp.broadcast_to(subkeys[0], shape), _flat_index(shape) + subkeys[1])


def first_words(key_words: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The first random words of a key, of 32 or 64 bits, computed by NumPy: the same rounds, and nothing to compile."""
    subkeys = _subkeys(key_words[:, None])  # NumPy lets arrays overflow, and warns of numbers that do
    counter = np.arange(count, dtype=np.uint32)
    x, y = _rounds(subkeys, np.broadcast_to(subkeys[0], count), counter + subkeys[1])
    return _joined(x, y) if bits == 64 else x ^ y


def folded_in(key_words: np.ndarray, number: int) -> np.ndarray:
    """The words of `jax.random.fold_in(key, number)`, computed by NumPy."""
    subkeys = _subkeys(key_words[:, None])
    x, y = _rounds(subkeys, subkeys[0], np.array([number], np.uint32) + subkeys[1])
    return np.concatenate([x, y])


def _subkeys(key_words: Any) -> tuple[Any, Any, Any]:
    first, second = key_words[0], key_words[1]
    return first, second, first ^ second ^ _PARITY


def _rounds(subkeys: tuple[Any, Any, Any], x: Any, y: Any) -> tuple[Any, Any]:
    """The twenty rounds, on arrays of JAX or NumPy to which the first subkeys have been added."""
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ _rotate_left(y, rotation)
        x = x + subkeys[(group + 1) % 3]
        y = y + (subkeys[(group + 2) % 3] + np.uint32(group + 1))
    return x, y


def floats_from_one_to_two(key_words: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uniform floats of 32 or 64 bits on [1, 2): random mantissa, exponent zero.

    They are computed once and stored, however they are used later. Without that boundary, XLA's CPU fusion
    repeats the hash in each consumer, and a draw that is used twice would be slower than with `jax.random`.
    Everything after them is the program of `jax.random`, and so is compiled and rounded in the same way.
    """

    def draw(key_words: Array) -> Array:
        x, y = threefry2x32(key_words, shape)
        if dtype.itemsize == 8:
            return _with_exponent_zero(_joined(x, y), dtype)
        return _with_exponent_zero(x ^ y, dtype)

    floats: Array = stored(draw, key_words)
    return floats


def stored(function: Callable[[Array], Any], key: Array) -> Any:
    """function(key), for a key or its words, stored once: XLA's CPU fusion does not repeat it in each consumer."""

    def never(key: Array) -> Any:
        # shard_map requires both branches to vary over the same mesh axes, hence a value computed from the key.
        word = jax.random.key_data(key).ravel()[0]
        results = jax.eval_shape(function, key)
        return jax.tree.map(lambda result: jnp.broadcast_to(word.astype(result.dtype), result.shape), results)

    # A branch of a conditional is a separate computation, which fusion does not enter. The barrier hides
    # from the simplifier that the predicate is constant. A barrier around the draw alone would not suffice: the
    # compiler removes barriers just before it fuses.
    always = lax.optimization_barrier(jnp.asarray(True))  # type: ignore[no-untyped-call]
    return lax.cond(always, function, never, key)


def _joined(x: Any, y: Any) -> Any:
    return (x.astype(np.uint64) << np.uint64(32)) | y.astype(np.uint64)


def _with_exponent_zero(word: Array, dtype: np.dtype[Any]) -> Array:
    mantissa = word >> np.array(8 * dtype.itemsize - np.finfo(dtype).nmant, word.dtype)
    return lax.bitcast_convert_type(mantissa | np.array(1, dtype).view(word.dtype), dtype)


def _flat_index(shape: tuple[int, ...]) -> Array:
    # A sum over the axes rather than a reshaped range: every device of a mesh can count its own part.
    index = jnp.zeros(shape, np.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        index = index + lax.broadcasted_iota(np.uint32, shape, axis) * stride
    return index


def _rotate_left(word: Any, distance: int) -> Any:
    return (word << np.uint32(distance)) | (word >> np.uint32(32 - distance))
