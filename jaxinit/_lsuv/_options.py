"""What the user of LSUV chose: options checked, layers selected, targets assigned."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._layers._jaxpr import is_traced
from jaxinit._layers._table import Layer
from jaxinit._layers._trace import Traced, layers_of
from jaxinit._layers._units import Unit
from jaxinit._patterns import check_patterns, first_match, matches
from jaxinit._typing import Array, Scalar

Where: TypeAlias = Callable[[Layer], bool] | str | Sequence[str] | None
Target: TypeAlias = Scalar | Sequence[Scalar] | Mapping[str, Scalar]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `jaxinit.lsuv` that decide what is compiled."""

    method: str
    orthonormalize: bool
    tolerance: float
    max_attempts: int
    where: Callable[[Layer], bool] | tuple[str, ...] | None
    statistic: str
    center: bool
    verify: bool

    def __post_init__(self) -> None:
        if self.method not in ("auto", "fused", "scan"):
            raise ValueError(f"method must be 'auto', 'fused' or 'scan', got {self.method!r}")
        if self.statistic not in ("layer", "channel"):
            raise ValueError(f"statistic must be 'layer' or 'channel', got {self.statistic!r}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance!r}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, got {self.max_attempts!r}")


def canonical_where(where: Where) -> Callable[[Layer], bool] | tuple[str, ...] | None:
    """A predicate, a tuple of patterns, or None."""
    if where is None or callable(where):
        return where
    return (where,) if isinstance(where, str) else tuple(where)


def selected_units(
    traced: Traced, where: Callable[[Layer], bool] | tuple[str, ...] | None
) -> tuple[frozenset[Unit], dict[Unit, str]]:
    """The units to scale, and a note for each of the others."""
    units = traced.analysis.units
    if where is None:
        chosen = [True] * len(units)
    elif callable(where):
        chosen = [bool(where(row)) for row in layers_of(traced)]
    else:
        paths = [traced.paths[unit.leaf] for unit in units]
        check_patterns("where", where, paths, "layer", "layers")
        chosen = [matches(where, path) for path in paths]
    notes = {}
    for unit, wanted in zip(units, chosen, strict=True):
        notes[unit] = f"skipped: {unit.refused}" if unit.refused else "" if wanted else "skipped: not in `where`"
    return frozenset(u for u, wanted in zip(units, chosen, strict=True) if wanted and not u.refused), notes


def unit_targets(traced: Traced, target: Target) -> list[Array]:
    """The standard deviation wanted of each unit."""
    paths = [traced.paths[unit.leaf] for unit in traced.analysis.units]
    if isinstance(target, Mapping):
        check_patterns("target", target, paths, "layer", "layers")
        numbers = [first_match(target, path, 1.0) for path in paths]
    elif isinstance(target, Sequence) or np.ndim(target) > 0:
        numbers = list(target)  # type: ignore[arg-type]
        if len(numbers) != len(paths):
            raise ValueError(
                f"target must be one number or one for each of the {len(paths)} layers, got {len(numbers)}: {paths}"
            )
    else:
        numbers = [target] * len(paths)
    return [jnp.asarray(number, jnp.float32) for number in numbers]


def check_target(target: Target) -> None:
    """Raises for standard deviations that are not positive."""
    for number in jax.tree.leaves(target):
        if not is_traced(number) and not bool(np.all(np.asarray(number) > 0)):
            raise ValueError(f"a target is a standard deviation and must be positive, got {number}")
