"""What a study has found so far: a table of starts × seeds that is filled step by step, saved and loaded."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._study import _store


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides the numbers of a study; records of equal plans may be joined.

    Attributes:
      learning_rates: the learning rates.
      steps: number of training steps.
      settings: further facts, as JSON: sizes, the key, the versions, a digest of the data.
      programs: start → digest of the program that draws and trains it; empty if nothing is to be resumed.
    """

    learning_rates: tuple[float, ...]
    steps: int
    settings: dict[str, Any]
    programs: dict[str, str]


@dataclasses.dataclass
class Running:
    """Seeds that are still in training, as they were after some steps.

    Attributes:
      start: their start.
      seeds: their numbers.
      step: steps taken.
      leaves: the leaves of their states, with seeds as the first axis.
      losses: seeds × steps × learning rates.
      initial: metrics before training.
    """

    start: str
    seeds: tuple[int, ...]
    step: int
    leaves: list[np.ndarray]
    losses: np.ndarray
    initial: dict[str, np.ndarray]


class Records:
    """The table.

    Attributes:
      done: starts × seeds, whether they are finished.
      losses: starts × learning rates × seeds × steps; None before the first entry.
      initial: metric → starts × seeds × ...
      final: metric → starts × learning rates × seeds × ...
      running: what was in training at the last checkpoint.
    """

    def __init__(self, plan: Plan, starts: Sequence[str], seeds: Sequence[int]) -> None:
        self.plan = plan
        self.starts = tuple(starts)
        self.seeds = tuple(seeds)
        self.done = np.zeros((len(self.starts), len(self.seeds)), bool)
        self.losses: np.ndarray | None = None
        self.initial: dict[str, np.ndarray] = {}
        self.final: dict[str, np.ndarray] = {}
        self.running: Running | None = None

    def holds_something(self) -> bool:
        """Whether any run is finished, or was in training at a checkpoint."""
        return bool(self.done.any()) or self.running is not None

    def pending(self, start: str) -> list[int]:
        """The seeds of a start that are not finished."""
        done = self.done[self.starts.index(start)]
        return [seed for seed, there in zip(self.seeds, done, strict=True) if not there]

    def enter(
        self,
        start: str,
        seeds: Sequence[int],
        losses: np.ndarray,
        initial: Mapping[str, np.ndarray],
        final: Mapping[str, np.ndarray],
    ) -> None:
        """Enters seeds: losses as seeds × learning rates × steps, metrics as seeds × ..., seeds × rates × ..."""
        i = self.starts.index(start)
        columns = [self.seeds.index(seed) for seed in seeds]
        starts, seeds_all, rates = len(self.starts), len(self.seeds), len(self.plan.learning_rates)
        if self.losses is None:
            self.losses = np.full((starts, rates, seeds_all, self.plan.steps), np.nan, losses.dtype)
        self.losses[i][:, columns] = losses.swapaxes(0, 1)
        for name, values in initial.items():
            empty = np.full((starts, seeds_all, *values.shape[1:]), np.nan, values.dtype)
            self.initial.setdefault(name, empty)[i][columns] = values
        for name, values in final.items():
            empty = np.full((starts, rates, seeds_all, *values.shape[2:]), np.nan, values.dtype)
            self.final.setdefault(name, empty)[i][:, columns] = values.swapaxes(0, 1)
        self.done[i, columns] = True

    def take_over(self, other: "Records", path: Any) -> None:
        """Copies the entries of an earlier study.

        Raises:
          ValueError: it is a different study, or does not say which, or has starts or seeds that would be lost.
        """
        if not other.holds_something():
            return
        if not other.plan.programs:
            raise ValueError(
                f"{path} is the saved result of a study without path=. To tell whether two studies are the same, the "
                "programs that draw and train every start must be traced once more, which only a study with path= "
                "does: so this file can be loaded, but not continued. Pass another path"
            )
        theirs, mine = (dataclasses.asdict(records.plan) for records in (other, self))
        for name, value in {**theirs, **theirs["settings"]}.items():
            wanted = {**mine, **mine["settings"]}.get(name)
            if name not in ("settings", "programs") and value != wanted:
                raise ValueError(
                    f"{path} holds another study: its {name} is {value!r}, but here it is {wanted!r}; "
                    "pass another path, or use the same settings to continue it"
                )
        running = {other.running.start} if other.running else set()
        begun = [start for start, done in zip(other.starts, other.done, strict=True) if done.any() or start in running]
        seeds = {other.seeds[i] for i in np.flatnonzero(other.done.any(axis=0))} | set(
            other.running.seeds if other.running else ()
        )
        lost = [s for s in begun if s not in self.starts] + sorted(seeds - set(self.seeds))
        if lost:
            raise ValueError(
                f"{path} holds starts or seeds that this study does not ask for: {lost}; ask for them too, or pass "
                "another path"
            )
        for start in begun:
            if other.plan.programs.get(start) != self.plan.programs[start]:
                raise ValueError(
                    f"{path} holds another study: its start {start!r}, model, loss, optimizer or metrics differ from "
                    "those of this one; pass another path, or restore the code that wrote it"
                )
        for start in begun:
            i = other.starts.index(start)
            columns = np.flatnonzero(other.done[i])
            if len(columns):
                assert other.losses is not None
                self.enter(
                    start,
                    [other.seeds[c] for c in columns],
                    other.losses[i][:, columns].swapaxes(0, 1),
                    {name: values[i][columns] for name, values in other.initial.items()},
                    {name: values[i][:, columns].swapaxes(0, 1) for name, values in other.final.items()},
                )
        self.running = other.running

    def write(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        """Writes the table, and further facts, to a file."""
        header = {"plan": dataclasses.asdict(self.plan), "starts": self.starts, "seeds": self.seeds, "facts": facts}
        arrays = {"done": self.done}
        if self.losses is not None:
            arrays["losses"] = self.losses
        arrays |= {f"initial/{name}": values for name, values in self.initial.items()}
        arrays |= {f"final/{name}": values for name, values in self.final.items()}
        if self.running is not None:
            r = self.running
            header["running"] = {"start": r.start, "seeds": r.seeds, "step": r.step}
            arrays["running/losses"] = r.losses
            arrays |= {f"running/initial/{name}": values for name, values in r.initial.items()}
            arrays |= {f"running/leaf/{i}": leaf for i, leaf in enumerate(r.leaves)}
        _store.write(path, header, arrays)

    @classmethod
    def read(cls, path: str | os.PathLike[str], contents: bytes | None = None) -> tuple["Records", dict[str, Any]]:
        """The table of a file, or of what was in it, and the further facts.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is damaged, or not a study.
        """
        header, arrays = _store.read(path, contents)
        try:
            plan = Plan(**header["plan"])
            plan = dataclasses.replace(plan, learning_rates=tuple(plan.learning_rates))
            records = cls(plan, header["starts"], header["seeds"])
            records._fill(header, arrays)
            return records, dict(header["facts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is a damaged study of jaxinit ({error!r}); pass another path, or move the file away"
            ) from error

    def _fill(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        starts, seeds, rates = len(self.starts), len(self.seeds), len(self.plan.learning_rates)
        self.done = _of_shape(arrays["done"], (starts, seeds))
        self.losses = arrays.get("losses")
        if self.losses is not None:
            _of_shape(self.losses, (starts, rates, seeds, self.plan.steps))
        elif self.done.any():
            raise ValueError("its losses are missing")
        self.initial = {n: _of_shape(x, (starts, seeds)) for n, x in _below("initial/", arrays).items()}
        self.final = {n: _of_shape(x, (starts, rates, seeds)) for n, x in _below("final/", arrays).items()}
        if "running" in header:
            leaves = _below("running/leaf/", arrays)
            self.running = Running(
                start=header["running"]["start"],
                seeds=tuple(header["running"]["seeds"]),
                step=int(header["running"]["step"]),
                leaves=[leaves[str(i)] for i in range(len(leaves))],
                losses=arrays["running/losses"],
                initial=_below("running/initial/", arrays),
            )


def as_stored(leaf: Any) -> np.ndarray:
    """A leaf in a form that NumPy can write: keys as their data, and dtypes that it does not know as bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def from_stored(array: np.ndarray, like: Any) -> Any:
    """The inverse of `as_stored`, with the dtype and shape (after the seeds) of `like`."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        found: list[Any] = []  # only a key, even a traced one, knows its implementation
        jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
        return jax.random.wrap_key_data(jnp.asarray(array), impl=found[0])
    return _of_shape(array.view(like.dtype), (len(array), *like.shape))


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _of_shape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape[: len(shape)] != shape:
        raise ValueError(f"an array has shape {array.shape}, which should begin with {shape}")
    return array
