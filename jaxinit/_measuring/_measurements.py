"""What `diagnose` measures, before anything is judged: columns with one entry per row; and what was not read."""

import dataclasses

import jax

from jaxinit._measuring._rows import Row
from jaxinit._reading import Layers, Traced
from jaxinit._schemes import MisfitError, looks_linear, roles
from jaxinit._typing import Array

_UNKNOWN = ("unknown", "unread")


@dataclasses.dataclass(frozen=True)
class Unread:
    """A leaf that could not be measured.

    Attributes:
      path: of the leaf.
      reason: why.
    """

    path: str
    reason: str


def unread(traced: Traced, layers: Layers) -> tuple[Unread, ...]:
    """Leaves that belong to no layer and whose role the program does not show, and layers that are partly read."""
    found = {entry.path: entry.reason for entry in layers.unvisited}
    measured = {leaf for weight in traced.analysis.weights for leaf in weight.regions}
    for leaf, role in enumerate(traced.roles):
        if role.name in _UNKNOWN and leaf not in measured:
            found.setdefault(traced.paths[leaf], role.reason)
    return tuple(Unread(path, reason) for path, reason in found.items())


def fitting(traced: Traced) -> tuple[str, ...]:
    """The schemes that make assumptions which the program meets."""
    if not traced.analysis.weights or traced.skips or traced.structure.cells:
        return ()
    try:
        looks_linear().check(roles(traced))
    except MisfitError:
        return ()
    return ("looks_linear",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measurements:
    """The arrays of a `DiagnoseReport`, whose docstring explains each of them."""

    rows: tuple[Row, ...] = dataclasses.field(metadata={"static": True})
    unread: tuple[Unread, ...] = dataclasses.field(metadata={"static": True})
    fitting: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    pre_mean: Array
    pre_std: Array
    post_mean: Array
    post_std: Array
    dead: Array
    surely_dead: Array
    saturated: Array
    similarity: Array
    effective_rank: Array
    gradient_std: Array | None
    gradient_samples: Array | None
    gradient_norm: Array | None
    update_ratio: Array | None
    weight_norm: Array
    attention_peak: Array
    input_size: Array
    product_size: Array
    branch_share: Array
    leaning: Array
    equal_units: Array | None
    finite_output: Array
    jacobian_mean_square: Array | None
    jacobian_condition: Array | None
