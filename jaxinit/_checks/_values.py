"""Checks of hyperparameters, keys and calls of a user's functions: what was expected and received, and what to do."""

import contextlib
import inspect
import numbers
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._typing import Array


def check_number(
    name: str, value: Any, *, nonnegative: bool = False, positive: bool = False, minimum: float | None = None
) -> None:
    """Check that a value is a finite real number, or a real JAX scalar, whose value a trace may hide.

    Raises:
      TypeError: it is not a real number.
      ValueError: it is NaN, infinite, or too small.
    """
    if isinstance(value, jax.Array):
        if value.shape != () or not jnp.issubdtype(value.dtype, np.floating):
            raise TypeError(f"{name} must be a real number or a floating JAX scalar, got {shown(value)}")
        try:
            value = float(value)
        except jax.errors.ConcretizationTypeError:
            return
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    if minimum is not None:
        fits, kind = value >= minimum, f"a finite number, {minimum:g} or more"
    elif positive:
        fits, kind = value > 0, "a positive finite number"
    elif nonnegative:
        fits, kind = value >= 0, "a finite number, zero or more"
    else:
        fits, kind = True, "a finite number"
    # Python integers too large for a float compare exactly with infinity, and cannot be the scale of a weight either.
    if not (fits and abs(value) <= sys.float_info.max):
        raise ValueError(f"{name} must be {kind}, got {value}")


def check_ordered(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Check that the first of two numbers is the smaller one, unless a trace hides them.

    Raises:
      ValueError: the first is not below the second.
    """
    try:
        ordered = bool(low < high)
    except jax.errors.ConcretizationTypeError:
        return
    if not ordered:
        raise ValueError(f"{low_name} must be below {high_name}, got {low_name}={low} and {high_name}={high}")


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Check that a value is an integer of at least `minimum`.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {value}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that a value is one of some words.

    Raises:
      ValueError: it is not one of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Check that a value is True or False.

    Raises:
      TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_rank(caller: object, shape: tuple[int, ...], minimum: int, meaning: str) -> None:
    """Check that a shape has enough dimensions.

    Raises:
      ValueError: it has too few dimensions for the meaning of its axes.
    """
    if len(shape) < minimum:
        raise ValueError(f"{caller} fills shapes {meaning} of {minimum} dimensions or more, got {shape}")


def check_initializer(name: str, value: Any) -> None:
    """Check that a value may be an initializer, a function of (key, shape, dtype), and not a class to be called first.

    Raises:
      TypeError: it is a class, or not a function.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an initializer such as jaxinit.he_normal(), got the class {value.__name__}; "
            f"call it first: {value.__name__}()"
        )
    if not callable(value):
        is_value = isinstance(value, (numbers.Number, jax.Array, np.ndarray))
        remedy = "; for a fixed value pass jaxinit.constant(value)" if is_value else ""
        raise TypeError(f"{name} must be an initializer such as jaxinit.he_normal(), got {shown(value)}{remedy}")


def is_module(value: Any, library: str) -> bool:
    """Whether it is a module of "flax.linen" or "flax.nnx", neither of which is imported for this check."""
    return any(base.__name__ == "Module" and base.__module__.startswith(library) for base in type(value).__mro__)


def check_no_module(caller: str, value: Any, name: str) -> None:
    """Check that an argument is not a Flax module, where a function expects (params, apply_fn, batch).

    Raises:
      TypeError: it is a Flax module.
    """
    for library, remedy in (
        ("flax.linen", "pass (params, module.apply, batch), or see jaxinit.linen for functions that take the module"),
        ("flax.nnx", "see jaxinit.nnx for functions that take the model itself, or nnx.split it"),
    ):
        if is_module(value, library):
            raise TypeError(f"{caller} needs {name}, got a {type(value).__name__} module; {remedy}")


def shown(value: Any) -> str:
    """A value in one line of a message: arrays by dtype and shape, anything else in at most 80 characters."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype}{list(value.shape)}"
    leaves = jax.tree.leaves(value)
    if any(leaf is not value and hasattr(leaf, "dtype") for leaf in leaves):
        return f"a {type(value).__name__} of arrays"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_typed_key(x: Any) -> bool:
    """Whether it is a typed key (`jax.random.key`), or an array of them."""
    return isinstance(x, jax.Array) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def is_raw_key(x: Any) -> bool:
    """Whether it may be a raw key (`jax.random.PRNGKey`), that is, the integers of one."""
    return isinstance(x, (jax.Array, np.ndarray)) and x.dtype == np.uint32 and x.ndim == 1 and x.size > 1


def check_key(caller: object, key: Any, place: str = "as its first argument") -> Array:
    """Returns `key` if it is a single typed or raw key.

    Raises:
      TypeError: it is something else: a seed, an array of keys, None.
    """
    if is_typed_key(key):
        if key.ndim == 0:
            return key
        raise TypeError(
            f"{caller} takes one key, got an array of keys of shape {key.shape}; use jax.vmap over the keys"
        )
    if is_raw_key(key):
        return jnp.asarray(key)
    raise TypeError(f"{caller} takes a key such as jax.random.key(0) {place}, got {shown(key)}")


@contextlib.contextmanager
def calling(name: str, function: Callable[..., Any], *arguments: str) -> Iterator[None]:
    """Adds to an error how a function was called. The signature of the function is consulted only after a failure:
    when a decorator has changed it, the function may accept more than it says.

    Args:
      name: the name of the argument that the function was passed as.
      function: the function.
      arguments: the names of its arguments.

    Raises:
      TypeError: the function does not accept this number of arguments.
    """
    try:
        yield
    except Exception as error:
        listed = ", ".join(arguments)
        if isinstance(error, TypeError) and not _takes(function, len(arguments)):
            own = getattr(function, "__name__", type(function).__name__)
            raise TypeError(
                f"{name} must be a function of ({listed}), got {own}{inspect.signature(function)!s:.80}; wrap it: "
                f"lambda {listed}: ..."
            ) from error
        error.add_note(f"in the call {name}({listed}), with {shown(function)}")
        raise


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with this number of arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, without a signature
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
