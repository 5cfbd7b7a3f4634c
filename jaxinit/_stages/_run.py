"""Running a program stage by stage, or as one that equal functions share."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import jitted_alone
from jaxinit._stages._ahead import as_one, constant
from jaxinit._stages._compiled import compiled, kept, settings
from jaxinit._stages._cut import Hosted, Stage, cut
from jaxinit._stages._hosted import is_hosted, tracing_for_stages
from jaxinit._stages._numpy import program_computation
from jaxinit._stages._waiting import tell

_PLANS = 8
"""For how many kinds of arguments a function keeps plans."""


_UNUSUAL = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_check_tracer_leaks")
"""Settings under which a program is compiled as one."""


def in_stages(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, jitted; its first call is faster if it can be run stage by stage."""
    whole = jax.jit(function)
    shared = _Shared(function)
    plans: OrderedDict[Hashable, Plan | None] = OrderedDict()

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        key = kind_of(arguments)
        if key is None:
            program = shared.program(arguments)
            return whole(*arguments) if program is None else program(arguments)
        if key not in plans:
            plans[key] = plan_of(function, *arguments)
            while len(plans) > _PLANS:
                plans.popitem(last=False)
        plan = plans[key]
        return whole(*arguments) if plan is None else plan.run(*arguments)

    return run


class _Shared:
    """A function as one program, which functions that are traced to equal equations share."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.known: OrderedDict[Hashable, Callable[[Any], Any] | None] = OrderedDict()

    def program(self, arguments: Any) -> Callable[[Any], Any] | None:
        """The program for arguments of this kind; nothing inside a trace, or with debugging settings."""
        leaves, structure = jax.tree.flatten(arguments)
        unusual = any(getattr(jax.config, name, False) for name in _UNUSUAL)
        if unusual or any(ir.is_traced(x) for x in leaves) or not ir.is_outside():
            return None
        meshes = tuple(x.sharding if isinstance(x, jax.Array) else None for x in leaves)
        key = structure, tuple(map(_kind, leaves)), meshes, settings(), jax.sharding.get_abstract_mesh()
        if key not in self.known:
            self.known[key] = self._made(arguments)
            while len(self.known) > _PLANS:
                self.known.popitem(last=False)
        return self.known[key]

    def _made(self, arguments: Any) -> Callable[[Any], Any] | None:
        traced = ir.flat(lambda *arguments: self.function(*arguments), *arguments, placed=True)
        if traced is None:
            return None
        program, structure = traced
        one = as_one(program)
        if one is None or any(a.value.committed for a in _arrays_in(program)):
            return None
        key, whole, own = one
        run = kept(("one program", key, settings()), lambda: jitted_alone(whole))
        return lambda arguments: jax.tree.unflatten(structure, run(*jax.tree.leaves(arguments), *own))


def kind_of(arguments: Any) -> Hashable | None:
    """What a plan depends on; nothing for arguments whose program should be compiled as one."""
    leaves, structure = jax.tree.flatten(arguments)
    device = _device(leaves)
    return None if device is None else (structure, tuple(map(_kind, leaves)), settings(), device)


def plan_of(function: Callable[..., Any], *arguments: Any) -> "Plan | None":
    """How a function is run for arguments of this kind; nothing if it should be run as one program.

    The plan holds nothing of the function except arrays that it closes over.
    """
    device = _device(jax.tree.leaves(arguments))
    if device is None:
        return None
    with tracing_for_stages():
        # Through a function of its own, since JAX keeps the traces of a function.
        traced = ir.flat(lambda *arguments: function(*arguments), *arguments, keep=is_hosted)
    if traced is None or not all(_is_on(device, a.value) for a in _arrays_in(traced[0])):
        return None
    return Plan(traced[0], cut(traced[0]), traced[1], device)


def _arrays_in(program: ir.Program) -> list[ir.Constant]:
    """The arrays that a program closes over."""
    atoms = (*(a for e in program.equations for a in e.inputs), *program.outputs)
    return [a for a in dict.fromkeys(atoms) if isinstance(a, ir.Constant) and isinstance(a.value, jax.Array)]


def _is_on(device: Any, leaf: Any) -> bool:
    """Whether an array is concrete and on this device alone; NumPy arrays will be."""
    if not isinstance(leaf, jax.Array):
        return True
    there = not leaf.is_deleted() and isinstance(leaf.sharding, jax.sharding.SingleDeviceSharding)
    return there and leaf.devices() == {device}


def evaluated(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) of NumPy arrays, now: by NumPy if it can compute everything, otherwise unchanged."""
    try:
        # Not the function itself: JAX asks it for its name, and finding that may evaluate it.
        traced = ir.flat(lambda *values: function(*values), *arguments)
    except jax.errors.JAXTypeError:  # a function that needs its numbers
        traced = None
    compute = None if traced is None else program_computation(traced[0])
    if traced is None or compute is None:
        return function(*map(jnp.asarray, arguments))
    with np.errstate(all="ignore"):
        return jax.tree.unflatten(traced[1], compute(*jax.tree.leaves(arguments)))


def _kind(leaf: Any) -> Hashable:
    aval = jax.typeof(leaf)
    return aval.shape, aval.dtype, bool(getattr(aval, "weak_type", False))


def _device(leaves: Sequence[Any]) -> Any:
    """The CPU device on which all arrays are, or nothing if the program should be compiled as one."""
    if jax.default_backend() != "cpu" or any(getattr(jax.config, name, False) for name in _UNUSUAL):
        return None
    if any(ir.is_traced(x) for x in leaves) or not jax.sharding.get_abstract_mesh().empty or not ir.is_outside():
        return None
    default = getattr(jax.config, "jax_default_device")  # noqa: B009 (attributes unknown to mypy)
    if isinstance(default, str):
        return None
    device = default or jax.local_devices()[0]
    if device.platform != "cpu":
        return None
    return device if all(_is_on(device, leaf) for leaf in leaves) else None


@dataclasses.dataclass
class _Step:
    """One step: what it runs, which values it reads and writes, and which are not needed after it."""

    run: Callable[..., Any]
    hosted: bool
    several: bool
    inputs: list[int]
    outputs: list[int]
    done_with: list[int]


class Plan:
    """A program ready to run."""

    def __init__(self, program: ir.Program, steps: Sequence[Hosted | Stage], structure: Any, device: Any):
        self.structure, self.device = structure, device
        numbers: dict[ir.Atom, int] = {}
        self._values: list[Any] = []

        def slot(atom: ir.Atom) -> int:
            if atom not in numbers:
                numbers[atom] = len(self._values)
                self._values.append(constant(atom) if isinstance(atom, ir.Constant) else None)
            return numbers[atom]

        self.inputs = [slot(atom) for atom in program.inputs]
        stages = compiled([s for s in steps if isinstance(s, Stage)], device)
        self.steps: list[_Step] = []
        for step in steps:
            run = step.compute if isinstance(step, Hosted) else stages[step]
            inputs, outputs = [slot(a) for a in step.inputs], [slot(v) for v in step.outputs]
            several = step.several if isinstance(step, Hosted) else True
            self.steps.append(_Step(run, isinstance(step, Hosted), several, inputs, outputs, []))
        self.outputs = [slot(atom) for atom in program.outputs]
        self.dtypes = [atom.dtype for atom in program.outputs]
        kept = {*self.outputs, *(i for i, x in enumerate(self._values) if x is not None)}
        for s in reversed(self.steps):
            s.done_with = [i for i in dict.fromkeys((*s.inputs, *s.outputs)) if i not in kept]
            kept.update(s.inputs)

    def run(self, *arguments: Any) -> Any:
        """The results for arguments of the kind that the plan was made for."""
        leaves = jax.tree.leaves(arguments)
        values = list(self._values)
        for i, leaf in zip(self.inputs, leaves, strict=True):
            values[i] = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        with np.errstate(all="ignore"):
            for number, step in enumerate(self.steps):
                tell(number, len(self.steps))
                taken = [values[i] for i in step.inputs]
                if step.hosted:
                    results = step.run(*map(np.asarray, taken))
                    results = results if step.several else [results]
                else:
                    results = step.run(*taken)
                for i, x in zip(step.outputs, results, strict=True):
                    values[i] = x
                del taken, results
                for i in step.done_with:
                    values[i] = None
        outputs = self._arrays([values[i] for i in self.outputs])
        if any(isinstance(x, jax.Array) and x.committed for x in leaves):
            outputs = jax.device_put(outputs, self.device)
        return jax.tree.unflatten(self.structure, outputs)

    def _arrays(self, values: list[Any]) -> list[Any]:
        hosted = [i for i, x in enumerate(values) if not isinstance(x, jax.Array)]
        # A copy: a NumPy result may be a view of an array that is still used.
        copies = jax.device_put([np.array(values[i], self.dtypes[i]) for i in hosted])
        for i, x in zip(hosted, copies, strict=True):
            values[i] = x
        return values
