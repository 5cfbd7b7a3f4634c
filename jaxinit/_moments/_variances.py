"""Variances that a program computes as the mean of squares minus the squared mean, as Flax's normalizations do.

The two means are over the same elements, so the difference is never negative. For few elements that matters, because a
normalization divides by its root. Separate samples of the two sums could not ensure that, so the mean square of the
elements around their mean is computed instead.
"""

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._samples import Samples, aligned
from jaxinit._moments._streams import Streams
from jaxinit._moments._sums import summed
from jaxinit._reading import divides_by

_MOVED = (ir.broadcast_p, ir.reshape_p, ir.squeeze_p, *ir.IDENTITIES)


class Variance(NamedTuple):
    """What a difference is the variance of: the elements, the sum that makes their mean, and over which dimensions."""

    elements: ir.Atom
    total: ir.Equation
    axes: tuple[int, ...]


def variances(program: ir.Program) -> dict[ir.Equation, Variance]:
    """The differences of a mean of squares and a squared mean, both of the same elements."""
    made: dict[ir.Atom, ir.Equation] = {v: e for e in program.equations for v in e.outputs}
    found = {}
    for equation in program.equations:
        if equation.primitive is not ir.sub_p:
            continue
        mean = _squared(made, equation.inputs[1])
        of_squares, of_elements = _mean(made, equation.inputs[0]), None if mean is None else _mean(made, mean)
        if of_squares is None or of_elements is None:
            continue
        squared = _squared(made, of_squares.inputs[0])
        elements = _source(made, of_elements.inputs[0], ir.IDENTITIES)
        if squared is None or _source(made, squared, ir.IDENTITIES) is not elements:
            continue
        axes = tuple(of_elements.params["axes"])
        if tuple(of_squares.params["axes"]) == axes:
            found[equation] = Variance(elements, of_elements, axes)
    return found


def _source(made: Mapping[ir.Atom, ir.Equation], atom: ir.Atom, through: Container[Any] = _MOVED) -> ir.Atom:
    """A value before casts, and before moves if those count."""
    while atom in made and made[atom].primitive in through:
        atom = made[atom].inputs[0]
    return atom


def _squared(made: Mapping[ir.Atom, ir.Equation], atom: ir.Atom) -> ir.Atom | None:
    """What a value is the square of."""
    equation = made.get(_source(made, atom))
    if equation is None:
        return None
    primitive, inputs = equation.primitive, equation.inputs
    if primitive is ir.square_p or (primitive is ir.integer_pow_p and equation.params["y"] == 2):
        return inputs[0]
    return inputs[0] if primitive is ir.mul_p and inputs[0] is inputs[1] else None


def _mean(made: Mapping[ir.Atom, ir.Equation], atom: ir.Atom) -> ir.Equation | None:
    """The sum that is divided by the number of its terms to make a value."""
    division = made.get(_source(made, atom))
    totals = [] if division is None else [made.get(_source(made, a)) for a in division.inputs]
    total = next((e for e in totals if e is not None and e.primitive is ir.reduce_sum_p), None)
    if division is None or total is None:
        return None
    count = math.prod(total.inputs[0].shape[a] for a in total.params["axes"])
    return total if divides_by(division, count) else None


def variance(streams: Streams, elements: Samples, total: Samples, axes: tuple[int, ...], rank: int) -> Samples:
    """The mean square of elements around their mean, whose sum is known; axes of size 1 are added to match the rank."""
    count = math.prod(elements.shape[a] for a in axes)
    wide = list(total.factors)
    for axis in sorted(axes):
        wide.insert(axis, ())
    arrays, factors = aligned([elements, dataclasses.replace(total, factors=tuple(wide))])
    apart = np.square(np.abs(arrays[0] - arrays[1] / count))
    marks, known = elements.marks | total.marks, elements.known and total.known
    found = summed(streams, Samples(apart, factors, marks, known), axes)
    kept = list(found.factors)
    for axis in sorted(axes) if rank == len(factors) else ():
        kept.insert(axis, ())
    return dataclasses.replace(found, values=found.values / count, factors=tuple(kept))
