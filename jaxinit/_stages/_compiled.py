"""Compiled stages, each compiled once and kept for all programs."""

import concurrent.futures
import contextlib
import functools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import jax

from jaxinit import _program as ir
from jaxinit._caches import forget_with
from jaxinit._stages._cut import Stage

_T = TypeVar("_T")

_KEPT = 512
"""How many compiled stages are kept, the most recently used ones."""
_FEW = 1 << 24
"""A stage whose equations have fewer output numbers than this is compiled without LLVM's optimizations, in a third of
the time.

Products and convolutions are library calls either way; the rest of such a stage is slower by a tenth of a second at
most (the gradient of a pooling: 7 ns more for each number).
"""
_OF_UNKNOWN_LENGTH = frozenset({ir.scan_p, ir.while_p, ir.cond_p, ir.remat_p})
_UNOPTIMIZED = {"xla_backend_optimization_level": 0}
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
)
"""Settings that change the program that JAX traces a function to."""

_lock = threading.Lock()
_programs: OrderedDict[Hashable, Any] = OrderedDict()
forget_with(_programs.clear)


def kept(key: Hashable, make: Callable[[], _T]) -> _T:
    """The program of a key, made if there is none."""
    found = _programs.get(key)
    made = make() if found is None else found
    with _lock:
        _programs[key] = made
        _programs.move_to_end(key)
        while len(_programs) > _KEPT:
            _programs.popitem(last=False)
    return made


def forget(key: Hashable) -> None:
    """Drops the program of a key, for instance if it cannot be compiled."""
    _programs.pop(key, None)


def settings() -> Hashable:
    """What a compiled program depends on, besides its equations and arguments."""
    return tuple(str(getattr(jax.config, name, None)) for name in _SETTINGS)


class _Compiled:
    """A stage that is being compiled, by another thread."""

    def __init__(self, future: "concurrent.futures.Future[Any]"):
        self._future: Any = future
        self._run: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._run is None:
            self._run, self._future = self._future.result(), None
        return self._run(*arguments)


def compiled(stages: Iterable[Stage], device: Any) -> dict[Stage, Callable[..., Any]]:
    """Compiles the stages that are not yet compiled, several at a time: XLA compiles without Python's lock."""
    found: dict[Stage, Callable[..., Any]] = {}
    about = device, settings()
    with contextlib.ExitStack() as stack:
        pool: list[concurrent.futures.Executor] = []

        def begun(stage: Stage) -> _Compiled:
            if not pool:
                pool.append(concurrent.futures.ThreadPoolExecutor(os.cpu_count()))
                stack.callback(pool[0].shutdown, wait=False)
            return _Compiled(pool[0].submit(_lowered(stage).compile, _UNOPTIMIZED if _is_small(stage) else None))

        for stage in stages:
            begin = functools.partial(begun, stage)
            found[stage] = begin() if stage.key is None else kept((stage.key, about), begin)
    return found


def _number(atom: ir.Atom) -> Any:
    assert isinstance(atom, ir.Constant)
    return atom.value


def _is_small(stage: Stage) -> bool:
    """Whether a stage has few numbers to compute, and none of its equations holds a program that may run for long."""
    if any(equation.primitive in _OF_UNKNOWN_LENGTH for equation in stage.equations):
        return False
    return sum(math.prod(v.shape) for equation in stage.equations for v in equation.outputs) < _FEW


def _lowered(stage: Stage) -> Any:
    return jax.jit(function_of(stage)).lower(*map(ir.shape_of, stage.inputs))


def function_of(stage: Stage) -> Callable[..., list[Any]]:
    equations, inputs, outputs = stage.equations, stage.inputs, stage.outputs

    def run(*values: Any) -> list[Any]:
        environment: dict[ir.Atom, Any] = dict(zip(inputs, values, strict=True))
        for equation in equations:
            taken = [environment[a] if a in environment else _number(a) for a in equation.inputs]
            environment.update(zip(equation.outputs, equation.bind(*taken), strict=True))
        return [environment[v] for v in outputs]

    return run
