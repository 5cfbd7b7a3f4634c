"""Computing with concrete numbers inside a trace, and compiling functions that are called outside of every trace.

A gain is a number even where an initializer is called under `jit` or `vmap`. `jax.ensure_compile_time_eval` does not
help there: under `vmap` it still turns functions with a custom derivative, such as `jax.nn.relu`, into tracers. A
new thread starts outside of every trace.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

_WITHOUT_TUNING = {"xla_gpu_enable_triton_gemm": False}
"""On an H200 XLA takes two seconds to tune its Triton kernels for a shape of product, and saves microseconds a call."""


def outside_traces(compute: Callable[[], _T]) -> _T:
    """What `compute` returns or raises, computed now, with JAX's global configuration."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(compute())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


_TUNED = {"gpu"}
"""The platforms whose products XLA tunes."""


def jitted_alone(function: _F, **options: Any) -> _F:
    """`jax.jit` for functions that are called once or twice: on a GPU, products are not tuned when it is called alone.

    Inside another program, that program's compiler options apply.
    """
    within, alone = jax.jit(function, **options), jax.jit(function, compiler_options=_WITHOUT_TUNING, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (alone if _is_alone_on_gpu(args, kwargs) else within)(*args, **kwargs)

    return call  # type: ignore[return-value]


def _is_alone_on_gpu(*arguments: Any) -> bool:
    arrays = [x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)]
    try:
        if {device.platform for x in arrays for device in x.devices()} - _TUNED:
            return False
        # Under `jit` a new array is a tracer, whatever the arguments are, and a tracer is on no device.
        return {device.platform for device in jnp.zeros(()).devices()} == _TUNED
    except jax.errors.ConcretizationTypeError:
        return False
