"""The loop of a study: one start after another, one turn of seeds after another, with checkpoints.

A turn is the groups of seeds that are in training at once, one on each device, or on a CPU one for each core, of every
process. Its groups take the same steps at the same time, so a checkpoint is one number of steps and one state for each
seed, with whatever devices and processes the study is continued.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinit._study._programs import Compiler, Programs
from jaxinit._study._progress import Progress
from jaxinit._study._records import Records, Running, as_stored, from_stored
from jaxinit._study._starts import Draw, naming
from jaxinit._study._train import SEED

_CHECKPOINT_SECONDS = 20.0
"""Time between checkpoints: at most this much work, plus one call, is repeated after an interruption."""


@dataclasses.dataclass
class Clock:
    """Seed-steps taken, and the seconds that they took, without compilation."""

    seed_steps: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Seed-steps per second."""
        return self.seed_steps / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Start:
    """A start with its programs, and the shapes of one seed's state."""

    name: str
    programs: Programs
    drawing: Callable[[Any], Any]
    state: Any


class Runner:
    """Trains what is missing from the records.

    Args:
      compiler: makes the programs.
      records: the table to fill.
      save: writes the table, or does nothing.
      progress: is told what happens.
    """

    def __init__(
        self,
        compiler: Compiler,
        records: Records,
        save: Callable[[], None],
        progress: Progress,
    ) -> None:
        self.clock = Clock()
        self._compiler = compiler
        self._records = records
        self._save = save
        self._progress = progress
        self._saved = time.monotonic()

    def run(self, draws: Mapping[str, Draw]) -> None:
        """Runs every start; at the end, even after an error, the table is saved."""
        try:
            for name, draw in draws.items():
                pending = self._records.pending(name)
                if pending:
                    self._progress.compiling(name)
                    with naming(name):
                        self._run_start(self._prepared(name, draw), pending)
        finally:
            if self._records.holds_something():
                self._save()

    def _prepared(self, name: str, draw: Draw) -> _Start:
        training, inputs = self._compiler.training, self._compiler.inputs
        params = jax.eval_shape(functools.partial(training.draw, draw), SEED, inputs.key, inputs.data)
        programs = self._compiler.programs(params)
        state = jax.eval_shape(training.begin, params, inputs.rates)
        return _Start(name, programs, self._compiler.drawing(draw, programs.size), state)

    def _run_start(self, start: _Start, pending: list[int]) -> None:
        running = self._records.running
        if running is not None and running.start == start.name and set(running.seeds) <= set(pending):
            self._run_turn(start, running.seeds, running)
            pending = [seed for seed in pending if seed not in running.seeds]
        width = start.programs.size * len(start.programs.places) * self._compiler.processes.count
        for first in range(0, len(pending), width):
            self._run_turn(start, pending[first : first + width])

    def _run_turn(self, start: _Start, turn: Sequence[int], running: Running | None = None) -> None:
        programs, steps = start.programs, self._records.plan.steps
        seeds = self._part(np.array(turn, np.uint32), programs.size)
        places = [i % len(programs.places) for i in range(len(seeds))]
        if running is None:
            states, initial = self._begun(start, seeds)
            step, losses = 0, list[np.ndarray]()
        else:
            states, initial = self._restored(start, running)
            before = self._part(running.losses, programs.size)
            step, losses = running.step, [np.concatenate(before)] if before else []
        self._progress.training(start.name)
        states = [jax.device_put(state, programs.places[i]) for i, state in zip(places, states, strict=True)]
        with concurrent.futures.ThreadPoolExecutor(max(1, len(seeds))) as pool:
            while step < steps:
                length = min(programs.length, steps - step)
                began = time.perf_counter()
                advance = functools.partial(_advanced_once, programs, step)
                advanced = list((pool.map if len(seeds) > 1 else map)(advance, places, states, seeds))
                states = [state for state, _ in advanced]
                losses += [_gathered([new for _, new in advanced])] if advanced else []
                self._tick(length * len(turn), time.perf_counter() - began)
                step += length
                if step < steps and self._is_time():
                    leaves = [_gathered(parts) for parts in zip(*map(jax.tree.leaves, states), strict=True)]
                    self._records.running = self._interrupted(start, turn, step, leaves, losses, initial)
                    self._checkpoint()
        home = self._compiler.devices[0]
        final = _measured([programs.finish(jax.device_put(state, home)) for state in states])
        curves = {"": _as_float(np.concatenate(losses, axis=1).swapaxes(1, 2))} if losses else {}
        found = self._everyones(turn, losses=curves, initial=initial, final=final)
        self._records.enter(start.name, turn, found["losses"][""], found["initial"], found["final"])
        self._records.running = None
        if self._is_time():
            self._checkpoint()

    def _begun(self, start: _Start, seeds: Sequence[Any]) -> tuple[list[Any], dict[str, np.ndarray]]:
        """The states of groups before training, and their initial metrics."""
        begun = [start.programs.begin(start.drawing(group)) for group in seeds]
        return [state for state, _ in begun], _measured([metrics for _, metrics in begun])

    def _interrupted(
        self,
        start: _Start,
        turn: Sequence[int],
        step: int,
        leaves: Sequence[np.ndarray],
        losses: Sequence[np.ndarray],
        initial: Mapping[str, np.ndarray],
    ) -> Running:
        """What all processes have in training."""
        curves = {"": np.concatenate(losses, axis=1)} if losses else {}
        states = {str(i): leaf for i, leaf in enumerate(leaves)}
        found = self._everyones(turn, leaves=states, losses=curves, initial=initial)
        held = [found["leaves"][str(i)] for i in range(len(found["leaves"]))]
        return Running(start.name, tuple(turn), step, held, found["losses"][""], found["initial"])

    def _restored(self, start: _Start, running: Running) -> tuple[list[Any], dict[str, np.ndarray]]:
        """The states of a checkpoint, in groups, and their initial metrics."""
        likes, structure = jax.tree.flatten(start.state)
        if len(running.leaves) != len(likes):
            raise ValueError("the checkpoint in the file of this study is damaged; move the file away")
        leaves = [from_stored(array, like) for array, like in zip(running.leaves, likes, strict=True)]
        groups = zip(*(self._part(leaf, start.programs.size) for leaf in leaves), strict=True)
        initial = {name: self._part(values, start.programs.size) for name, values in running.initial.items()}
        return (
            [jax.tree.unflatten(structure, group) for group in groups],
            {name: np.concatenate(parts) for name, parts in initial.items() if parts},
        )

    def _part(self, array: Any, size: int) -> Sequence[Any]:
        """The groups of a turn's rows that this process trains."""
        return self._compiler.processes.part(_padded(array, size))

    def _everyones(self, turn: Sequence[int], **tables: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """The rows of all processes, in the order of the turn."""
        mine = {f"{table}/{name}": rows for table, entries in tables.items() for name, rows in entries.items()}
        joined = self._compiler.processes.joined(mine)
        found: dict[str, dict[str, np.ndarray]] = {table: {} for table in tables}
        for full, rows in joined.items():
            table, _, name = full.partition("/")
            found[table][name] = rows[: len(turn)]
        return found

    def _is_time(self) -> bool:
        """Whether to save now; all processes agree."""
        return self._compiler.processes.first(time.monotonic() - self._saved > _CHECKPOINT_SECONDS)

    def _tick(self, steps: int, seconds: float) -> None:
        seed_steps = steps * len(self._records.plan.learning_rates)
        self.clock.seed_steps += seed_steps
        self.clock.seconds += seconds
        self._progress.took(seed_steps, self.clock.rate)

    def _checkpoint(self) -> None:
        self._save()
        self._saved = time.monotonic()


def _advanced_once(programs: Programs, step: int, place: int, state: Any, seeds: Any) -> Any:
    return jax.block_until_ready(programs.advance(place, state, seeds, step))


def _padded(array: Any, size: int) -> list[Any]:
    """Parts of equal size; the last one is padded with copies of its last entry."""
    count = -(-len(array) // size)
    rows = np.minimum(np.arange(count * size), len(array) - 1)
    return [array[part] for part in rows.reshape(count, size)]


def _gathered(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate([as_stored(part) for part in parts])


def _measured(groups: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: _as_float(np.concatenate([np.asarray(g[name]) for g in groups])) for name in (groups or [{}])[0]}


def _as_float(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float64 else array.astype(np.float32)
