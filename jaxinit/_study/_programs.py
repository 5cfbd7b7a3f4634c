"""Compiled programs: one seed's functions mapped over the seeds of a group, each group on a device of its own.

A group has a fixed number of seeds, and is padded if there are too few. So the program that trains a seed does not
depend on the other seeds, and neither do the numbers, to the last bit. Each device has its own copy of the program
rather than a share of a partitioned one: XLA optimizes partitioned programs in a different order, which rounds
differently.

A study on disk is recognised by digests of its data and its program. A different model, loss, optimizer or
set of metrics compiles from a different program, whatever the functions are called; and so does another version of JAX.
"""

import concurrent.futures
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._stages import Ahead
from jaxinit._study._processes import Processes
from jaxinit._study._starts import Draw
from jaxinit._study._train import SEED, State, Training
from jaxinit._typing import Array

_CPU_CHUNK = 2
"""Seeds in a program on a CPU: more of them would share its caches and gain little."""

_SHARE = 0.8
"""How much of the free memory a study may plan for."""

_SEGMENTS = 20
"""About how often training pauses for the progress bar and a checkpoint."""

_LEAST_STEPS = 25
"""About the fewest steps between two pauses; a pause takes some 0.1 ms for each group."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of the programs other than seeds and states."""

    key: Array
    rates: Array
    data: Any
    test_data: Any

    def on(self, device: Any) -> "Inputs":
        """The same on a device."""
        return Inputs(*jax.device_put([getattr(self, field.name) for field in dataclasses.fields(self)], device))


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The programs for parameters of one structure.

    Attributes:
      size: seeds in a group.
      places: a device for each group that is in training at the same time.
      length: steps of one call of `advance`.
      begin: maps parameters of a group to its state and the initial metrics.
      advance: maps (place, state, seeds, first step) to the state some steps later, and the losses.
      finish: maps a state to the final metrics.
    """

    size: int
    places: list[Any]
    length: int
    begin: Callable[[Any], tuple[State, dict[str, Array]]]
    advance: Callable[[int, State, Array, int], tuple[State, Array]]
    finish: Callable[[State], dict[str, Array]]


class Compiler:
    """Makes programs for some devices.

    Args:
      training: what to do with a seed.
      processes: share the study; each draws starts and measures metrics on its first device.
      inputs: the inputs of the programs.
      chunk: seeds in a program; None to choose it here.
      seeds: number of seeds of the study.
      steps: number of training steps.
    """

    def __init__(
        self, training: Training, processes: Processes, inputs: Inputs, chunk: int | None, seeds: int, steps: int
    ) -> None:
        self.training = training
        self.processes, self.devices = processes, processes.devices
        self.inputs = inputs.on(self.devices[0])
        self._chunk = chunk
        self._seeds = seeds
        self._steps = steps
        self._copies = {self.devices[0]: self.inputs}
        self._compiled: dict[Any, Programs] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def drawing(self, draw: Callable[[Array, Any], Any], size: int) -> Callable[[Array], Any]:
        """The program that draws a start for the seeds of a group."""
        inputs = self.inputs

        def group(seeds: Array, key: Array, data: Any) -> Any:
            return jax.vmap(lambda seed: self.training.draw(draw, seed, key, data))(seeds)

        # It runs once for each seed and draws little, so compiling it would take most of its time.
        options = {"xla_backend_optimization_level": 0} if self.training.on_cpu else {}
        program = self._ahead(group, _seeds(size), inputs.key, inputs.data, options=options).on(self.devices[0])
        return lambda seeds: program(seeds, inputs.key, inputs.data)

    def programs(self, params: Any) -> Programs:
        """The programs for one seed's parameters of these shapes."""
        signature = jax.tree.structure(params), tuple((x.shape, x.dtype) for x in jax.tree.leaves(params))
        if signature not in self._compiled:
            self._compiled[signature] = self._fitting(params)
        return self._compiled[signature]

    def close(self) -> None:
        """Stops the threads that compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fitting(self, params: Any) -> Programs:
        """Programs with as many seeds as memory can hold."""
        first, length = self.devices[0], segment(self._steps)
        everywhere = len(self.devices) * self.processes.count
        chunk = self._chunk or (_CPU_CHUNK if self.training.on_cpu else math.ceil(self._seeds / everywhere))
        free = _free_bytes(first)
        while True:
            advancing = self._advancing(params, chunk, length)
            held = bytes_held(advancing.on(first).memory())
            fits = self._chunk is not None or held <= free or chunk == 1
            smaller = self.processes.least(chunk if fits else max(1, min(chunk - 1, int(chunk * free / held))))
            if smaller == chunk:
                break
            chunk = smaller
        at_once = math.ceil(self._seeds / chunk / self.processes.count)
        if self.training.on_cpu:  # CPU devices share one memory, and a small program keeps one core busy
            cores = os.cpu_count() or 1
            at_once = max(1, min(at_once, max(cores, len(self.devices)), int(free / max(held, 1))))
        at_once = self.processes.least(at_once if self.training.on_cpu else min(at_once, len(self.devices)))
        places = [self.devices[i % len(self.devices)] for i in range(at_once)]
        return Programs(
            size=chunk,
            places=places,
            length=length,
            begin=self._begin(params, chunk),
            advance=self._advance(params, chunk, length, places, advancing),
            finish=self._finish(params, chunk),
        )

    def _begin(self, params: Any, size: int) -> Callable[[Any], Any]:
        inputs = self.inputs

        def group(params: Any, rates: Array, test_data: Any) -> Any:
            states = jax.vmap(lambda one: self.training.begin(one, rates))(params)
            # One seed after another: all test samples of all seeds at once may be more than memory can hold.
            return states, jax.lax.map(lambda one: self.training.measure(one, test_data), params)

        program = self._ahead(group, _many(params, size), inputs.rates, inputs.test_data).on(self.devices[0])
        return lambda params: program(params, inputs.rates, inputs.test_data)

    def _finish(self, params: Any, size: int) -> Callable[[State], Any]:
        test_data = self.inputs.test_data

        def group(states: State, test_data: Any) -> Any:
            return jax.lax.map(lambda one: self.training.finish(one, test_data), states)

        program = self._ahead(group, self._states(params, size), test_data).on(self.devices[0])
        return lambda states: program(states, test_data)

    def _advance(
        self, params: Any, size: int, length: int, places: Sequence[Any], advancing: Ahead
    ) -> Callable[[int, State, Array, int], Any]:
        """The programs of all devices, as a function of the index in the list of groups."""
        rest = self._steps % length
        segments = {length: advancing, **({rest: self._advancing(params, size, rest)} if rest else {})}
        programs = {(device, n): part.on(device) for device in dict.fromkeys(places) for n, part in segments.items()}
        for device in places:
            if device not in self._copies:
                self._copies[device] = self.inputs.on(device)

        def run(place: int, state: State, seeds: Array, first: int) -> Any:
            device, n = places[place], min(length, self._steps - first)
            inputs = self._copies[device]
            program = programs[device, n]
            return program(state, seeds, inputs.key, inputs.rates, inputs.data, np.int32(first))

        return run

    def _advancing(self, params: Any, size: int, length: int) -> Ahead:
        def group(states: State, seeds: Array, key: Array, rates: Array, data: Any, first: Array) -> Any:
            def one(state: State, seed: Array) -> Any:
                return self.training.advance(state, seed, key, rates, data, first, length)

            return jax.vmap(one)(states, seeds)

        inputs, first = self.inputs, jax.ShapeDtypeStruct((), np.int32)
        arguments = self._states(params, size), _seeds(size), inputs.key, inputs.rates, inputs.data, first
        return self._ahead(group, *arguments, donated=1)

    def _states(self, params: Any, size: int) -> Any:
        return _many(jax.eval_shape(self.training.begin, params, self.inputs.rates), size)

    def _ahead(self, function: Callable[..., Any], *arguments: Any, **how: Any) -> Ahead:
        return Ahead(function, *jax.tree.map(_shape, arguments), pool=self._pool, **how)


def segment(steps: int) -> int:
    """Steps of one call: a divisor of all steps, if there is one of a suitable size."""
    usual = max(math.ceil(steps / _SEGMENTS), min(steps, _LEAST_STEPS))
    divisors = [n for n in range(math.ceil(usual / 2), min(4 * usual, steps) + 1) if steps % n == 0]
    return min(divisors, key=lambda n: abs(n - usual), default=usual)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _many(shapes: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes)


def _seeds(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), np.uint32)


def bytes_held(memory: Any) -> float:
    """The peak memory of a program, if its backend reports it."""
    if memory is None:
        return 0.0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return float(held - memory.alias_size_in_bytes)


def _free_bytes(device: Any) -> float:
    """The free memory of a device that may be planned for."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return float(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        return _SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system reports it
        return math.inf


def data_digest(*trees: Any) -> str:
    """A short name for the contents of arrays."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(trees):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def program_digest(training: Training, draw: Draw, inputs: Inputs, steps: int) -> str:
    """A short name for the program that draws and trains one seed; it differs for another model, loss or optimizer."""

    def one(seed: Array, key: Array, rates: Array, data: Any, test_data: Any) -> Any:
        params = training.draw(draw, seed, key, data)
        state = training.begin(params, rates)
        state, losses = training.advance(state, seed, key, rates, data, jnp.int32(0), segment(steps))
        return losses, training.measure(params, test_data), training.finish(state, test_data)

    text = jax.jit(one).lower(SEED, inputs.key, inputs.rates, inputs.data, inputs.test_data).as_text()
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
