"""Initializers as data and back: dictionaries of names and numbers that JSON can hold.

Decoding looks the name up among this package's initializers and passes it plain values only. Nothing that a
configuration names is imported, evaluated or called, so the worst that an untrusted one can do is raise an error.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinit._initializers._base import DEEPEST, INITIALIZERS, Initializer

_ARRAY_KEYS = {"array", "dtype"}
_SCALARS = (bool, int, float, str, type(None))


def from_config(config: Mapping[str, Any]) -> Initializer:
    """Builds the initializer that `to_config` described.

    Args:
      config: a dictionary with the initializer's `name` and its hyperparameters; those that are left out have
        their default values.

    Returns:
      An initializer equal to the one that was described.

    Raises:
      TypeError: the configuration, or a value in it, is of the wrong type.
      ValueError: an unknown name or hyperparameter, a value out of range, or too deep a nesting.

    Examples:
      >>> import jaxinit
      >>> jaxinit.from_config({"name": "normal", "stddev": 0.02})
      normal(stddev=0.02)
    """
    return _decode_initializer(config, depth=0)


def _decode_initializer(config: Any, depth: int) -> Initializer:
    if not isinstance(config, Mapping):
        raise TypeError(f"a configuration must be a dictionary with a 'name', got {config!r}")
    if depth > DEEPEST:
        raise ValueError(f"a configuration may nest at most {DEEPEST} initializers")
    name = config.get("name")
    if not isinstance(name, str):
        raise TypeError(f"a configuration must have the initializer's 'name', a string, got {name!r}")
    cls = INITIALIZERS.get(name)
    if cls is None and name == "nnx_with_partitioning":
        raise ValueError(f"{name!r} is available once jaxinit.nnx is imported; import it first")
    if cls is None:
        near = difflib.get_close_matches(name, INITIALIZERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no initializer is called {name!r}{hint}")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in config if key != "name" and key not in known]
    if unknown:
        raise ValueError(f"{name} has the hyperparameters {known}, but not {unknown}")
    values = {key: _decode(value, depth) for key, value in config.items() if key != "name"}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"the configuration of {name} lacks {missing}")
    return cls(**values)


def _decode(value: Any, depth: int) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, (list, tuple)):
        if depth > DEEPEST:
            raise ValueError(f"a configuration may nest at most {DEEPEST} lists")
        return tuple(_decode(entry, depth + 1) for entry in value)
    if isinstance(value, Mapping) and "name" in value:
        return _decode_initializer(value, depth + 1)
    if isinstance(value, Mapping) and set(value) == _ARRAY_KEYS:
        return _decode_array(value)
    raise TypeError(f"a configuration must hold numbers, names and lists of them, got {value!r}")


def _decode_array(value: Mapping[str, Any]) -> np.ndarray:
    message = f"an array in a configuration must be nested lists of numbers and the name of a dtype, got {value!r}"
    if not isinstance(value["dtype"], str):
        raise TypeError(message)
    try:
        dtype = np.dtype(value["dtype"])
        array = np.array(value["array"], dtype=dtype)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(message) from None
    if dtype.kind not in "biuf":
        raise TypeError(message)
    return array
