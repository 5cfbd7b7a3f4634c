"""Programs: what a function computes, read from its jaxpr once and kept in a form of our own.

Calls (`jit`, `remat`, `custom_jvp`, ...) are inlined, so that a program is one flat list of equations in execution
order; `scan`, `cond` and `while_loop` are equations that hold programs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._program import _primitives as primitives
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A value that the program computes or receives."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value known when the function was traced: a literal, or an array that the function closes over."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(getattr(self.value, "shape", ()))

    @property
    def dtype(self) -> Any:
        """The dtype of the value."""
        return jax.dtypes.result_type(self.value) if not hasattr(self.value, "dtype") else self.value.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        # Literals of a jaxpr are arrays of a special class, which JAX does not pickle.
        return Constant, (np.asarray(self.value) if hasattr(self.value, "dtype") else self.value,)


Atom: TypeAlias = Variable | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Equations in execution order, from inputs to outputs.

    Calls of functions with custom derivatives are inlined like others, and so is what `jax.checkpoint` recomputes
    in the backward pass; `calls` and `recomputed` keep them for those who want to differentiate.
    """

    inputs: tuple[Variable, ...]
    equations: "tuple[Equation, ...]"
    outputs: tuple[Atom, ...]
    calls: "tuple[Call, ...]" = ()
    recomputed: "tuple[Recomputed, ...]" = ()

    @functools.cached_property
    def readers(self) -> "dict[Atom, list[Equation | None]]":
        """The equations that read each value, in order; None stands for the outputs of the program."""
        found: dict[Atom, list[Equation | None]] = {}
        for equation in self.equations:
            for atom in equation.inputs:
                found.setdefault(atom, []).append(equation)
        for atom in self.outputs:
            found.setdefault(atom, []).append(None)
        return found

    @functools.cached_property
    def producers(self) -> "dict[Atom, Equation]":
        """The equation that computes each value."""
        return {v: equation for equation in self.equations for v in equation.outputs}

    @functools.cached_property
    def numbers(self) -> "dict[Equation, int]":
        """The position of each equation."""
        return {equation: i for i, equation in enumerate(self.equations)}

    @functools.cached_property
    def holders(self) -> "tuple[Equation, ...]":
        """The equations that hold programs: loops and branches."""
        return tuple(equation for equation in self.equations if type(equation) is not Equation)


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to inputs."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[Variable, ...]
    context: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with the name of the primitive, which is unpickled to the same, and without the context."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        name = primitives.name_of(fields.pop("primitive"))
        del fields["context"]
        return _unpickled, (type(self), name, fields)

    def bind(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, computed as the traced function would."""
        with self.context.manager:
            return self.bind_here(*values)

    def bind_here(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, on any mesh, not only the one that the function was traced on."""
        params = self.primitive.get_bind_params(self.params)
        results = self.primitive.bind(*values, **params)
        return list(results) if self.primitive.multiple_results else [results]


class _AnyContext:
    """Replaces the context of the trace that an equation came from by that of its use."""

    manager = contextlib.nullcontext()


def _unpickled(kind: type[Equation], name: str, fields: dict[str, Any]) -> Equation:
    return kind(primitive=primitives.primitive(name), context=_AnyContext, **fields)


@dataclasses.dataclass(frozen=True, eq=False)
class Call(Equation):
    """A call of a function with a custom derivative, and the equations that its program was inlined to."""

    inlined: tuple[Equation, ...]
    results: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Recomputed:
    """The equations that an outermost call of `jax.checkpoint` was inlined to, and what it saves."""

    inlined: tuple[Equation, ...]
    policy: Any
    prevent_cse: Any

    def apply(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with these equations recomputed in the backward pass as in the original."""
        found: Callable[..., Any] = jax.checkpoint(function, policy=self.policy, prevent_cse=self.prevent_cse)
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Equation):
    """A `lax.scan`: inputs are constants, initial carries and stacked inputs, in this order.

    The last `appended` stacked inputs are constants of the scan that was traced: see `_stacks`.
    """

    body: Program
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    appended: int = 0

    def bind(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, computed by the scan that was traced."""
        return super().bind(*values[: len(values) - self.appended])


@dataclasses.dataclass(frozen=True, eq=False)
class Switch(Equation):
    """A `lax.cond` or `lax.switch`: the first input is the index of the branch, the others are its operands."""

    branches: tuple[Program, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class While(Equation):
    """A `lax.while_loop`: inputs are constants of the condition, constants of the body, initial carries."""

    condition: Program
    body: Program
    condition_consts: int
    body_consts: int


def run(
    program: Program, values: Sequence[Any], bind: Callable[..., list[Any]] = lambda equation, *v: equation.bind(*v)
) -> list[Any]:
    """The outputs of a program for these inputs, computed equation after equation."""
    known: dict[Atom, Any] = dict(zip(program.inputs, values, strict=True))

    def read(atom: Atom) -> Any:
        return atom.value if isinstance(atom, Constant) else known[atom]

    for equation in program.equations:
        known.update(zip(equation.outputs, bind(equation, *map(read, equation.inputs)), strict=True))
    return [read(atom) for atom in program.outputs]


def is_floating(atom: Atom) -> bool:
    """Whether a value holds real or complex floating-point numbers."""
    return bool(jnp.issubdtype(atom.dtype, jnp.inexact))


def is_integer(atom: Atom) -> bool:
    """Whether a value holds integers; a random key does not."""
    return bool(jnp.issubdtype(atom.dtype, jnp.integer))


def is_key(atom: Atom) -> bool:
    """Whether a value holds random keys, which allow no arithmetic, or another of JAX's extended dtypes."""
    return bool(jnp.issubdtype(atom.dtype, jax.dtypes.extended))


def is_traced(x: Any) -> bool:
    """Whether a value is known only once a transformation has run."""
    return isinstance(x, primitives.Tracer)


def is_known(constant: Constant) -> bool:
    """Whether the elements of a constant are numbers that are available now."""
    here = not is_traced(constant.value) and getattr(constant.value, "is_fully_addressable", True)
    return here and not is_key(constant)


def fills(equation: Equation) -> bool:
    """Whether a lookup returns a number other than zero for indices out of range."""
    value = equation.params["fill_value"]
    # If it fills with NaN, indices are meant to be in range.
    return value is not None and not (value == 0 or value != value)


def entrances(equation: Equation) -> list[list[tuple[Variable, Atom]]]:
    """For each program of a loop or a branch, its inputs that are one value, or one slice of it, in every iteration."""
    match equation:
        case Scan():
            pairs = list(zip(equation.body.inputs, equation.inputs, strict=True))
            return [pairs[: equation.num_consts] + pairs[equation.num_consts + equation.num_carry :]]
        case Switch():
            return [list(zip(branch.inputs, equation.inputs[1:], strict=True)) for branch in equation.branches]
        case While():
            first = equation.condition_consts
            constants = equation.inputs[first : first + equation.body_consts]
            return [list(zip(equation.body.inputs, constants, strict=False))]
    return []


def subprograms(equation: Equation) -> tuple[Program, ...]:
    """The programs that an equation holds."""
    if type(equation) is Equation:
        return ()
    match equation:
        case Scan():
            return (equation.body,)
        case Switch():
            return equation.branches
        case While():
            return (equation.condition, equation.body)
    return ()


def holds_program(equation: Equation) -> bool:
    """Whether a primitive holds a jaxpr that is not read (`shard_map`, kernels)."""
    return not subprograms(equation) and any(True for _ in primitives.jaxprs_in_params(equation.params))


def is_opaque(equation: Equation) -> bool:
    """Whether nothing is known of what a primitive computes: it holds a jaxpr, or is a callback, a foreign call, ..."""
    if equation.primitive in primitives.ELEMENTWISE:
        return False
    return holds_program(equation) or not (subprograms(equation) or equation.primitive in primitives.NAMED)


def goes_forwards(program: Program) -> bool:
    """Whether no equation of a program has only a backward rule, as far as the program can be read."""
    return (
        all(call.primitive is not primitives.custom_vjp_call_p for call in program.calls)
        and not any(holds_program(e) for e in program.equations)
        and all(goes_forwards(inner) for e in program.holders for inner in subprograms(e))
    )


def equations_of(program: Program) -> Iterator[Equation]:
    """All equations of a program and of those it holds, in execution order."""
    for equation in program.equations:
        yield equation
        for inner in subprograms(equation):
            yield from equations_of(inner)
