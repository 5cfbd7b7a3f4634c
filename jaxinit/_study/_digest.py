"""Short names for data and programs, by which a study on disk is known to be the same study.

Another model, loss, optimizer or set of metrics compiles from another program, so the text of the program tells them
apart, whatever the functions are called; and so does another version of JAX.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._study._programs import Inputs, segment
from jaxinit._study._starts import Draw
from jaxinit._study._train import SEED, Training
from jaxinit._typing import Array


def data_digest(*trees: Any) -> str:
    """A short name for the contents of arrays."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(trees):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def program_digest(training: Training, draw: Draw, inputs: Inputs, steps: int) -> str:
    """A short name for the program that draws and trains one seed: another model, loss or optimizer has another."""

    def one(seed: Array, key: Array, rates: Array, data: Any, test_data: Any) -> Any:
        params = training.draw(draw, seed, key, data)
        state = training.begin(params, rates)
        state, losses = training.advance(state, seed, key, rates, data, jnp.int32(0), segment(steps))
        return losses, training.measure(params, test_data), training.finish(state, test_data)

    text = jax.jit(one).lower(SEED, inputs.key, inputs.rates, inputs.data, inputs.test_data).as_text()
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
