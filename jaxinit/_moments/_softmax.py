"""Positive numbers that are divided by their sum, such as the weights of attention."""

import dataclasses

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._samples import Samples
from jaxinit._moments._streams import Streams


def normalized_by_sum(program: ir.Program) -> dict[ir.Equation, int]:
    """The divisions of a value by its own sum along a dimension, and which dimension it is."""
    made = {v: e for e in program.equations for v in e.outputs}
    found = {}
    for equation in program.equations:
        if equation.primitive is not ir.div_p:
            continue
        value, divisor = equation.inputs
        source = made.get(divisor)  # type: ignore[arg-type]
        while source is not None and source.primitive in (ir.broadcast_p, ir.reshape_p, *ir.IDENTITIES):
            source = made.get(source.inputs[0])  # type: ignore[arg-type]
        if source is None or source.primitive is not ir.reduce_sum_p or len(source.params["axes"]) != 1:
            continue
        if _origin(made, source.inputs[0]) is _origin(made, value) and value.shape == source.inputs[0].shape:
            found[equation] = source.params["axes"][0]
    return found


def _origin(made: dict[ir.Variable, ir.Equation], atom: ir.Atom) -> ir.Atom:
    """A value before casts."""
    while isinstance(atom, ir.Variable) and atom in made and made[atom].primitive in ir.IDENTITIES:
        atom = made[atom].inputs[0]
    return atom


def softmax(streams: Streams, operand: Samples, dimension: int, counts: Samples | None) -> Samples:
    """Positive elements divided by the sum of all along a dimension, given two of them.

    The others, as many as there are or as a mask leaves visible, are independent of the two once the factor that all
    of them share is removed, which does not change the result.

    Args:
      streams: of random numbers.
      operand: the elements; those that a mask hides are zero.
      dimension: along which they are summed.
      counts: how many of them a mask leaves visible, of size one along the dimension; None for all.
    """
    size = operand.shape[dimension]
    operand = operand.joined(dimension)
    values = operand.values.astype(float)
    shown = values > 0
    # A single element, or equal ones, or none that is positive.
    if size == 1 or values.shape[operand.axes(dimension)[0]] == 1 or not shown.any():
        return dataclasses.replace(operand, values=np.full_like(values, 1 / size))
    (axis,) = operand.axes(dimension)
    pair = _without_shared(streams, values, shown, axis)
    mean, variance = float(np.mean(pair[shown])), float(np.var(pair[shown]))
    total = np.full(1, float(size)) if counts is None else _spread(counts, operand, dimension)
    others = np.clip(total - shown.sum(axis, keepdims=True), 0, None)
    expected = others * mean
    spread = np.sqrt(np.log1p(others * variance / np.where(expected > 0, expected, 1) ** 2))
    noise = streams.normals(*(1 if a == axis else n for a, n in enumerate(values.shape) if a))
    rest = expected * np.exp(spread * noise - spread**2 / 2)
    whole = rest + pair.sum(axis, keepdims=True)
    found = np.where(whole > 0, pair / np.where(whole > 0, whole, 1), 0.0)
    return dataclasses.replace(operand, values=found, marks=operand.marks | streams.mark())


def _without_shared(streams: Streams, values: np.ndarray, shown: np.ndarray, axis: int) -> np.ndarray:
    """Two elements along an axis without the factor that all elements along it share."""
    logs = np.log(np.where(shown, values, 1.0))
    both = shown.all(axis, keepdims=True)
    logs = np.where(shown, logs - logs[shown].mean(), 0.0)
    variance = float(np.mean(logs[shown] ** 2))
    first, second = np.take(logs, 0, axis), np.take(logs, 1, axis)
    together = np.take(both, 0, axis)
    product = float(np.mean((first * second)[together])) if together.any() else 0.0
    own = max(variance - max(product, 0.0), 0.0)
    if variance == 0 or own > 0.98 * variance:
        return np.where(shown, np.exp(logs), 0.0)
    half = (logs - np.flip(logs, axis)) / 2
    noise = streams.normals(*(1 if a == axis else n for a, n in enumerate(values.shape) if a))
    apart = half + np.sqrt(own / 2) * noise
    alone = logs * np.sqrt(own / variance)
    return np.where(shown, np.exp(np.where(both, apart, alone)), 0.0)


def _spread(counts: Samples, operand: Samples, dimension: int) -> np.ndarray:
    """Samples of size one along a dimension, with the axes of an operand."""
    lengths: list[int] = []
    for d, own in enumerate(operand.factors):
        found = [counts.values.shape[a] for a in counts.axes(d)]
        lengths += found if len(found) == len(own) else [1] * len(own)
    return counts.values.reshape(len(counts.values), *lengths)
