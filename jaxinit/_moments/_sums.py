r"""Sums, largest elements and products of data with data, on samples.

The mean of n elements of variance V, any two of which have the covariance C, has the variance w = V/n + (1 - 1/n)C.
Given the two elements x₀, x₁ that represent all, its best prediction is

.. math:: \mu + \frac{2w}{V + C} \left(\frac{x_0 + x_1}{2} - \mu\right),

and the rest, of variance w - 2w²/(V + C), is independent of them. So when a value is divided by its own sum, or its
own mean is subtracted, the moments stay right for few elements and for many.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._elements import more_elements, of_covariance
from jaxinit._moments._moves import resized
from jaxinit._moments._samples import Samples, aligned, constant
from jaxinit._moments._streams import COUNT, Streams

_NEGLIGIBLE = 1e-6
"""Variance relative to the squared mean below which a sum counts as a constant."""
_TRIALS, _SMALLER, _TOLERATED = 12, 0.8, 0.02
"""How often, and by how much, a prediction is weakened until the remainder is a valid covariance."""
_LEAST = 0.9
"""The largest share of a mean product that a negative covariance may remove from it."""
_MOST_COPIES = 16
"""For more elements than this the largest counts as a constant; for fewer it is found among samples."""
_MOST_RANKED = 128
"""Among how many elements ranks are found; of more, these are taken for a sample."""


def summed(streams: Streams, operand: Samples, dimensions: Sequence[int]) -> Samples:
    """The sum over some dimensions, which are dropped."""
    for d in sorted(dimensions, reverse=True):
        operand = _summed(streams, operand.joined(d), d)
    return operand


def _without(operand: Samples, dimension: int, values: np.ndarray, mark: int = 0) -> Samples:
    factors = operand.factors[:dimension] + operand.factors[dimension + 1 :]
    return dataclasses.replace(operand, values=values, factors=factors, marks=operand.marks | mark)


def _summed(streams: Streams, operand: Samples, dimension: int) -> Samples:
    size, axes = operand.shape[dimension], operand.axes(dimension)
    if not axes:
        return _without(operand, dimension, operand.values)
    (axis,) = axes
    if operand.values.shape[axis] == 1:
        return _without(operand, dimension, np.take(operand.values, 0, axis) * float(size))
    values = np.moveaxis(operand.values, axis, -1)
    found = mean_of(streams, values.reshape(len(values), -1, 2), size)
    return _without(operand, dimension, size * found.reshape(len(found), *values.shape[1:-1]), streams.mark())


def mean_of(
    streams: Streams, values: np.ndarray, size: int, known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """The mean of `size` elements, two of which are given along the last axis: (samples, others).

    Mean and covariances of the elements are those of the samples, unless they are known better.
    """
    mean, first, second, same, across = _covariances(values)
    if known is not None:
        mean, same, across = known
    total = same / size + (1 - 1 / size) * across
    variance, covariance, of_mean = (max(float(np.trace(m)) / len(m), 0.0) for m in (same, across, total))
    slope = 2 * of_mean / (variance + covariance) if variance + covariance > 0 else 0.0
    return _completed(streams, mean, (first + second) / 2, min(slope, 1.0), (same + across) / 2, total, values)


def _moving_mean(streams: Streams, values: np.ndarray, size: int) -> np.ndarray:
    """The means of windows of `size` elements beside each of the two along the last axis: of the same shape."""
    mean, first, second, same, across = _covariances(values)
    inside = same / size + (1 - 1 / size) * across
    total, elements = np.block([[inside, across], [across, inside]]), np.block([[same, across], [across, same]])
    shared = float(np.trace(inside) / np.trace(same)) if np.trace(same) > 0 else 1.0
    both = np.concatenate([first, second], 1)
    found = _completed(streams, np.tile(mean, 2), both, min(shared, 1.0), elements, total, values)
    if len(found) == 1:
        found = np.broadcast_to(found, (1, both.shape[1]))
    return np.moveaxis(found.reshape(len(found), 2, -1), 1, 2).reshape(-1, *values.shape[1:])


def _covariances(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The mean, the two elements around it, and the covariances of others at one element and at two."""
    values = values.astype(np.result_type(values.dtype, np.float64))
    mean = values.mean((0, 2))[None]
    first, second = (values[..., i] - mean for i in range(2))
    one, other, across = (
        (x.conj().T @ y).real / len(values) for x, y in ((first,) * 2, (second,) * 2, (first, second))
    )
    return mean, first, second, (one + other) / 2, (across + across.T) / 2


def _completed(
    streams: Streams,
    mean: np.ndarray,
    elements: np.ndarray,
    slope: float,
    known: np.ndarray,
    total: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Samples with the covariances `total`, predicted from elements that have the covariances `known`.

    The prediction is weakened until the remainder is a valid covariance. For positive `values` the result is
    positive.
    """
    size = float(np.trace(total)) / len(total)
    if not size > _NEGLIGIBLE * float(np.mean(np.abs(mean) ** 2)) or not np.isfinite(total).all():
        return mean
    for _ in range(_TRIALS):
        rest = total - slope**2 * known
        if np.linalg.eigvalsh(rest)[0] >= -_TOLERATED * size:
            break
        slope *= _SMALLER
    predicted = mean + slope * elements
    spread = np.sqrt(np.clip(np.diag(rest), 0, None))
    if not spread.max() ** 2 > _NEGLIGIBLE * size:
        return predicted
    if values.dtype.kind == "f" and values.min() >= 0:
        # Times a lognormal factor that adds these covariances.
        products = predicted.T @ predicted / len(predicted)
        of_log = np.log1p(np.clip(rest / np.where(products > 0, products, 1), -_LEAST, None))
        size_of = np.sqrt(np.clip(np.diag(of_log), 0, None))
        return np.asarray(predicted * np.exp(size_of * of_covariance(streams, of_log)[..., 0] - size_of**2 / 2))
    noise = of_covariance(streams, rest)[..., 0]
    return np.asarray(predicted + spread * noise)


def _sum(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    return summed(streams, inputs[0], equation.params["axes"])


def _product(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    """The sum over products of elements."""
    (contracted, batched) = equation.params["dimension_numbers"]
    left, right = inputs
    free = [[d for d in range(len(x.factors)) if d not in (*contracted[i], *batched[i])] for i, x in enumerate(inputs)]
    inner, outer = len(contracted[0]), len(batched[0])
    placed = []
    for i, x in enumerate((left, right)):
        order = [*batched[i], *free[i], *contracted[i]]
        own = [x.factors[d] for d in order]
        own[len(own) - inner :] = [sum(own[len(own) - inner :], ())]
        at = outer + len(free[0]) if i == 0 else outer
        own[at:at] = [()] * len(free[1 - i])
        values = x.values.transpose([0, *(a for d in order for a in x.axes(d))])
        moved = Samples(values, tuple(own), x.marks, x.known)
        placed.append(moved.joined(len(own) - 1))
    arrays, factors = aligned(placed)
    last = len(factors) - 1
    product = Samples(arrays[0] * arrays[1], factors, left.marks | right.marks, left.known and right.known)
    independent = left.marks and right.marks and not left.marks & right.marks
    if not factors[last] or product.values.shape[-1] == 1 or not independent:
        return _summed(streams, product, last)
    lengths = product.values.shape[1:]
    flat = [np.broadcast_to(a, (len(a), *lengths)).reshape(len(a), -1, 2) for a in arrays]
    size = math.prod(factors[last])
    means = mean_of(streams, product.values.reshape(len(product.values), -1, 2), size, _independent(*flat))
    values = size * means.reshape(len(means), *lengths[:-1])
    return _without(product, last, values, streams.mark())


def _independent(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of products of independent values, and the covariances at one element and at two: see `_covariances`."""
    moments = []
    for x in (left, right):
        first, second = x[..., 0], x[..., 1]
        same = (first.conj().T @ first + second.conj().T @ second).real / 2 / len(x)
        across = (first.conj().T @ second).real / len(x)
        moments.append((x.mean((0, 2))[None], same, (across + across.T) / 2))
    mean, same, across = (moments[0][i] * moments[1][i] for i in range(3))
    shared = (mean.conj().T @ mean).real
    return mean, same - shared, across - shared


def _extreme(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    operand = inputs[0]
    for d in sorted(equation.params["axes"], reverse=True):
        operand = operand.joined(d)
        axes = operand.axes(d)
        if not axes:
            operand = _without(operand, d, operand.values)
        else:
            largest = _largest(
                streams, operand.values, axes[0], operand.shape[d], equation.primitive is ir.reduce_max_p
            )
            operand = _without(operand, d, np.take(largest, 0, axes[0]))
    return operand


def _largest(streams: Streams, values: np.ndarray, axis: int, count: int, is_max: bool) -> np.ndarray:
    """The largest of some elements along an axis, or the least, kept along the axis."""
    choose, both = (np.maximum, np.max) if is_max else (np.minimum, np.min)
    if values.shape[axis] == 1 or len(values) == 1:
        return np.asarray(both(values, axis, keepdims=True))
    if count > _MOST_COPIES:
        share = count / (count + 1)
        number = np.quantile(values, share if is_max else 1 - share, axis=(0, axis), keepdims=True)
        return np.asarray(number)
    found = both(values, axis, keepdims=True)
    if count > 2:
        for more in more_elements(streams, values, [axis], (count - 1) // 2):
            found = choose(found, both(more, axis, keepdims=True))
    return np.asarray(found)


def _top(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> list[Samples]:
    """The largest elements along a dimension: two of them, at different ranks. Where they lie is not known."""
    values, indices = equation.outputs
    rank, k = len(values.shape), equation.params["k"]
    d = equation.params.get("axis", rank - 1) % rank
    operand = inputs[0].joined(d)
    count, found = operand.shape[d], operand.values
    places = dataclasses.replace(constant(0, indices.shape), known=False)
    if k == count or not operand.factors[d] or len(found) == 1 or found.shape[operand.axes(d)[0]] == 1:
        return [resized(operand, d, k), places]
    (axis,) = operand.axes(d)
    looked_at = min(count, _MOST_RANKED)
    more = more_elements(streams, found, [axis], (looked_at - 1) // 2)
    ordered = -np.sort(-np.concatenate([found, *more], axis).take(range(looked_at), axis), axis)
    top = max(round(k * looked_at / count), 1)
    first = np.random.default_rng(k).integers(0, top, COUNT)
    ranks = np.stack([first, (first + 1 + np.random.default_rng(k + 1).integers(0, max(top - 1, 1), COUNT)) % top], 1)
    ranks = ranks.reshape(COUNT, *(2 if a == axis else 1 for a in range(1, found.ndim)))
    pair = np.take_along_axis(ordered, np.broadcast_to(ranks, found.shape), axis)
    return [resized(dataclasses.replace(operand, values=pair, marks=operand.marks | streams.mark()), d, k), places]


def _window_sum(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    """Each element with others beside it."""
    operand = inputs[0]
    out = equation.outputs[0].shape
    for d, size in enumerate(equation.params["window_dimensions"]):
        if size == 1 or not operand.factors[d]:
            operand = resized(operand, d, out[d])
            continue
        operand = operand.joined(d)
        (axis,) = operand.axes(d)
        if operand.values.shape[axis] == 1:
            found = operand.values * float(size)
        else:
            values = np.moveaxis(operand.values, axis, -1)
            means = _moving_mean(streams, values.reshape(len(values), -1, 2), size)
            found = np.moveaxis(size * means.reshape(-1, *values.shape[1:]), -1, axis)
        marks = operand.marks | streams.mark()
        operand = resized(dataclasses.replace(operand, values=found, marks=marks), d, out[d])
    return operand


def _window_max(streams: Streams, equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    """The largest of as many elements as a window has, which are as correlated as any two are."""
    operand, sizes = inputs[0], equation.params["window_dimensions"]
    count = min(math.prod(sizes), _MOST_COPIES)
    windowed = [d for d, n in enumerate(sizes) if n > 1 and operand.factors[d]]
    for d in windowed:
        operand = operand.joined(d)
    axes = [a for d in windowed for a in operand.axes(d) if operand.values.shape[a] > 1]
    if len(operand.values) > 1 and axes and count > 1:
        found = functools.reduce(np.maximum, more_elements(streams, operand.values, axes, count))
        operand = dataclasses.replace(operand, values=found, marks=operand.marks | streams.mark())
    for d, size in enumerate(equation.outputs[0].shape):
        operand = resized(operand, d, size)
    return operand


RULES: dict[Any, Callable[[Streams, ir.Equation, Sequence[Samples]], Samples | list[Samples]]] = {
    ir.reduce_sum_p: _sum,
    ir.reduce_max_p: _extreme,
    ir.primitive("reduce_min"): _extreme,
    ir.primitive("top_k"): _top,
    ir.dot_general_p: _product,
    ir.primitive("reduce_window_sum"): _window_sum,
    ir.primitive("reduce_window_max"): _window_max,
}
