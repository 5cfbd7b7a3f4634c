"""Computing with concrete numbers in the midst of a trace.

A gain is a number even where an initializer is called under `jit` or `vmap`. `jax.ensure_compile_time_eval` does not
help there: under `vmap` it still turns functions with a custom derivative, such as `jax.nn.relu`, into tracers. A
thread starts outside of every trace.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def outside_traces(compute: Callable[[], _T]) -> _T:
    """What `compute` returns or raises, computed now, with JAX's global configuration."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(compute())
        except BaseException as error:  # handed on to the caller below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
