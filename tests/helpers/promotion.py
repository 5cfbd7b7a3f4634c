"""Allows a model's own code to promote ranks, as published code does, while the library must not."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import jaxinit

_JAX, _OURS = (f"{Path(str(module.__file__)).parent}{os.sep}" for module in (jax, jaxinit))


@contextlib.contextmanager
def of_models_alone() -> Iterator[None]:
    """A context in which models may promote ranks; if code of jaxinit does, it is an error."""
    with jax.numpy_rank_promotion("warn"), warnings.catch_warnings():
        warnings.filterwarnings("always", message="Following NumPy automatic rank promotion")
        warnings.showwarning = _raise_if_ours
        yield


def _raise_if_ours(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
    """Raises an error instead of showing a warning, if it was the library's code that called JAX."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename.startswith(_JAX) or frame.f_globals["__name__"] == "warnings"):
        frame = frame.f_back  # type: ignore[assignment]
    if frame and frame.f_code.co_filename.startswith(_OURS):
        raise AssertionError(f"{frame.f_code.co_filename}:{frame.f_lineno}: {message}")
