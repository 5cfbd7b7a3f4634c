"""A function with another computation in place of one primitive, in its loops and branches too."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives
from jaxinit._program._tracing import flat_program


def replacing(function: Callable[..., Any], primitive: Any, replacement: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays that computes `replacement(equation, *values)` wherever `function` has that primitive.

    Derivatives have already been taken: functions with custom derivatives are inlined without them.
    """

    def bind(equation: ir.Equation, *values: Any) -> list[Any]:
        if equation.primitive is primitive:
            return [replacement(equation, *values)]
        inner = {name: renewed(x) for name, x in equation.params.items()}
        return dataclasses.replace(equation, params=inner).bind(*values)

    def renewed(x: Any) -> Any:
        if isinstance(x, tuple) and type(x) is tuple:
            return tuple(map(renewed, x))
        if not isinstance(x, primitives.JAXPRS) or not _has(x, primitive):
            return x
        program = flat_program(x)
        avals: list[Any] = [v.aval for v in getattr(x, "jaxpr", x).invars]
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
        made = jax.make_jaxpr(lambda *values: ir.run(program, values, bind))(*shapes)
        return made if hasattr(x, "consts") else made.jaxpr

    def replaced(*arguments: Any) -> Any:
        # Not the function itself, whose trace JAX would keep.
        closed, shapes = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(*arguments)
        results = ir.run(flat_program(closed), jax.tree.leaves(arguments), bind)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return replaced


def _has(jaxpr: Any, primitive: Any) -> bool:
    equations: Sequence[Any] = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return any(
        e.primitive is primitive or any(_has(inner, primitive) for inner in primitives.jaxprs_in_params(e.params))
        for e in equations
    )
