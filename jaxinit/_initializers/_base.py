"""The base of all initializers: a frozen dataclass that is called with (key, shape, dtype).

Everything that all of them share is here: keys, shapes, dtypes, shardings, empty arrays,
equality, printing and pickling. A subclass names its hyperparameters, checks them, and draws.
"""

import abc
import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import (
    canonical_axis,
    canonical_dtype,
    canonical_shape,
    drawing_dtype,
    output_dtype,
    round_to,
    sharded,
)
from jaxinit._checks import calling, check_key, is_raw_key, is_typed_key, shown
from jaxinit._public import Public
from jaxinit._typing import Array, DTypeLike, OutSharding, Shape

_I = TypeVar("_I", bound="type[Initializer]")

INITIALIZERS: dict[str, "type[Initializer]"] = {}
"""Every initializer of this package, by its name in configurations."""

DEEPEST = 64
"""How deeply configurations may nest."""


@dataclass_transform(frozen_default=True, eq_default=False)
def initializer(cls: _I) -> _I:
    """Turns a subclass of `Initializer` into a frozen dataclass, and lets configurations name it."""
    made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    INITIALIZERS[made.__name__] = made
    return cls


class Initializer(Public, abc.ABC):
    """A weight initializer: a value that draws an array from a key, a shape and a dtype.

    Two initializers with equal hyperparameters compare equal, hash equal and print as the call that makes
    them, so a Flax module that holds one is a stable static argument of `jax.jit`. They pickle, and go
    through `to_config` and `from_config`. A hyperparameter may be a JAX scalar, also a traced one, but then the
    initializer cannot be hashed.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> init = jaxinit.normal(0.1)
      >>> init
      normal(stddev=0.1)
      >>> init == jaxinit.normal(stddev=0.1)
      True
      >>> init(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """

    public_module = "jaxinit"

    random: ClassVar[bool] = True
    """Whether the draw depends on the key; if not, any value may be passed as the key."""

    allowed: ClassVar[Literal["any", "inexact", "real", "complex"]] = "inexact"
    """Which dtypes make sense: any; floating and complex; or only one of the two."""

    dtype: DTypeLike
    """Default dtype of the result; a field of every subclass, in the same place as in JAX."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Refuses arguments that can only be meant for an initializer that has already been made."""
        if _is_draw(arguments, options):
            fields = getattr(cls, "__dataclass_fields__", {}).values()
            made = f"{cls.__name__}({'...' if any(f.default is dataclasses.MISSING for f in fields) else ''})"
            raise TypeError(
                f"{cls.__name__} makes an initializer, but was called as if it were one, with a key or a shape; call "
                f"it first, as in {made}(key, shape), or kernel_init={made}"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _canonical_field(field.name, value))
        self._check()

    def _check(self) -> None:
        """Refuses hyperparameters that make no sense; a subclass says which."""

    @abc.abstractmethod
    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The array, for a checked key, a non-empty shape, and a dtype of at least 32 bits if floating."""

    def __call__(self, key: Array, shape: Shape, dtype: DTypeLike = None, out_sharding: OutSharding = None) -> Array:
        """Draws an array.

        Args:
          key: a typed key (`jax.random.key`) or a raw one (`jax.random.PRNGKey`).
          shape: sizes of the axes, as a tuple or list of integers.
          dtype: of the result; by default the initializer's own, or else JAX's default float.
            Below 32 bits the array is drawn in float32 and rounded.
          out_sharding: a `NamedSharding`, or a `PartitionSpec` under `jax.set_mesh`.

        Returns:
          An array of this shape and dtype.

        Raises:
          TypeError: the key is not a key, the shape is not a sequence of integers, or the dtype does not fit.
          ValueError: the shape has negative entries, or too few dimensions for this initializer.
        """
        shape = canonical_shape(shape)
        result_dtype = output_dtype(self, self.dtype if dtype is None else dtype, self.allowed)
        if self.random:
            key = check_key(self, key)
        if out_sharding is None:
            return self._rounded_draw(key, shape, result_dtype)
        draw = functools.partial(self._rounded_draw, shape=shape, dtype=result_dtype)
        return sharded(draw, key if self.random else None, out_sharding)

    def _rounded_draw(self, key: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        return round_to(self._draw(key, shape, drawing_dtype(dtype)), dtype)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(mine, theirs) for mine, theirs in zip(_values(self), _values(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(self, value) for value in _values(self))))

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={_shown(value)}"
            for field, value in zip(dataclasses.fields(self), _values(self), strict=True)  # type: ignore[arg-type]
            if field.default is dataclasses.MISSING or not _same(value, field.default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_config(self) -> dict[str, Any]:
        """Turns this initializer into data that JSON can hold; `jaxinit.from_config` turns it back.

        Returns:
          A dictionary with the name and every hyperparameter.

        Raises:
          TypeError: a hyperparameter is not plain data: a function without a name, or a traced array.

        Examples:
          >>> import jaxinit
          >>> config = jaxinit.scaled(jaxinit.he_normal(), 0.5).to_config()
          >>> config["name"], config["init"]["name"], config["factor"]
          ('scaled', 'he_normal', 0.5)
          >>> jaxinit.from_config(config)
          scaled(init=he_normal(), factor=0.5)
        """
        return _encoded(self)


def draw_with(init: Callable[..., Array], key: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A draw for a combinator, in full precision: not rounded if `init` is one of this package's."""
    return init._draw(key, shape, dtype) if isinstance(init, Initializer) else draw_from(init, key, shape, dtype)


def draw_from(init: Callable[..., Array], key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A draw from an initializer of any origin.

    Raises:
      TypeError: it returns a function, so it makes initializers and is not one itself; or its arguments differ.
      ValueError: it returns an array of another shape.
    """
    if isinstance(init, Initializer):
        return init(key, shape, dtype)
    with calling("an initializer", init, "key", "shape", "dtype"):
        drawn = init(key, shape, dtype)
    if callable(drawn):
        raise TypeError(f"{shown(init)} returned a function, so it is not an initializer but makes one; call it first")
    found = getattr(drawn, "shape", () if isinstance(drawn, numbers.Number) else shape)
    if tuple(found) != tuple(shape):
        raise ValueError(
            f"an initializer must return an array of the shape that it is given, {shape}, but {shown(init)} returned "
            f"one of shape {tuple(found)}"
        )
    return drawn


def _is_draw(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether these are the arguments of a draw: hyperparameters are not keys."""
    if any(map(is_typed_key, arguments)) or not options.keys().isdisjoint(("key", "shape")):
        return True
    # The integers of a raw key may be the values of a constant, but then the next argument is not a shape.
    return len(arguments) > 1 and is_raw_key(arguments[0]) and isinstance(arguments[1], (tuple, list))


def _values(init: Initializer) -> list[Any]:
    return [getattr(init, field.name) for field in dataclasses.fields(init)]  # type: ignore[arg-type]


def _canonical_field(name: str, value: Any) -> Any:
    """A canonical form of each value, so that equal hyperparameters compare equal."""
    if name == "dtype":
        return canonical_dtype(value)
    if name.endswith("axis"):
        return canonical_axis(name, value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, list):
        return tuple(value)
    return value


def _same(mine: Any, theirs: Any) -> bool:
    if mine is theirs:
        return True
    if mine is None or theirs is None:
        return False  # NumPy's float64 dtype claims to equal None
    if isinstance(mine, (np.ndarray, jax.Array)) or isinstance(theirs, (np.ndarray, jax.Array)):
        try:
            mine, theirs = np.asarray(mine), np.asarray(theirs)
        except jax.errors.TracerArrayConversionError:
            return False  # whether two traced numbers are equal is known only when the program runs
        return bool(mine.shape == theirs.shape and np.array_equal(mine, theirs))
    return bool(mine == theirs)


def _hashable(init: Initializer, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, tuple(value.reshape(-1).tolist())
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{type(init).__name__} holds a JAX array as a hyperparameter and so cannot be hashed; pass a "
            "Python number or a NumPy array if it is used as a static argument or a dictionary key"
        )
    return value


def _shown(value: Any) -> str:
    return repr(value.name) if isinstance(value, np.dtype) else repr(value)


def _encoded(value: Any, depth: int = 0) -> Any:
    """A hyperparameter, or a whole initializer, as data.

    Raises:
      TypeError: it is not plain data: a function without a name, or a traced array.
      ValueError: it nests more deeply than `from_config` reads.
    """
    if depth > DEEPEST:
        raise ValueError(f"a configuration may nest at most {DEEPEST} initializers")
    if isinstance(value, Initializer):
        fields = {f.name: _encoded(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
        return {"name": type(value).__name__, **fields}
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple):
        return [_encoded(entry, depth + 1) for entry in value]
    if isinstance(value, (np.ndarray, jax.Array)):
        try:
            array = np.asarray(value)
        except jax.errors.TracerArrayConversionError:
            raise TypeError(f"a traced array has no value to put into a configuration: {value}") from None
        if array.ndim == 0 and array.dtype.kind in "biuf":
            return array.item()
        if array.dtype.kind in "biuf":
            return {"array": array.tolist(), "dtype": array.dtype.name}
    raise TypeError(
        f"a configuration must hold numbers, names and this package's initializers, not {value!r}; "
        "use a Python number or a named activation, or pickle the initializer"
    )
