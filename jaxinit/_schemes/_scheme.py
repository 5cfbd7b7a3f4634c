"""The base of all schemes: a value with one rule for each kind of leaf.

A rule returns an initializer and the reason in words. A subclass overrides the rules that its paper specifies; the
others are the customary ones.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from jaxinit._checks import shown
from jaxinit._initializers import INITIALIZERS, Initializer, constant, lecun_normal, normal, ones, uniform, zeros
from jaxinit._public import Public
from jaxinit._reading import Layer
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._vectors import POSITIONS
from jaxinit._typing import Array


class Rule(NamedTuple):
    """What a leaf is drawn from, and why.

    Attributes:
      init: the initializer.
      reason: in words.
      shared: draws with the same name share a key.
      by_slice: for a stack of layers, the factor of each slice, in the order of loops over it; empty for no factors.
    """

    init: Callable[..., Array]
    reason: str
    shared: str | None = None
    by_slice: tuple[float, ...] = ()

    @property
    def drawn_from(self) -> str:
        """The initializer, and the range of what multiplies slices."""
        if not self.by_slice:
            return repr(self.init)
        return f"{self.init!r} × {min(self.by_slice):.3g} to {max(self.by_slice):.3g} by slice"


SCHEMES: dict[str, "type[Scheme]"] = {}
"""Every scheme by its name."""

_S = TypeVar("_S", bound="type[Scheme]")


def register(kind: _S) -> _S:
    """Registers a scheme under the name of its class, for `initialize` and `study`; use it as a decorator.

    A class that is defined again in the same place, as in a notebook, replaces the old one.

    Raises:
      ValueError: another scheme has this name.

    Example:
      >>> import dataclasses
      >>> import jax, jaxinit
      >>> from jaxinit import schemes
      >>> @schemes.register
      ... @dataclasses.dataclass(frozen=True)
      ... class all_orthogonal(schemes.Scheme):
      ...     def weight(self, matrix, model):
      ...         return schemes.Rule(jaxinit.orthogonal(), "orthogonal")
      >>> params = {"w": jax.ShapeDtypeStruct((3, 2), "float32")}
      >>> batch = jax.ShapeDtypeStruct((5, 3), "float32")
      >>> jaxinit.initialize(jax.random.key(0), params, lambda p, x: x @ p["w"], batch, "all_orthogonal")["w"].shape
      (3, 2)
    """
    known = SCHEMES.get(kind.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"a scheme named {kind.__name__!r} exists already, {known.__module__}.{known.__qualname__}; give this one "
            "another name"
        )
    SCHEMES[kind.__name__] = kind
    return kind


@dataclasses.dataclass(frozen=True)
class Scheme(Public):
    """A whole-model scheme, which compares and prints like the initializers."""

    public_module = "jaxinit.schemes"

    fused: ClassVar[bool] = False
    """Whether a weight whose output the program splits, such as that of queries, keys and values, is one matrix."""

    measures: ClassVar[bool] = False
    """Whether the scheme uses the data: if so, `finish` changes leaves."""

    def __post_init__(self) -> None:
        self._check_fields()

    def _check_fields(self) -> None:
        """Refuses hyperparameters that make no sense; a subclass says which."""

    def to_config(self) -> dict[str, Any]:
        """Turns this scheme into data that JSON can hold; `jaxinit.schemes.from_config` turns it back.

        Returns:
          A dictionary with the name and every hyperparameter.

        Raises:
          TypeError: a hyperparameter is not a number, a string, or a tuple of these.

        Example:
          >>> import jaxinit.schemes
          >>> jaxinit.schemes.gpt2(0.01).to_config()
          {'name': 'gpt2', 'stddev': 0.01}
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": type(self).__name__} | {name: _plain(name, value, list) for name, value in values.items()}

    def check(self, model: Model) -> None:
        """Raises `MisfitError`, which names a layer, if the model does not meet the scheme's assumptions."""

    def prepared(self, model: Model) -> Model:
        """The model as the scheme sees it, for instance with closed branches."""
        return model

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        """The rule for a layer's weight that is a matrix or a kernel, or for a part of one."""
        return Rule(lecun_normal(), "LeCun: variance 1 / fan-in")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        """The rule for a lookup table."""
        fan_in = model.readout_fan_in(layer)
        if fan_in is not None:
            return Rule(normal(fan_in**-0.5), "reads out as well: variance 1 / fan-in of that layer")
        return Rule(normal(1.0), "rows of unit variance")

    def gain(self, layer: Layer, model: Model) -> Rule:
        """The rule for a leaf that multiplies a normalised kernel."""
        return Rule(ones, "the gain of a normalised kernel")

    def vector(self, vector: Vector, model: Model) -> Rule:
        """The rule for leaves of known role that are not the weight of a layer."""
        match vector.role:
            case "position" | "token":
                return Rule(normal(POSITIONS), vector.reason)
            case "embedding":
                return Rule(normal(1.0), f"{vector.reason}: rows of unit variance")
            case "kernel":
                return Rule(lecun_normal(), f"{vector.reason}; in Flax's layout")
            case "adapter" if vector.start is None and vector.layer is not None:
                bound = vector.layer.fan_in**-0.5
                return Rule(uniform(bound, minval=-bound), f"U(±1/sqrt(fan-in)): {vector.reason}")
        return Rule(_filled(vector.start or 0.0), vector.reason)

    def centred(self, layer: Layer, model: Model) -> float | Sequence[float]:
        """By how much more variance a layer gets if its weights sum to zero over the inputs of each unit.

        One number, or one for each slice of a stack.
        """
        return 1.0

    def finish(self, leaves: Sequence[Array], batch: Any, model: Model) -> Mapping[int, tuple[Array, str]]:
        """Leaves that depend on the data, by index, with the reason, once all others are drawn."""
        return {}


def _filled(value: float) -> Initializer:
    return zeros if value == 0 else ones if value == 1 else constant(value)


def _plain(name: str, value: Any, many: Callable[[Any], Any]) -> Any:
    """A value that a configuration may hold, with tuples and lists converted to `many`."""
    if isinstance(value, tuple | list):
        return many(_plain(name, x, many) for x in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration must hold numbers, strings and lists of them, but {name} is {shown(value)}")


def from_config(config: Mapping[str, Any]) -> Scheme:
    """Builds the scheme that `to_config` described. Nothing that a configuration names is imported or evaluated.

    Args:
      config: a dictionary with the scheme's `name` and its hyperparameters; those that are left out have their default
        values.

    Returns:
      A scheme equal to the one that was described.

    Raises:
      TypeError: the configuration, or a value in it, is of the wrong type.
      ValueError: an unknown name or hyperparameter, or a value out of range.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.from_config({"name": "recurrent", "max_timescale": 100})
      recurrent(forget=1.0, max_timescale=100)
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise TypeError(f"a configuration must be a dictionary with the scheme's 'name', a string, got {shown(config)}")
    kind = type(as_scheme(config["name"]))
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [key for key in config if key != "name" and key not in known]
    if unknown:
        raise ValueError(f"{kind.__name__} has the hyperparameters {known}, but not {unknown}")
    return kind(**{key: _plain(key, value, tuple) for key, value in config.items() if key != "name"})


def as_scheme(scheme: Any) -> Scheme:
    """The scheme of this name; a scheme is returned unchanged.

    Raises:
      TypeError: it is neither.
      ValueError: no scheme has that name.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in SCHEMES:
        return SCHEMES[scheme]()
    error = ValueError if isinstance(scheme, str) else TypeError
    raise error(
        f"scheme must be one of {sorted(SCHEMES)} or a value of jaxinit.schemes, got {shown(scheme)}{_remedy(scheme)}"
    )


def _remedy(scheme: Any) -> str:
    """What to do with something that is not a scheme but belongs elsewhere."""
    name = scheme if isinstance(scheme, str) else getattr(scheme, "__name__", None)
    if isinstance(scheme, type) and issubclass(scheme, Scheme):
        return f"; call the class first: {name}()"
    if isinstance(scheme, Initializer) or name in INITIALIZERS:
        init = repr(scheme) if isinstance(scheme, Initializer) else f"{name}()"
        return (
            ", an initializer of single arrays; assign it to leaves by their paths: "
            f"overrides={{'*kernel': jaxinit.{init}}}"
        )
    if callable(scheme) or name in ("lsuv", "rbm_pretrain"):
        return "; a method such as jaxinit.lsuv changes existing parameters, so call it with what initialize returns"
    return ""
