"""What a report covers: the leaves of which nothing is known, and the schemes that a remedy may name."""

import dataclasses

from jaxinit._reading import Layers, Traced
from jaxinit._schemes import MisfitError, looks_linear, roles

_UNKNOWN = ("unknown", "unread")


@dataclasses.dataclass(frozen=True)
class Unread:
    """A leaf of which nothing is measured.

    Attributes:
      path: of the leaf.
      reason: why.
    """

    path: str
    reason: str


def unread(traced: Traced, layers: Layers) -> tuple[Unread, ...]:
    """Leaves that belong to no layer and whose role the program does not show, and layers that are read in part."""
    found = {entry.path: entry.reason for entry in layers.unvisited}
    measured = {leaf for weight in traced.analysis.weights for leaf in weight.regions}
    for leaf, role in enumerate(traced.roles):
        if role.name in _UNKNOWN and leaf not in measured:
            found.setdefault(traced.paths[leaf], role.reason)
    return tuple(Unread(path, reason) for path, reason in found.items())


def fitting(traced: Traced) -> tuple[str, ...]:
    """The schemes whose assumptions the program meets, of those that make any."""
    if not traced.analysis.weights or traced.skips or traced.structure.cells:
        return ()
    try:
        looks_linear().check(roles(traced))
    except MisfitError:
        return ()
    return ("looks_linear",)
