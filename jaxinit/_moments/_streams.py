"""Independent standard normal numbers in stratified samples, whose quantiles are exactly those of the distribution."""

import functools

import numpy as np
from scipy import special

COUNT = 1024
"""How many samples represent a distribution."""


class Streams:
    """Samples of new random numbers, each with a mark of its own: values that share no marks are independent."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._marks = 0
        self._parts: dict[tuple[int, int], int] = {}

    def mark(self) -> int:
        """A mark that no other value has, as a bit."""
        self._marks += 1
        return 1 << self._marks

    def part_mark(self, marks: int, number: int) -> int:
        """A mark for elements that are independent of others of the same value; equal elements have equal marks."""
        if not number or not marks:
            return marks
        if (marks, number) not in self._parts:
            self._parts[marks, number] = self.mark()
        return self._parts[marks, number]

    def uniforms(self, *shape: int) -> np.ndarray:
        """Independent uniform numbers in (0, 1): `COUNT` samples of an array of a shape."""
        return (self._ranks(shape) + 0.5) / COUNT

    def normals(self, *shape: int) -> np.ndarray:
        """Independent standard normal numbers: `COUNT` samples of an array of a shape, without any correlation."""
        block = _uncorrelated(int(np.prod(shape, dtype=int)))
        return block[self._generator.permutation(COUNT)].reshape(COUNT, *shape)

    def _ranks(self, shape: tuple[int, ...]) -> np.ndarray:
        ranks = np.broadcast_to(np.arange(COUNT).reshape(COUNT, *[1] * len(shape)), (COUNT, *shape))
        return self._generator.permuted(ranks, axis=0)


def stratified(normals: np.ndarray) -> np.ndarray:
    """Normal samples with their order, and the quantiles of the standard normal distribution for values."""
    found = np.empty(normals.shape)
    quantiles = _quantiles().reshape(-1, *[1] * (normals.ndim - 1))
    np.put_along_axis(found, np.argsort(normals, 0), quantiles, 0)
    return found


@functools.cache
def _uncorrelated(columns: int) -> np.ndarray:
    """Columns of normal samples that are uncorrelated, in any order of their rows."""
    ranks = np.broadcast_to(np.arange(COUNT)[:, None], (COUNT, columns))
    block = _quantiles()[np.random.default_rng(columns).permuted(ranks, axis=0)]
    if columns > 1:
        block = np.linalg.solve(np.linalg.cholesky(block.T @ block / COUNT), block.T).T
    return block


@functools.cache
def _quantiles() -> np.ndarray:
    found = special.ndtri((np.arange(COUNT) + 0.5) / COUNT)
    scaled: np.ndarray = found / np.sqrt(np.mean(found**2))
    return scaled
