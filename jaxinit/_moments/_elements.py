"""More elements than the two that represent a dimension, and numbers that vary along dimensions as elements do."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxinit._moments._samples import rolled
from jaxinit._moments._streams import COUNT, Streams, stratified

ALIKE = 0.1
"""Below this correlation, other elements along a dimension are taken from other samples."""
_ONE = 0.999
"""From this correlation on, elements count as equal."""
_HALVINGS = 8


def correlation(values: np.ndarray, axis: int) -> float:
    """The correlation of two elements along an axis."""
    if values.shape[axis] == 1 or len(values) == 1:
        return 1.0
    centred = values - values.mean(0, keepdims=True).mean(axis, keepdims=True)
    first, second = np.take(centred, 0, axis), np.take(centred, 1, axis)
    variance = float(np.mean(np.abs(centred) ** 2))
    return float(np.mean((first * np.conj(second)).real)) / variance if variance > 0 else 1.0


def correlated(streams: Streams, values: np.ndarray) -> np.ndarray:
    """New standard normal numbers, correlated along all axes as some samples are."""
    flat = values.real.reshape(len(values), -1)
    if len(values) == 1:
        return streams.normals(*[1] * (values.ndim - 1))
    centred = flat - flat.mean(0)
    return of_covariance(streams, centred.T @ centred / len(flat)).reshape(COUNT, *values.shape[1:])


def of_covariance(streams: Streams, covariance: np.ndarray, columns: int = 1) -> np.ndarray:
    """New normal numbers of unit variance, with these covariances up to scale: (samples, rows, columns)."""
    finite = np.nan_to_num(covariance)
    scale = np.sqrt(np.clip(np.diag(finite), 1e-300, None))
    correlations = finite / np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh((correlations + correlations.T) / 2)
    root = vectors * np.sqrt(np.clip(eigenvalues, 0, None)) @ vectors.T
    return stratified(root @ streams.normals(len(covariance), columns))


def more_elements(streams: Streams, values: np.ndarray, axes: Sequence[int], count: int) -> Iterator[np.ndarray]:
    """Further elements, distributed as the given ones are, and as correlated with them as two along some axes are.

    Assumes that the normal scores of all elements (which map their quantiles to those of a normal distribution) are
    jointly normal: the sum of a common part and an independent part for each.
    """
    ordered = np.sort(values, 0)
    # Equal elements, such as zeros behind a ReLU, are put in random order.
    noise = streams.normals(*values.shape[1:]) * 1e-9 * values.std()
    scores = stratified(values + noise)
    shared = _shared(streams, ordered, float(np.mean([correlation(values, a) for a in axes])))
    common = np.sqrt(shared) * stratified(scores.mean(tuple(axes), keepdims=True))
    # The independent part varies along these axes; along others it varies as the rest of the scores does.
    last = range(values.ndim - len(axes), values.ndim)
    rest = np.moveaxis(scores - common, axes, last)
    lengths, corners = rest.shape[1:], int(np.prod(rest.shape[values.ndim - len(axes) :]))
    rest = rest.reshape(len(rest), -1, corners)
    covariance = sum(rest[..., i].T @ rest[..., i] for i in range(corners))
    for _ in range(count):
        noise = of_covariance(streams, covariance, corners).reshape(-1, *lengths)
        own = common + np.sqrt(1 - shared) * np.moveaxis(noise, last, axes)
        yield np.take_along_axis(ordered, np.argsort(np.argsort(own, 0), 0), 0)


def others_beside(streams: Streams, values: np.ndarray, axis: int) -> np.ndarray:
    """Two more elements beside the two along an axis."""
    if values.shape[axis] == 1:
        return values
    if len(values) == 1 or correlation(values, axis) < ALIKE:
        return rolled(values, 1)
    (others,) = more_elements(streams, values, [axis], 1)
    return others


def _shared(streams: Streams, ordered: np.ndarray, wanted: float) -> float:
    """The correlation of normal scores for which their quantiles have the correlation wanted."""
    if wanted <= 0:
        return 0.0
    if wanted > _ONE:
        return 1.0
    quantiles = ordered.reshape(len(ordered), -1).mean(1)
    first, second = streams.normals(2).T
    values = quantiles[np.argsort(np.argsort(first))]
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mixed = middle * first + np.sqrt(1 - middle**2) * second
        found = np.corrcoef(values, quantiles[np.argsort(np.argsort(mixed))])[0, 1]
        low, high = (middle, high) if found < wanted else (low, middle)
    return (low + high) / 2
