"""Paths chosen by patterns, as in `fnmatch`; a pattern that matches nothing is a mistake."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def check_patterns(option: str, patterns: Iterable[str], paths: Sequence[str], one: str, many: str) -> None:
    """Raises for the first pattern that is none, or matches no path.

    Args:
      option: what the patterns were given as.
      patterns: the patterns.
      paths: what they may match.
      one, many: what a path stands for, in singular and plural.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{option} takes patterns of paths, as strings, got {pattern!r}; the {many} are {list(paths)}"
            )
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"{option} names {pattern!r}, which matches no {one}; the {many} are {list(paths)}")


def first_match(table: Mapping[str, _T], path: str, default: _T) -> _T:
    """The entry of the first pattern that matches a path."""
    return next((value for pattern, value in table.items() if fnmatch.fnmatchcase(path, pattern)), default)


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns matches a path."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
