"""What the user of a study chose: numbers, samples, optimizer, loss and key, checked."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_integer, check_number
from jaxinit._keys import check_key
from jaxinit._typing import Array


def seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of the seeds."""
    if isinstance(seeds, Sequence | np.ndarray):
        for seed in seeds:
            check_integer("a seed", seed, 0)
        numbers = tuple(int(seed) for seed in seeds)
        if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= 2**32:
            raise ValueError(f"seeds must be one or more different integers below 2**32, got {numbers}")
        return numbers
    check_integer("seeds", seeds, 1)
    return tuple(range(seeds))


def rate_numbers(learning_rates: Sequence[float]) -> tuple[float, ...]:
    """The learning rates, checked."""
    listed = isinstance(learning_rates, (Sequence, np.ndarray, jax.Array)) and not isinstance(learning_rates, str)
    if not listed or np.size(learning_rates) == 0:
        raise TypeError(f"learning_rates must be a sequence of one number or more, got {learning_rates!r}")
    rates = tuple(float(rate) for rate in learning_rates)
    for rate in rates:
        check_number("a learning rate", rate, nonnegative=True)
    if len(set(rates)) < len(rates):
        raise ValueError(f"learning_rates must be different from one another, got {rates}")
    return rates


def sample_count(data: Any) -> int:
    """The number of samples."""
    sizes = {
        jax.tree_util.keystr(at, simple=True, separator="/") or "data": np.shape(leaf)
        for at, leaf in jax.tree_util.tree_flatten_with_path(data)[0]
    }
    counts = {shape[0] if shape else None for shape in sizes.values()}
    if len(counts) != 1 or None in counts or 0 in counts:
        raise ValueError(f"data must be arrays with equally many samples along their first axis, got shapes {sizes}")
    return int(counts.pop())  # type: ignore[arg-type]


def check_optimizer(optimizer: Any) -> None:
    """Raises for what is no function of a learning rate."""
    if not callable(optimizer):
        hint = "; it is called with each of learning_rates" if hasattr(optimizer, "update") else ""
        raise TypeError(
            "optimizer must be a function of a learning rate, such as optax.adam or "
            f"lambda rate: optax.sgd(rate, momentum=0.9), got {type(optimizer).__name__}{hint}"
        )


def check_loss(loss: Any) -> None:
    """Raises for the shape of a loss that is no scalar."""
    if not hasattr(loss, "shape") or loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"loss_fn must return one floating-point number, the mean loss of a batch, got {loss}")


def typed_key(key: Any, chunk: int | None) -> Array:
    """A typed key; warns of one whose draws depend on what runs beside."""
    key = jax.random.key(0) if key is None else check_key("study", key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    name = str(jax.random.key_impl(key))
    if "rbg" in name and chunk != 1:
        warnings.warn(
            f"keys of the implementation {name!r} draw other numbers under vmap than alone, so the numbers of a seed "
            "depend on the seeds that run beside it; pass key=jax.random.key(0, impl='threefry2x32'), or chunk=1",
            UserWarning,
            stacklevel=3,
        )
    return key
