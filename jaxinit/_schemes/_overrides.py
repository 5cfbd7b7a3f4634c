"""Overrides of a scheme: other initializers for some leaves, by pattern of their paths or by a function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jaxinit._checks import calling, check_initializer, check_patterns, first_match, shown
from jaxinit._initializers import Initializer
from jaxinit._reading import Layer
from jaxinit._typing import Array

Init: TypeAlias = Callable[..., Array]
Overrides: TypeAlias = Mapping[str, Init] | Callable[[str, Layer | None], Init | None] | None


def check_overrides(overrides: Any, paths: Sequence[str]) -> None:
    """Accept initializers by pattern, a function that chooses them, or None.

    Raises:
      TypeError: it is something else, such as one initializer for all.
      ValueError: a pattern matches no path.
    """
    if isinstance(overrides, Mapping):
        check_patterns("overrides", overrides, paths, "leaf", "leaves")
        for pattern, init in overrides.items():
            if init is not None:
                check_initializer(f"overrides[{pattern!r}]", init)
    elif overrides is not None and (not callable(overrides) or isinstance(overrides, type | Initializer)):
        raise TypeError(
            "overrides must be a mapping from patterns of paths to initializers, such as "
            "{'*kernel': jaxinit.he_normal()}, or a function of (path, layer) that returns an initializer or None, "
            f"got {shown(overrides)}"
        )


def overridden(overrides: Overrides, path: str, layer: Layer | None) -> Init | None:
    """The initializer that overrides a scheme's for this leaf, if there is one."""
    if overrides is None or isinstance(overrides, Mapping):
        return first_match(overrides or {}, path, None)
    with calling("overrides", overrides, "path", "layer"):
        init = overrides(path, layer)
    if init is not None:
        check_initializer(f"what overrides returns for {path!r}", init)
    return init
