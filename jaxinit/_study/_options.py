"""The user's options of a study, checked: numbers, samples, optimizer, loss and key."""

import numbers
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_integer, check_key, check_number
from jaxinit._typing import Array


def seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of the seeds."""
    if isinstance(seeds, jax.Array):
        seeds = np.asarray(seeds)
    if isinstance(seeds, Sequence | np.ndarray) and not isinstance(seeds, str) and np.ndim(seeds) == 1:
        for seed in seeds:
            check_integer("a seed", seed, 0)
        listed = tuple(int(seed) for seed in seeds)
        if not listed or len(set(listed)) < len(listed) or max(listed) >= 2**32:
            raise ValueError(f"seeds must be one or more different integers below 2**32, got {listed}")
        return listed
    if isinstance(seeds, bool) or not isinstance(seeds, numbers.Integral):
        raise TypeError(
            f"seeds must be a number of seeds, or a sequence of different non-negative integers, got {seeds!r}"
        )
    check_integer("seeds", seeds, 1)
    return tuple(range(int(seeds)))


def rate_numbers(learning_rates: Sequence[float]) -> tuple[float, ...]:
    """The learning rates, checked."""
    listed = isinstance(learning_rates, (Sequence, np.ndarray, jax.Array)) and not isinstance(learning_rates, str)
    if not listed or np.size(learning_rates) == 0:
        raise TypeError(f"learning_rates must be a sequence of at least one number, got {learning_rates!r}")
    for rate in learning_rates:
        check_number("a learning rate", rate, nonnegative=True)
    rates = tuple(float(rate) for rate in learning_rates)
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


def check_functions(loss_fn: Any, apply_fn: Any, metrics_fn: Any) -> None:
    """Raises for arguments that are not functions."""
    expected = {
        "loss_fn": (loss_fn, "a function of (params, batch) that returns the mean loss of the batch"),
        "apply_fn": (apply_fn, "a function of (params, batch), for a Flax module module.apply, or None for loss_fn"),
        "metrics_fn": (
            metrics_fn,
            "a function of (params, test_data) that returns a number or a dictionary of arrays, or None; metric= says "
            "which of them to compare by",
        ),
    }
    for name, (function, what) in expected.items():
        if not callable(function) and (function is not None or name == "loss_fn"):
            raise TypeError(f"{name} must be {what}, got {function!r}")


def check_arrays(name: str, tree: Any) -> None:
    """Raises for leaves that are not numbers."""
    for at, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSUMm":
            path = "/".join([name, *filter(None, [jax.tree_util.keystr(at, simple=True, separator="/")])])
            raise TypeError(f"{name} must be made of arrays of numbers, but {path} is {leaf!r:.80}")


def check_params(params: Any) -> None:
    """Raises if it is neither a pytree of arrays or shapes nor a function of a key."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    strange = [
        (jax.tree_util.keystr(at, simple=True, separator="/"), leaf)
        for at, leaf in leaves
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) and not isinstance(leaf, complex | float)
    ]
    if not callable(params) and (strange or not leaves):
        got = f"{strange[0][1]!r:.80} at {strange[0][0]!r}" if strange and strange[0][0] else f"{params!r:.80}"
        raise TypeError(
            "params must be a pytree of arrays or of jax.ShapeDtypeStructs, such as jax.eval_shape(model.init, key, x) "
            f"returns, or the function of a key that makes it, got {got}"
        )


def device_list(devices: Any) -> list[Any]:
    """The devices, by default those of all processes."""
    if devices is None:
        return jax.devices()
    listed = list(devices) if isinstance(devices, Sequence | np.ndarray) and not isinstance(devices, str) else []
    if not listed or not all(isinstance(device, jax.Device) for device in listed):
        raise TypeError(
            f"devices must be a sequence of at least one device, such as jax.devices()[:1], or None for all, got "
            f"{devices!r}"
        )
    return listed


def check_path(path: Any) -> None:
    """Raises if it does not name a file."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be the name of a file, as a string or a pathlib.Path, or None, got {path!r}")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"path must name a file, but {path} is a directory; give it a name, such as {path}/study.npz")


def check_optimizer(optimizer: Any, rate: float) -> None:
    """Raises if it is not a function of a learning rate, or does not return a transformation."""
    if not callable(optimizer):
        hint = "; it is called with each of learning_rates" if hasattr(optimizer, "update") else ""
        raise TypeError(
            "optimizer must be a function of a learning rate, such as optax.adam or "
            f"lambda rate: optax.sgd(rate, momentum=0.9), got {type(optimizer).__name__}{hint}"
        )
    made = optimizer(rate)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(
            "optimizer must return an Optax transformation, as optax.adam does, but for the learning rate "
            f"{rate} it returned {made!r:.80}"
        )


def check_loss(loss: Any) -> None:
    """Raises if the loss is not a scalar, given its shape."""
    if not hasattr(loss, "shape") or loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"loss_fn must return one floating-point number, the mean loss of a batch, got {loss}")


def typed_key(key: Any, chunk: int | None) -> Array:
    """A typed key; warns if its draws depend on the other seeds that run beside it."""
    key = jax.random.key(0) if key is None else check_key("study", key, "as key=")
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
