"""Starts: the things that a study compares, each turned into a function of a key and some samples.

Names and values of schemes go through `jaxinit.initialize`. An initializer draws every kernel and leaves the
rest to the customary rules. A function of a key is used as it is. A method such as `jaxinit.lsuv`, a function of
(params, apply_fn, batch), changes what another start drew.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax

from jaxinit._initializers import Initializer
from jaxinit._reading import Layer
from jaxinit._schemes import SCHEMES, Scheme, initialize
from jaxinit._typing import Array

Draw: TypeAlias = Callable[[Array, Any], Any]
"""Function of (key, samples) that returns parameters."""

_CUSTOMARY = "flax_default"
"""The scheme for leaves that an initializer does not draw, and for parameters that a method alone changes."""


def named_starts(starts: Any) -> dict[str, Any]:
    """The starts by name; those of a sequence are named after what they are."""
    if isinstance(starts, Mapping):
        named = {str(name): start for name, start in starts.items()}
    elif isinstance(starts, str) or not isinstance(starts, Iterable):
        raise TypeError(f"starts must be a mapping from names to starts, or a sequence of starts, got {starts!r}")
    else:
        listed = list(starts)
        named = {_name(start): start for start in listed}
        if len(named) < len(listed):
            raise ValueError(f"two starts have the same name; choose other names: {{name: start}}, got {listed}")
    if not named:
        raise ValueError("a study needs at least one start, got none")
    return named


def as_draw(name: str, start: Any, params: Any, program: Callable[[Any, Any], Any]) -> Draw:
    """The start as a function of a key and a batch of samples.

    Args:
      name: of the start, for messages.
      start: the user's start.
      params: pytree of arrays or shapes, or a function of a key that returns arrays.
      program: function of (params, batch), read for its layers.

    Raises:
      TypeError: it is not a start.
      ValueError: no scheme has that name.
    """
    if isinstance(start, tuple):
        return _refined(name, start, params, program)
    if isinstance(start, str) and start not in SCHEMES:
        raise ValueError(f"the start {name!r} must be one of the schemes {sorted(SCHEMES)}, got {start!r}")
    if isinstance(start, str | Scheme):
        return lambda key, batch: initialize(key, _template(params, key), program, batch, start)
    if isinstance(start, Initializer):
        kernels = _Kernels(start)
        return lambda key, batch: initialize(key, _template(params, key), program, batch, _CUSTOMARY, overrides=kernels)
    if isinstance(start, type) and issubclass(start, Initializer | Scheme):
        raise TypeError(
            f"the start {name!r} is the class {start.__name__}, not one of its values; call it: {start.__name__}()"
        )
    match _arity(start):
        case 1:
            return lambda key, batch: start(key)
        case 3:
            return _refined(name, (_CUSTOMARY, start), params, program)
    raise TypeError(
        f"the start {name!r} must be a scheme or its name, an initializer, a function of a key, a method such as "
        f"jaxinit.lsuv, a function of (params, apply_fn, batch), or a tuple (start, method), got {start!r}"
    )


class _Kernels:
    """Overrides for `initialize`: one initializer for every kernel, but not for lookup tables, gains and vectors."""

    def __init__(self, init: Initializer) -> None:
        self._init = init

    def __call__(self, path: str, layer: Layer | None) -> Initializer | None:
        if layer is None or layer.path != path or layer.kind == "embed":
            return None
        return self._init if len(layer.shape) - (layer.stacked > 1) >= 2 else None


def _refined(name: str, start: tuple[Any, ...], params: Any, program: Callable[[Any, Any], Any]) -> Draw:
    first, *methods = start or (None,)
    if not methods or any(_arity(method) != 3 for method in methods):
        raise TypeError(
            f"the start {name!r} must be a tuple (start, method, ...), with methods that are functions of "
            f"(params, apply_fn, batch), got {start!r}"
        )
    drawn = as_draw(name, first, params, program)

    def draw(key: Array, batch: Any) -> Any:
        new = drawn(key, batch)
        for method in methods:
            new = method(new, program, batch)
        return new

    return draw


def _arity(function: Any) -> int | None:
    """The number of arguments that a function requires; None if it is not a function."""
    if not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
    if required == 0 and any(p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL) for p in parameters):
        return 1
    return required


def is_function(params: Any) -> bool:
    """Whether `params` is a function of a key; a pytree of arrays may be callable too."""
    leaves = jax.tree.leaves(params)
    return callable(params) and not (leaves and all(hasattr(leaf, "dtype") for leaf in leaves))


def _template(params: Any, key: Array) -> Any:
    """Parameters of which shapes and dtypes matter, and the values of leaves that no start sets."""
    return params(key) if is_function(params) else params


def _name(start: Any) -> str:
    if isinstance(start, str):
        return start
    if isinstance(start, tuple):
        return " + ".join(map(_name, start))
    return getattr(start, "__name__", None) or repr(start)


@contextlib.contextmanager
def naming(start: str) -> Iterator[None]:
    """Adds to an error which start it came from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the start {start!r} of a study")
        raise
