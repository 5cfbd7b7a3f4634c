"""From a function to its program: JAX traces it, and calls are inlined.

Reading a program creates tens of thousands of objects that live until the end. Python's garbage collector scans all of
them whenever their number has grown by a quarter, in vain: there is nothing to collect. That took a quarter of the
time, so the collector rests meanwhile.
"""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxinit._program import _primitives as primitives
from jaxinit._program._ir import Atom, Call, Constant, Equation, Program, Recomputed, Scan, Switch, Variable, While
from jaxinit._typing import Array

_lock = threading.Lock()
_running = 0
_was_enabled = False


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the collector, in all threads; when the last thread that paused it is done, it is enabled again."""
    global _running, _was_enabled
    with _lock:
        if _running == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _was_enabled:
                gc.enable()


def trace(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of a function; its inputs are the leaves of the arguments."""
    closed = _jaxpr(function, arguments)
    with uncollected():
        return _program(closed)


def as_function(function: Callable[..., Any], *arguments: Any) -> Callable[..., list[Array]]:
    """A function traced once, from the leaves of its arguments to those of its result; its Python runs only once."""
    run: Callable[..., list[Array]] = primitives.jaxpr_as_fun(_jaxpr(function, arguments))
    return run


def _jaxpr(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What JAX traces a function to; with jit disabled, JAX would write out its loops."""
    with jax.disable_jit(False):
        return jax.make_jaxpr(function)(*arguments)


def as_written(function: Callable[..., Any], *arguments: Any) -> tuple[Program, Any]:
    """The program of a function, calls left as calls, and the structure of its results."""
    with jax.disable_jit(False):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr = getattr(closed, "jaxpr", closed)
    environment: dict[Any, Atom] = {v: _variable(v) for v in jaxpr.invars}
    inputs = tuple(environment.values())
    environment.update(zip(jaxpr.constvars, map(Constant, getattr(closed, "consts", ())), strict=True))

    def read(atom: Any) -> Atom:
        return Constant(atom.val) if isinstance(atom, primitives.Literal) else environment[atom]

    equations: list[Equation] = []
    for eqn in jaxpr.eqns:
        taken, outputs = tuple([read(v) for v in eqn.invars]), tuple([_variable(v) for v in eqn.outvars])
        environment.update(zip(eqn.outvars, outputs, strict=True))
        equations.append(Equation(eqn.primitive, eqn.params, taken, outputs, eqn.ctx))
    program = Program(inputs, tuple(equations), tuple(map(read, jaxpr.outvars)))  # type: ignore[arg-type]
    return program, jax.tree.structure(shapes)


def flat(
    function: Callable[..., Any], *arguments: Any, keep: Callable[[Any], bool] = lambda _: False, placed: bool = False
) -> tuple[Program, Any] | None:
    """The program of a function as equations alone, ready to be bound again, and the structure of its results.

    Calls are inlined except for jitted functions whose names are to be kept, and recomputed parts; loops and branches
    stay equations that are not read. Returns nothing if the program has effects, whose order counts, has results of
    weak types, or (unless `placed`) says where its values are.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    program = flat_program(closed, keep)
    if any(x.weak_type for x in jax.tree.leaves(shapes)):
        return None
    places = any(e.primitive in primitives.PLACES for e in program.equations)
    if getattr(closed, "jaxpr", closed).effects or (places and not placed):
        return None
    return program, jax.tree.structure(shapes)


def shape_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a value, for tracing."""
    return jax.ShapeDtypeStruct(atom.shape, atom.dtype)


def flat_program(closed: Any, keep: Callable[[Any], bool] = lambda _: False) -> Program:
    """The same of a program that JAX has traced."""
    inputs = tuple(_variable(v) for v in getattr(closed, "jaxpr", closed).invars)
    equations: list[Equation] = []
    outputs = _flatten(closed, inputs, equations, keep)
    return Program(inputs, tuple(equations), outputs)


def _flatten(
    closed: Any, arguments: Sequence[Atom], equations: list[Equation], keep: Callable[[Any], bool]
) -> tuple[Atom, ...]:
    jaxpr = getattr(closed, "jaxpr", closed)
    environment: dict[Any, Atom] = {}
    environment.update(zip(jaxpr.constvars, map(Constant, getattr(closed, "consts", ())), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Atom:
        return Constant(atom.val) if isinstance(atom, primitives.Literal) else environment[atom]

    for eqn in jaxpr.eqns:
        inputs = tuple(read(v) for v in eqn.invars)
        nowhere = eqn.primitive is primitives.device_put_p and not any(eqn.params["devices"])
        if nowhere or eqn.primitive is primitives.stop_gradient_p:  # derivatives have already been taken
            environment.update(zip(eqn.outvars, inputs, strict=True))
            continue
        named = eqn.primitive is primitives.jit_p and keep(eqn.params["name"])
        if eqn.primitive in primitives.CALLS and not named and eqn.primitive is not primitives.remat_p:
            inner = eqn.params[primitives.CALLS[eqn.primitive]]
            environment.update(zip(eqn.outvars, _flatten(inner, inputs, equations, keep), strict=True))
            continue
        outputs = tuple(_variable(v) for v in eqn.outvars)
        environment.update(zip(eqn.outvars, outputs, strict=True))
        equations.append(Equation(eqn.primitive, eqn.params, inputs, outputs, eqn.ctx))
    return tuple(read(v) for v in jaxpr.outvars)


def _program(closed: Any) -> Program:
    jaxpr = getattr(closed, "jaxpr", closed)
    inputs = tuple(_variable(v) for v in jaxpr.invars)
    equations: list[Equation] = []
    calls: list[Call] = []
    recomputed: list[Recomputed] = []
    outputs = _inline(closed, inputs, equations, calls, recomputed)
    return Program(inputs, tuple(equations), outputs, tuple(calls), tuple(recomputed))


def _variable(var: Any) -> Variable:
    aval = var.aval
    return Variable(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None))


def _inline(
    closed: Any,
    arguments: Sequence[Atom],
    equations: list[Equation],
    calls: list[Call],
    recomputed: list[Recomputed],
) -> tuple[Atom, ...]:
    """Appends the equations of a jaxpr applied to arguments, and the outermost calls; returns its outputs."""
    jaxpr = getattr(closed, "jaxpr", closed)
    consts = getattr(closed, "consts", ())
    environment: dict[Any, Atom] = {}
    environment.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Atom:
        return Constant(atom.val) if isinstance(atom, primitives.Literal) else environment[atom]

    for eqn in jaxpr.eqns:
        inputs = tuple([read(v) for v in eqn.invars])
        if eqn.primitive in primitives.CALLS:
            own, remat = eqn.primitive in primitives.WITH_DERIVATIVES, eqn.primitive is primitives.remat_p
            before = len(equations)
            inner = eqn.params[primitives.CALLS[eqn.primitive]]
            lists = [] if own else calls, [] if own or remat else recomputed
            results = _inline(inner, inputs, equations, *lists)
            if remat and not eqn.params["differentiated"]:
                params = eqn.params
                recomputed.append(Recomputed(tuple(equations[before:]), params["policy"], params["prevent_cse"]))
            if own:
                outputs = tuple(_variable(v) for v in eqn.outvars)
                inlined = tuple(equations[before:])
                calls.append(Call(eqn.primitive, eqn.params, inputs, outputs, eqn.ctx, inlined, results))
            environment.update(zip(eqn.outvars, results, strict=True))
            continue
        outputs = tuple([_variable(v) for v in eqn.outvars])
        environment.update(zip(eqn.outvars, outputs, strict=True))
        if eqn.primitive in primitives.IDENTITIES_OF_MANY:
            equations.extend(_identities(eqn, inputs, outputs))
        else:
            equations.append(_equation(eqn, inputs, outputs))
    return tuple(read(v) for v in jaxpr.outvars)


def _identities(eqn: Any, inputs: tuple[Atom, ...], outputs: tuple[Variable, ...]) -> Iterator[Equation]:
    """One equation for each operand of a primitive that passes on several values unchanged: they are independent."""
    lists = primitives.IDENTITIES_OF_MANY[eqn.primitive]
    for i, (value, output) in enumerate(zip(inputs, outputs, strict=True)):
        params = eqn.params | {name: eqn.params[name][i : i + 1] for name in lists}
        yield Equation(eqn.primitive, params, (value,), (output,), eqn.ctx)


def _equation(eqn: Any, inputs: tuple[Atom, ...], outputs: tuple[Variable, ...]) -> Equation:
    params = eqn.params
    fields = (eqn.primitive, params, inputs, outputs, eqn.ctx)
    if eqn.primitive is primitives.scan_p:
        num_consts, num_carry = _scan_sizes(params, inputs)
        return Scan(*fields, _program(params["jaxpr"]), num_consts, num_carry, params["length"], params["reverse"])
    if eqn.primitive is primitives.cond_p:
        return Switch(*fields, tuple(_program(branch) for branch in params["branches"]))
    if eqn.primitive is primitives.while_p:
        condition, body = _program(params["cond_jaxpr"]), _program(params["body_jaxpr"])
        return While(*fields, condition, body, params["cond_nconsts"], params["body_nconsts"])
    return Equation(*fields)


def _scan_sizes(params: dict[str, Any], inputs: tuple[Atom, ...]) -> tuple[int, int]:
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(list(inputs)).unpack()
    return len(list(consts)), len(list(carry))
