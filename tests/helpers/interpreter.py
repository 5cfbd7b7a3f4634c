"""An interpreter of jaxprs, independent of the library: loops run in Python, and marked or watched values are recorded.

`mark(name, value)` is the identity with a name. It is an operation of the program like any other, so it works within
scans, branches, jitted and rematerialised functions, and under `vmap`. `evaluate` runs the program equation by
equation and returns what each mark saw, in order of execution. Nothing here comes from the library under test.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Watch = Callable[[Any, Sequence[Any], Sequence[Any]], None]
"""A function of (equation, inputs, outputs), called after each equation that has no program inside."""


def mark(name: str, value: Any) -> Any:
    """The value, recorded under this name when `evaluate` runs the program."""
    return checkpoint_name(value, name)


def _primitive_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """The primitive of the last equation of a function."""
    return jax.make_jaxpr(function)(*arguments).jaxpr.eqns[-1].primitive


_MARK = _primitive_of(lambda x: mark("", x), 1.0)
_SCAN = _primitive_of(lambda x: lax.scan(lambda c, _: (c, None), x, None, length=2), 1.0)
_WHILE = _primitive_of(lambda x: lax.while_loop(lambda c: c < 1, lambda c: c + 1, x), 1.0)
_COND = _primitive_of(lambda x: lax.cond(x > 0, lambda c: c, lambda c: -c, x), 1.0)


def evaluate(
    function: Callable[..., Any], *arguments: Any, watch: Watch | None = None
) -> tuple[Any, dict[str, list[np.ndarray]]]:
    """Runs a function through its program.

    Args:
      function: any function of pytrees of arrays.
      arguments: what to call it with.
      watch: called with each equation and the values of its inputs and outputs.

    Returns:
      What the function returns, and name → the values that marks of this name saw, in order of execution.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    seen: dict[str, list[np.ndarray]] = {}
    outputs = _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), seen, watch)
    return jax.tree.unflatten(jax.tree.structure(shape), outputs), seen


def _run(
    jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], seen: dict[str, list[np.ndarray]], watch: Any
) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _step(equation, inputs, seen, watch)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(equation: Any, inputs: list[Any], seen: dict[str, list[np.ndarray]], watch: Any) -> list[Any]:
    primitive, params = equation.primitive, equation.params

    def call(inner: Any, arguments: Sequence[Any]) -> list[Any]:
        jaxpr, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        return _run(jaxpr, constants, arguments, seen, watch)

    if primitive is _SCAN:
        return _scan(params, inputs, call)
    if primitive is _WHILE:
        return _while(params, inputs, call)
    if primitive is _COND:
        branches = params["branches"]
        return call(branches[int(np.clip(int(inputs[0]), 0, len(branches) - 1))], inputs[1:])
    inner = next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)
    if inner is not None:
        return call(inner, inputs)
    result = primitive.bind(*inputs, **primitive.get_bind_params(params))
    outputs = list(result) if primitive.multiple_results else [result]
    if primitive is _MARK:
        seen.setdefault(params["name"], []).append(np.asarray(outputs[0]))
    if watch is not None:
        watch(equation, inputs, outputs)
    return outputs


def _scan(params: Any, inputs: list[Any], call: Callable[..., list[Any]]) -> list[Any]:
    if "num_consts" in params:
        consts, carries = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.12 the inputs are a tree of (constants, carry, slices)
        consts, carries, _ = (len(list(part)) for part in params["ft_in"].update(list(inputs)).unpack())
    fixed, carry, xs = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
    steps = range(params["length"])
    rows = []
    for i in reversed(steps) if params["reverse"] else steps:
        outputs = call(params["jaxpr"], [*fixed, *carry, *(x[i] for x in xs)])
        carry = outputs[:carries]
        rows.append(outputs[carries:])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *(jax.numpy.stack(column) for column in zip(*rows, strict=True))]


def _while(params: Any, inputs: list[Any], call: Callable[..., list[Any]]) -> list[Any]:
    cond_consts, body_consts = params["cond_nconsts"], params["body_nconsts"]
    for_cond, for_body = inputs[:cond_consts], inputs[cond_consts : cond_consts + body_consts]
    state = inputs[cond_consts + body_consts :]
    while bool(call(params["cond_jaxpr"], [*for_cond, *state])[0]):
        state = call(params["body_jaxpr"], [*for_body, *state])
    return state
