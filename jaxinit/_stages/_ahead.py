"""Programs compiled ahead of time for given devices, each once for all functions that are traced to equal equations.

Arrays that a function closes over become arguments of its program, so functions that differ only in them share it.
"""

import concurrent.futures
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxinit import _program as ir
from jaxinit._stages._compiled import forget, function_of, kept, settings
from jaxinit._stages._cut import whole_stage
from jaxinit._stages._numpy import as_numpy


class Placed:
    """A function of pytrees, compiled for one device, or still compiling."""

    def __init__(self, program: "concurrent.futures.Future[Any]", structure: Any, constants: Sequence[Any]):
        self._program, self._structure, self._constants = program, structure, constants

    def __call__(self, *arguments: Any) -> Any:
        results = self._program.result()(*jax.tree.leaves(arguments), *self._constants)
        return jax.tree.unflatten(self._structure, results)

    def memory(self) -> Any:
        """What XLA reports of its memory."""
        return self._program.result().memory_analysis()


class Ahead:
    """A function, traced for arguments of some shapes, to be compiled for one device or several.

    Args:
      function: what to compile.
      *shapes: its arguments, as pytrees of shapes.
      pool: compiles. Tracing and lowering obey settings of this thread; XLA needs neither these nor Python's lock.
      donated: how many of the arguments, from the first on, are consumed by the call.
      options: for the compiler.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *shapes: Any,
        pool: concurrent.futures.Executor,
        donated: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._pool = pool
        self._options = dict(options or {})
        self._donated = tuple(range(len(jax.tree.leaves(shapes[:donated]))))
        leaves, structure = jax.tree.flatten(shapes)

        def flat(*leaves: Any) -> list[Any]:
            found = function(*jax.tree.unflatten(structure, leaves))
            self._structure = jax.tree.structure(found)
            return [_strong(x) for x in jax.tree.leaves(found)]

        traced = ir.flat(flat, *leaves, placed=True)
        one = None if traced is None else as_one(traced[0])
        self._key: Hashable = None
        self._run: Callable[..., list[Any]] = flat
        self._constants: list[Any] = []
        if one is not None:
            self._key, self._run, self._constants = one
        self._taken = [(x.shape, x.dtype) for x in (*leaves, *self._constants)]

    def on(self, device: Any) -> Placed:
        """The program for a device."""
        key = "ahead", self._key, device, self._donated, tuple(self._options.items()), settings()
        program = self._compiled(device) if self._key is None else kept(key, lambda: self._compiled(device, key))
        return Placed(program, self._structure, jax.device_put(self._constants, device))

    def _compiled(self, device: Any, key: Hashable = None) -> "concurrent.futures.Future[Any]":
        place = SingleDeviceSharding(device)
        shapes = [jax.ShapeDtypeStruct(*taken, sharding=place) for taken in self._taken]
        lowered = jax.jit(self._run, donate_argnums=self._donated, out_shardings=place).lower(*shapes)
        future = self._pool.submit(lowered.compile, compiler_options=self._options or None)
        future.add_done_callback(lambda done: forget(key) if done.cancelled() or done.exception() else None)
        return future


def as_one(program: ir.Program) -> tuple[Hashable, Callable[..., list[Any]], list[Any]] | None:
    """A program with the arrays it closes over as further arguments: its key, its function, and these arguments.

    Returns nothing if the program has no key.
    """
    stage = whole_stage(program)
    if stage.key is None:
        return None
    constants = [a for a in (*stage.inputs, *program.outputs) if isinstance(a, ir.Constant)]
    taken: list[ir.Atom] = [*program.inputs, *dict.fromkeys(constants)]
    numbers: dict[ir.Atom, int] = {a: i for i, a in enumerate((*stage.outputs, *taken))}
    given, wanted = [taken.index(a) for a in stage.inputs], [numbers[a] for a in program.outputs]
    compute = function_of(stage)

    def whole(*values: Any) -> list[Any]:
        known = [*compute(*(values[i] for i in given)), *values]
        return [known[i] for i in wanted]

    own = [constant(a) for a in taken[len(program.inputs) :]]
    return (stage.key, len(taken), tuple(given), tuple(wanted)), whole, own


def constant(atom: ir.Atom) -> Any:
    """The value of a constant, as a JAX or NumPy array."""
    assert isinstance(atom, ir.Constant)
    return atom.value if isinstance(atom.value, jax.Array) else as_numpy(atom)


def _strong(x: Any) -> Any:
    """An array; weak types are only for numbers that are used further in the same program."""
    array = jnp.asarray(x)
    return jax.lax.convert_element_type(array, array.dtype) if jax.typeof(array).weak_type else array
