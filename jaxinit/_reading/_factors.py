"""Random factors and parameters of an activation, as a few weighted numbers: E g(r) = Σ weight g(number).

Dropout, stochastic depth and noise compute numbers from random bits, element by element. Evaluated at evenly spread
bits, the program yields the distribution of these numbers. If there are few values, such as those of a mask, they are
used with their shares; many values are replaced by the nodes of Gaussian quadrature for their distribution. An element
of a parameter is distributed as the elements of its leaf are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import outside_traces
from jaxinit._reading._expressions import Bits, Expression, Parameter, Step, evaluate, ordered, sources

_POINTS = 1 << 16
# The total of weighted numbers; if there are several factors in one activation, they share it.
_MOST = 256
# Beyond this number, Gaussian quadrature gains nothing.
_NODES = 24


class Factors(NamedTuple):
    """Parts of an expression that do not depend on its argument, their joint values, and the weight of each.

    Attributes:
      parts: the expressions.
      values: for each part a vector, whose entries correspond to those of the others.
      weights: of the entries; their sum is 1.
    """

    parts: tuple[Expression, ...]
    values: tuple[np.ndarray, ...]
    weights: np.ndarray


def factors(result: Expression, parameters: Mapping[Parameter, np.ndarray]) -> Factors:
    """The random factors and parameters of an expression.

    Args:
      result: the expression.
      parameters: the elements of the leaves in it.
    """
    parts = _largest_parts(result)
    if not parts:
        return Factors((), (), np.ones(1))
    groups: list[tuple[set[Bits | Parameter], list[Expression]]] = []
    for part in parts:  # parts that share random bits belong together
        roots, members = set(sources(part)), [part]
        apart = [group for group in groups if roots.isdisjoint(group[0])]
        for group in groups:
            if group not in apart:
                roots |= group[0]
                members = group[1] + members
        groups = [*apart, (roots, members)]
    most = max(int(_MOST ** (1 / len(groups))), 2)
    tables = [_table(members, sorted(roots, key=id), parameters, most) for roots, members in groups]
    counts = [len(weights) for _, weights in tables]
    places = np.indices(counts).reshape(len(counts), -1)
    weights = np.prod([own[at] for (_, own), at in zip(tables, places, strict=True)], axis=0)
    values = [column[at] for (columns, _), at in zip(tables, places, strict=True) for column in columns]
    return Factors(tuple(x for _, members in groups for x in members), tuple(values), weights)


def _largest_parts(result: Expression) -> list[Expression]:
    """The largest parts that are computed from random bits and parameters without the argument."""

    def varies(x: Expression) -> bool:
        return x.degree == 0 and any(True for _ in sources(x))

    if varies(result):
        return [result]
    steps = [x for x in ordered([result]) if isinstance(x, Step) and x.degree]
    return list(dict.fromkeys(x for step in steps for x in step.inputs if varies(x)))


def _table(
    parts: Sequence[Expression],
    roots: Sequence[Bits | Parameter],
    parameters: Mapping[Parameter, np.ndarray],
    most: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The joint values of some expressions, and their weights."""

    def compute() -> np.ndarray:
        with jax.enable_x64(True):
            drawn: dict[Expression, object] = {
                root: _drawn(root, u, parameters) for root, u in zip(roots, _spread(len(roots)), strict=True)
            }
            found = [np.asarray(x).astype(np.float64) for x in evaluate(parts, drawn)]
        return np.stack([np.broadcast_to(x, (_POINTS,)) for x in found], axis=1)

    rows = outside_traces(compute)
    unique, counts = np.unique(rows, axis=0, return_counts=True)
    weights = counts / counts.sum()
    if len(unique) > most:
        if len(parts) == 1 and _is_floating(parts[0]):
            nodes, weights = _gauss(unique[:, 0], weights, min(most, _NODES))
            return [nodes], weights
        unique = unique[np.linspace(0, len(unique) - 1, most).astype(int)]
        weights = np.full(most, 1 / most)
    return list(unique.T), weights


def _is_floating(part: Expression) -> bool:
    return isinstance(part, Parameter) or (isinstance(part, Step) and jnp.issubdtype(part.dtype, jnp.floating))


def _spread(count: int) -> list[np.ndarray]:
    """Points that fill the unit cube evenly: a grid, or Roberts' sequence."""
    steps = np.arange(_POINTS)
    if count == 1:
        return [(steps + 0.5) / _POINTS]
    ratio = 2.0
    for _ in range(64):  # the root of x^(count + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (count + 1))
    return [np.mod(0.5 + steps / ratio**j, 1.0) for j in range(1, count + 1)]


def _drawn(root: Bits | Parameter, u: np.ndarray, parameters: Mapping[Parameter, np.ndarray]) -> object:
    """The values of a source at these quantiles."""
    if isinstance(root, Parameter):
        elements = np.sort(parameters[root])
        return jnp.asarray(elements[(u * len(elements)).astype(int)])
    dtype = np.dtype(root.dtype)
    return jnp.asarray(np.floor(u * 2.0 ** (8 * dtype.itemsize)).astype(dtype))


def _gauss(values: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian quadrature for a discrete distribution, by the Lanczos method.

    Reference: Golub & Welsch, Calculation of Gauss quadrature rules, 1969.
    """
    basis = [np.sqrt(weights)]
    diagonal, beside = [], []
    for _ in range(count):
        following = values * basis[-1]
        diagonal.append(float(following @ basis[-1]))
        for _ in range(2):  # twice is enough against rounding
            for vector in basis:
                following = following - (following @ vector) * vector
        beside.append(float(np.linalg.norm(following)))
        if beside[-1] <= 1e-12 * np.abs(values).max():
            break
        basis.append(following / beside[-1])
    size = len(diagonal)
    matrix = np.diag(diagonal) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2
