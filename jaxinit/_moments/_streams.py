"""Independent standard normal numbers, each sample of them stratified: its quantiles are those of the distribution."""

import functools

import numpy as np
from scipy import special

COUNT = 1024
"""How many samples stand for a distribution."""


class Streams:
    """Samples of new random numbers, each with a mark of its own: values that share none are independent."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._marks = 0

    def mark(self) -> int:
        """A mark that no other value has, as a bit."""
        self._marks += 1
        return 1 << self._marks

    def uniforms(self, *shape: int) -> np.ndarray:
        """Independent uniform numbers in (0, 1): `COUNT` samples of an array of a shape."""
        return (self._ranks(shape) + 0.5) / COUNT

    def normals(self, *shape: int) -> np.ndarray:
        """Independent standard normal numbers: `COUNT` samples of an array of a shape, without any correlation."""
        flat = _quantiles()[self._ranks(shape)].reshape(COUNT, -1)
        if flat.shape[1] > 1:
            flat = np.linalg.solve(np.linalg.cholesky(flat.T @ flat / COUNT), flat.T).T
        return flat.reshape(COUNT, *shape)

    def _ranks(self, shape: tuple[int, ...]) -> np.ndarray:
        ranks = np.broadcast_to(np.arange(COUNT).reshape(COUNT, *[1] * len(shape)), (COUNT, *shape))
        return self._generator.permuted(ranks, axis=0)


def stratified(normals: np.ndarray) -> np.ndarray:
    """Normal samples with their order, and the quantiles of the standard normal distribution for values."""
    return _quantiles()[np.argsort(np.argsort(normals, 0), 0)]


@functools.cache
def _quantiles() -> np.ndarray:
    found = special.ndtri((np.arange(COUNT) + 0.5) / COUNT)
    scaled: np.ndarray = found / np.sqrt(np.mean(found**2))
    return scaled
