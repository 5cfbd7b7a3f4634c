"""Caches of what is computed once for each user function; entries go when the function and what it closes over go.

An entry is found by the identity of the functions it was made for, and holds them weakly. Objects that compare by
value, such as the numbers and tuples of options, and callables that define equality, are held strongly; of those
entries only the most recently used remain.
"""

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_T = TypeVar("_T")

_forgotten_by_clear: list[Callable[[], None]] = []


def clear_caches() -> None:
    """Drops everything that this package has compiled or computed for functions, and clears JAX's own caches.

    Compiled programs, and numbers computed for activations, are kept from call to call as long as the functions exist
    that they were made for. This function drops them at once, and calls `jax.clear_caches`, which does the same for
    JAX. Whatever is needed again is computed again.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> _ = jaxinit.gain(jnp.tanh)
      >>> jaxinit.clear_caches()
    """
    for forget in _forgotten_by_clear:
        forget()
    jax.clear_caches()


def kept_with_functions(maxsize: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator that keeps results for equal arguments, the last `maxsize` of them.

    Functions and other objects that compare by identity are keyed by identity, and an entry goes when one of them
    does; so a result must not hold them strongly itself: see `weakly`. For arguments that cannot be hashed, such as a
    module's method together with its state, the result is made anew on each call.
    """

    def decorate(make: Callable[_P, _T]) -> Callable[_P, _T]:
        entries: OrderedDict[Any, tuple[list[Any], _T]] = OrderedDict()

        @functools.wraps(make)
        def kept(*arguments: _P.args, **options: _P.kwargs) -> _T:
            if options:
                raise TypeError(f"{make.__name__} takes its arguments by position")
            parts = [_weak_part(x) for x in arguments]
            try:
                key = _Key(tuple(x if part is None else part[0] for part, x in zip(parts, arguments, strict=True)))
            except TypeError:  # unhashable
                return make(*arguments, **options)
            found = entries.get(key)
            if found is None:
                result = make(*arguments, **options)
                references = [weakref.ref(part[1], lambda _: entries.pop(key, None)) for part in parts if part]
                found = entries[key] = references, result
                while len(entries) > maxsize:
                    entries.popitem(last=False)
            elif key in entries:  # unless another thread has dropped it in the meantime
                entries.move_to_end(key)
            return found[1]

        _forgotten_by_clear.append(entries.clear)
        return kept

    return decorate


class _Key:
    """Arguments, hashed once: an entry may be removed when its arguments can no longer be hashed."""

    __slots__ = ("hash", "parts")

    def __init__(self, parts: tuple[Any, ...]):
        self.parts, self.hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self.hash == other.hash and self.parts == other.parts)


def forgotten_by_clear(cached: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function with a cache of `functools`, which `clear_caches` empties too."""
    _forgotten_by_clear.append(cached.cache_clear)  # type: ignore[attr-defined]
    return cached


def forget_with(forget: Callable[[], None]) -> None:
    """Registers this function, so that `clear_caches` calls it too."""
    _forgotten_by_clear.append(forget)


def weakly(x: Any) -> Callable[[], Any]:
    """A function that returns x, and holds it weakly if it compares by identity."""
    part = _weak_part(x)
    if part is None:
        return lambda: x
    reference = weakref.ref(part[1])
    if isinstance(x, types.MethodType):
        function = x.__func__
        return lambda: types.MethodType(function, reference())
    return reference


def _weak_part(x: Any) -> tuple[Any, Any] | None:
    """The key of an object that compares by identity, and the object that the entry lives as long as; else None.

    A bound method is a new object on each access, so the object that it is bound to counts.
    """
    holder, function = (x.__self__, x.__func__) if isinstance(x, types.MethodType) else (x, None)
    kind: Any = type(x)
    # JAX arrays are immutable.
    by_identity = function is not None or kind.__hash__ is object.__hash__ or isinstance(x, jax.Array)
    if not by_identity or not getattr(type(holder), "__weakrefoffset__", 0):
        return None
    return (id(holder), function), holder
