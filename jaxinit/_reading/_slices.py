"""Leaves whose rows, or other slices, have roles of their own: a gain above a bias, biases and scales in one array.

Each equation in which data meets such a leaf uses a part of it. If the parts share no element, each has the role
that its own readers show.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxinit import _program as ir
from jaxinit._reading._evidence import Evidence, LeafRole, Reader
from jaxinit._reading._origin import overlap
from jaxinit._reading._products import depends_on

_Region: TypeAlias = tuple[tuple[int, int], ...]


def roles_of_slices(
    evidence: Evidence, leaf: int, readers: Sequence[Reader], role_of: Callable[[Reader], LeafRole]
) -> tuple[tuple[_Region, LeafRole], ...]:
    """The regions of a leaf that its uses read, with the role of each; nothing if that is not clear."""
    found: dict[_Region, list[Reader]] = {}
    for reader in readers:
        region = _region(evidence, leaf, reader.atom)
        if region is None:
            return ()
        found.setdefault(region, []).append(reader)
    if len(found) < 2 or any(overlap(a, b) for a, b in itertools.combinations(found, 2)):
        return ()
    roles: list[tuple[_Region, LeafRole]] = []
    for region, own in sorted(found.items()):
        names = {role.name: role for role in map(role_of, own)}
        if len(names) == 1:
            roles.append((region, next(iter(names.values()))))
        else:
            several = ", ".join(sorted(names))
            roles.append((region, LeafRole("unknown", f"it is used in several ways: {several}")))
    return tuple(roles)


def _region(evidence: Evidence, leaf: int, atom: ir.Atom) -> _Region | None:
    """The part of a leaf that a value is computed from, if it is a single part."""
    regions: set[_Region] = set()
    seen: set[ir.Atom] = set()
    queue = [atom]
    while queue:
        atom = queue.pop()
        if atom in seen or not depends_on(evidence.flow, atom, leaf):
            continue
        seen.add(atom)
        value = evidence.analysis.of(atom)
        if leaf in value.origins:
            regions.add(value.origins[leaf].region)
        elif atom in evidence.flow.producer or evidence.flow.sources(atom):
            queue.extend(evidence.flow.sources(atom))
        else:
            return None
    return regions.pop() if len(regions) == 1 else None
