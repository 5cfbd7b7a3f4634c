"""The user's options of LSUV: options checked, layers selected, targets assigned, and remarks on them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._checks import (
    calling,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_patterns,
    first_match,
    matches,
    shown,
)
from jaxinit._reading import Layer, Traced, Weight, layers_of, other_factors, view, weight_growth
from jaxinit._typing import Array, Scalar

SKIPPED = "skipped"
"""How the note of a layer begins that is only measured."""

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
    target_patterns: tuple[str, ...] | None

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("auto", "fused", "scan"))
        check_choice("statistic", self.statistic, ("layer", "channel"))
        check_number("tolerance", self.tolerance, positive=True)
        check_integer("max_attempts", self.max_attempts, 1)
        for name in ("orthonormalize", "center", "verify"):
            check_flag(name, getattr(self, name))


def canonical_where(where: Any) -> Callable[[Layer], bool] | tuple[str, ...] | None:
    """A predicate, a tuple of patterns, or None.

    Raises:
      TypeError: it is something else.
    """
    if where is None or (callable(where) and not isinstance(where, type)):
        return where
    if isinstance(where, str):
        return (where,)
    patterns = tuple(where) if isinstance(where, Iterable) and not isinstance(where, Mapping) else (None,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            "where must be a path pattern such as '*/kernel', a sequence of them, or a function of a Layer that "
            f"returns True or False, got {shown(where)}"
        )
    return patterns


def selected_weights(
    traced: Traced, where: Callable[[Layer], bool] | tuple[str, ...] | None
) -> tuple[frozenset[Weight], dict[Weight, str]]:
    """The weights to scale, and a note for each of the others.

    Raises:
      ValueError: `where` chooses none of them.
    """
    weights = traced.analysis.weights
    paths = [traced.paths[weight.leaf] for weight in weights]
    if where is None:
        chosen = [True] * len(weights)
    elif callable(where):
        with calling("where", where, "layer"):
            chosen = [bool(where(row)) for row in layers_of(traced)]
    else:
        check_patterns("where", where, paths, "layer", "layers")
        chosen = [matches(where, path) for path in paths]
    if weights and not any(chosen):
        raise ValueError(f"where chooses no layer, so there is nothing to scale; the layers are {paths}")
    notes = {}
    for weight, wanted in zip(weights, chosen, strict=True):
        reason = weight.refused or ("" if wanted else "not in `where`")
        notes[weight] = f"{SKIPPED}: {reason}" if reason else ""
    return frozenset(u for u, wanted in zip(weights, chosen, strict=True) if wanted and not u.refused), notes


def recurrent_weights(traced: Traced) -> dict[Weight, str]:
    """The weights that meet the state of a recurrence over steps of data, and why such a weight keeps its scale.

    If a loop applies a block again and again to its own output, without new data, that is depth, not a
    recurrence.
    """
    loops = [e for e in ir.equations_of(traced.analysis.program) if isinstance(e, ir.Scan)]
    over_data = [
        loop.body
        for loop in loops
        if any(
            traced.analysis.of(atom).data and not ir.is_key(atom)
            for atom in loop.inputs[loop.num_consts + loop.num_carry :]
        )
    ]
    inside = {equation for body in over_data for equation in body.equations}
    found: dict[Weight, str] = {}
    for cell in traced.structure.cells:
        for use, (start, stop) in cell.state_rows.items():
            if use.equation not in inside:
                continue
            rows = math.prod(use.weight.shape[d] for d in use.geometry.in_dims)
            what = "it meets" if stop - start == rows else f"its rows {start}:{stop} meet"
            reason = f"it keeps its scale, because {what} the state of a recurrence; `where` includes it"
            found.update((component.weight, reason) for component in use.components)
    return found


def canonical_target(target: Any) -> tuple[tuple[str, ...] | None, Any]:
    """The patterns of targets by path, in the user's order, or None; and the number or numbers.

    Raises:
      TypeError: a target is not a number.
      ValueError: a target is not positive and finite.
    """
    if isinstance(target, Mapping):
        return tuple(target), tuple(_deviation(f"target[{at!r}]", number) for at, number in target.items())
    is_array = isinstance(target, jax.Array | np.ndarray) and target.ndim == 1
    if is_array or (isinstance(target, Sequence) and not isinstance(target, str)):
        return None, tuple(_deviation(f"target[{i}]", number) for i, number in enumerate(target))
    return None, _deviation("target", target)


def _deviation(name: str, number: Any) -> Any:
    """A standard deviation, checked; integers of NumPy and JAX as floats."""
    if isinstance(number, jax.Array | np.ndarray) and jnp.issubdtype(number.dtype, np.integer):
        number = number.astype(np.float32)
    if isinstance(number, np.ndarray) and number.ndim == 0:
        number = number.item()
    check_number(name, number, positive=True)
    return number


def weight_targets(traced: Traced, patterns: tuple[str, ...] | None, numbers: Any) -> list[Array]:
    """The target standard deviation of each weight.

    If the output of a layer is the weight of another product, the target is that of this product.
    """
    paths = [traced.paths[weight.leaf] for weight in traced.analysis.weights]
    if patterns is not None:
        check_patterns("target", patterns, paths, "layer", "layers")
        table = dict(zip(patterns, numbers, strict=True))
        numbers = [first_match(table, path, 1.0) for path in paths]
    elif not isinstance(numbers, tuple):
        numbers = [numbers] * len(paths)
    elif len(numbers) != len(paths):
        raise ValueError(
            f"target must be one number or one for each of the {len(paths)} layers, got {len(numbers)}: {paths}"
        )
    growth = [weight_growth(traced, weight) for weight in traced.analysis.weights]
    return [jnp.asarray(number, jnp.float32) / by for number, by in zip(numbers, growth, strict=True)]


def target_remark(weight: Weight) -> str:
    """Why the target of a layer is smaller than the user's."""
    makes = weight.uses[0].makes
    if makes == 1:
        return ""
    return f"its output is a weight of {makes} inputs: it is the product with them that gets the target"


def caveat(traced: Traced, weight: Weight, options: Options) -> str:
    """What a user should know about a weight that is scaled in an unusual way."""
    others = other_factors(weight)
    if others:
        paths = ", ".join(traced.paths[leaf] for leaf in others)
        return f"scaled but not made orthonormal: the weight is its product with {paths}"
    if weight.members:
        return f"one scale for the whole weight, not made orthonormal: it consists of {len(weight.regions)} leaves"
    if any(
        component.origin is None for use in weight.uses for component in use.components if component.weight is weight
    ):
        return "one scale for the whole weight: the program mixes its elements, or computes which slices it picks"
    if options.orthonormalize and view(weight) is None and weight.uses[0].geometry.kind != "embed":
        return "scaled but not made orthonormal: the layers use different matrices, such as overlapping parts"
    return ""
