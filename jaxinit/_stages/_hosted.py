"""What NumPy computes when a program runs stage by stage.

A statistic of a layer's output is a handful of passes over an array, and compiling it takes longer than a hundred of
them. So functions that measure are marked here. A marked function is normally an ordinary jitted function; but when a
program runs stage by stage, its calls are recognised by name, and its equations are computed by NumPy. Some have a
version of their own for NumPy, and are not even traced then.

Elsewhere they are jitted too, because layers have few different shapes and JAX traces a jitted function once for each.
In the body of a loop they are not: it is traced once anyway, and the compiler uses less memory for it without calls.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from jaxinit import _program as ir

_P = ParamSpec("_P")
_T = TypeVar("_T")

_numbers = itertools.count()
_names: set[str] = set()
_in_stages = contextvars.ContextVar("in_stages", default=False)
_once = contextvars.ContextVar("once", default=False)


def hosted(*, static_argnums: tuple[int, ...] = ()) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator: the function is jitted under a name of its own; `static_argnums` as those of `jax.jit`."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        name = f"hosted_{next(_numbers)}_{function.__name__}"

        @functools.wraps(function)
        def named(*arguments: Any) -> _T:
            return function(*arguments)  # type: ignore[call-arg]

        named.__name__ = named.__qualname__ = name
        _names.add(name)
        in_one: Callable[_P, _T] = jax.jit(named, static_argnums=static_argnums)

        @functools.wraps(function)
        def call(*arguments: _P.args, **options: _P.kwargs) -> _T:
            return function(*arguments, **options) if _once.get() else in_one(*arguments, **options)

        return call

    return decorate


def is_hosted(name: str) -> bool:
    """Whether a jitted function of this name is marked."""
    return name in _names


def computed(
    by_jax: Callable[..., Sequence[Any]],
    by_numpy: Callable[..., Sequence[Any]],
    arguments: Sequence[Any],
    like: Sequence[Any],
) -> list[Any]:
    """by_jax(*arguments), with results of the shapes and dtypes of `like`; by NumPy when run stage by stage."""
    if not _in_stages.get():
        return list(by_jax(*arguments))
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like)
    computation = ir.Computation(by_jax, by_numpy, shapes)
    found: list[Any] = ir.hosted_p.bind(*arguments, computation=computation)
    return found


def are_made() -> bool:
    """Whether the function being traced will run stage by stage; if so, equal steps should be unrolled, not looped."""
    return _in_stages.get()


@contextlib.contextmanager
def tracing_once() -> Iterator[None]:
    """A context for tracing something once, as the body of a loop: marked functions are not jitted then."""
    token = _once.set(not _in_stages.get())
    try:
        yield
    finally:
        _once.reset(token)


@contextlib.contextmanager
def tracing_for_stages() -> Iterator[None]:
    """A context for tracing a program that will run stage by stage."""
    token = _in_stages.set(True)
    try:
        yield
    finally:
        _in_stages.reset(token)
