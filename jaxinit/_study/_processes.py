"""The processes that share a study: each trains its part of every turn, and all of them receive the results.

They run the same code and communicate through collectives, in the same order. A single process never communicates.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_T = TypeVar("_T")


class Processes:
    """The processes that own the devices of a study.

    Args:
      devices: the devices, of this process alone or of all processes.

    Raises:
      ValueError: they belong to some other subset of processes.
    """

    def __init__(self, devices: Sequence[Any]) -> None:
        mine, owners = jax.process_index(), sorted({device.process_index for device in devices})
        if owners not in ([mine], list(range(jax.process_count()))):
            raise ValueError(
                f"devices must belong to this process, number {mine}, or to all {jax.process_count()} of them, which "
                f"then share the study; got those of processes {owners}"
            )
        self.count = len(owners)
        self._index = owners.index(mine)
        self.devices = [device for device in devices if device.process_index == mine]

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self._index == 0

    def part(self, entries: Sequence[_T]) -> Sequence[_T]:
        """The entries of a turn that this process trains; there may be none."""
        each = -(-len(entries) // self.count)
        return entries[self._index * each : (self._index + 1) * each]

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return min(int(x) for x in self._all(np.int32(number)))

    def first(self, answer: bool) -> bool:
        """The answer of the first process."""
        return bool(self._all(np.int32(answer))[0])

    def joined(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows of all processes, in order; a process without rows contributes nothing."""
        if self.count == 1:
            return dict(rows)
        file = io.BytesIO()
        np.savez(file, **rows)  # type: ignore[arg-type]
        tables = []
        for contents in self._bytes(file.getvalue()):
            with np.load(io.BytesIO(contents), allow_pickle=False) as table:
                tables.append({name: table[name] for name in table.files})
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: np.concatenate([table[name] for table in tables if name in table]) for name in names}

    def contents(self, path: Any) -> bytes | None:
        """The contents of a file of the first process, or nothing if there is no file."""
        found = Path(path).read_bytes() if self.is_first and Path(path).exists() else None
        if not self.first(found is not None):
            return None
        return self._bytes(found or b"")[0]

    def _bytes(self, mine: bytes) -> list[bytes]:
        if self.count == 1:
            return [mine]
        sizes = [int(size) for size in self._all(np.int32(len(mine)))]
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(mine)] = np.frombuffer(mine, np.uint8)
        return [row[:size].tobytes() for row, size in zip(self._all(padded), sizes, strict=True)]

    def _all(self, mine: Any) -> Sequence[Any]:
        if self.count == 1:
            return [mine]
        gather: Callable[[Any], Any] = multihost_utils.process_allgather
        return [np.asarray(x) for x in gather(np.asarray(mine))]
