"""Calls of functions that the user gave: what goes wrong in one says how the function was called."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from jaxinit._checks._values import shown


@contextlib.contextmanager
def calling(name: str, function: Callable[..., Any], *arguments: str) -> Iterator[None]:
    """Adds to an error how a function was called. The function is judged by its signature after a failure only: what
    a decorator left of the signature may say less than the function can do.

    Args:
      name: what the user gave the function as.
      function: the function.
      arguments: what each of its arguments stands for.

    Raises:
      TypeError: the function does not take this number of arguments.
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
    except (TypeError, ValueError):  # written in C, and silent about its arguments
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
