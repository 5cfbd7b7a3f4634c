"""Checks of trees, whose leaves are named by paths, and of path patterns in the syntax of `fnmatch`."""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks._values import check_no_module
from jaxinit._typing import Array

_T = TypeVar("_T")


def check_patterns(option: str, patterns: Iterable[str], paths: Sequence[str], one: str, many: str) -> None:
    """Raises for the first pattern that is not a string, or matches no path.

    Args:
      option: the name of the argument that holds the patterns.
      patterns: the patterns.
      paths: what they may match.
      one, many: what a path belongs to, in singular and plural.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{option} must hold path patterns as strings, got {pattern!r}; the {many} are {list(paths)}"
            )
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"{option} names {pattern!r}, which matches no {one}; the {many} are {list(paths)}")


def first_match(table: Mapping[str, _T], path: str, default: _T) -> _T:
    """The entry of the first pattern that matches a path."""
    return next((value for pattern, value in table.items() if fnmatch.fnmatchcase(path, pattern)), default)


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns matches a path."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_values(caller: str, tree: Any, name: str) -> None:
    """Check that a pytree holds only arrays and numbers.

    Raises:
      TypeError: a leaf is a shape without values, or something else.
    """
    check_no_module(caller, tree, name)
    for at, leaf in _named_leaves(tree, name):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{caller} computes with values, but {at} is a ShapeDtypeStruct, which is only a shape; make arrays of "
                "these shapes, for instance parameters with jaxinit.initialize, or compile for the shapes with "
                "jax.jit(...).lower(...)"
            )
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"{caller} needs {name} made of arrays, but {at} is a {type(leaf).__name__}; "
                "move everything that is not an array out of the tree, for instance with equinox.partition"
            )


def check_finite(caller: str, tree: Any, name: str) -> None:
    """Raises an error that names the first leaf with an infinity or a NaN."""
    for at, leaf in _named_leaves(tree, name):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact) and math.prod(np.shape(leaf)) and not bool(_all_finite(leaf)):
            raise ValueError(
                f"{caller} needs finite {name}, but {at} of shape {np.shape(leaf)} holds an "
                "infinity or a NaN; jax.config.update('jax_debug_nans', True) finds where it comes from"
            )


def _named_leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each leaf with its path below a name."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join([name, *filter(None, [jax.tree_util.keystr(path, simple=True, separator="/")])]), leaf


def _all_finite(x: Any) -> bool:
    if not isinstance(x, jax.Array):
        return bool(np.all(np.isfinite(x)))
    if len(x.sharding.device_set) == 1 and x.is_fully_addressable and next(iter(x.devices())).platform == "cpu":
        return bool(np.all(np.isfinite(np.asarray(x))))  # on the device where it is, with nothing to compile
    return bool(_all_finite_on_device(x))


@jax.jit
def _all_finite_on_device(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x))
