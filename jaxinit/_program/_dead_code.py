"""Programs without equations that no output depends on, in loops and branches too."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives
from jaxinit._program._tracing import trace


def traced_program(function: Callable[..., Any], *arguments: Any) -> ir.Program:
    """The program that JAX traces a function to, without dead code."""
    program = trace(function, *arguments)
    return _without_dead_code(program, [True] * len(program.outputs))[0]


def _without_dead_code(program: ir.Program, live: Sequence[bool]) -> tuple[ir.Program, set[ir.Atom]]:
    """The equations that the `live` outputs depend on, in loops and branches too, and all values that they read.

    Equations with effects (prints, callbacks) are left out of an initialization.
    """
    call_of = {equation: call for call in program.calls for equation in call.inlined}
    needed: set[ir.Atom] = {atom for atom, is_live in zip(program.outputs, live, strict=True) if is_live}
    kept: dict[ir.Equation, ir.Equation] = {}
    for equation in reversed(program.equations):
        if needed.isdisjoint(equation.outputs):
            continue
        alone = type(equation) is ir.Equation
        kept[equation] = equation if alone else _without_dead_outputs(equation, [v in needed for v in equation.outputs])
        needed.update(equation.inputs)
        if equation in call_of:  # a call is made with all its arguments, whichever outputs are needed
            needed.update(call_of[equation].inputs)
    calls = [dataclasses.replace(c, inlined=tuple(kept[e] for e in c.inlined if e in kept)) for c in program.calls]
    recomputed = tuple(
        dataclasses.replace(r, inlined=tuple(kept[e] for e in r.inlined if e in kept)) for r in program.recomputed
    )
    equations, calls = tuple(reversed(kept.values())), [c for c in calls if c.inlined]
    program = dataclasses.replace(program, equations=equations, calls=tuple(calls), recomputed=recomputed)
    return program, needed


def _without_dead_outputs(equation: ir.Equation, live: list[bool]) -> ir.Equation:
    """A loop or branch that does nothing for the outputs that are not live; these outputs stay, but are not used."""
    # Random keys have no zeros.
    live = [a or ir.is_key(v) for a, v in zip(live, equation.outputs, strict=True)]
    match equation:
        case ir.Scan():
            body = _live_body(equation, equation.body, equation.num_consts, equation.num_carry, live)
            return dataclasses.replace(equation, body=body)
        case ir.Switch():
            branches = [_without_dead_code(branch, live)[0] for branch in equation.branches]
            return dataclasses.replace(equation, branches=tuple(_with_zeros(equation, b, live) for b in branches))
        case ir.While():
            condition, read = _without_dead_code(equation.condition, [True])
            carries = condition.inputs[equation.condition_consts :]
            live = [a or v in read for a, v in zip(live, carries, strict=True)]
            body = _live_body(equation, equation.body, equation.body_consts, len(live), live)
            return dataclasses.replace(equation, condition=condition, body=body)
    return equation


def _live_body(equation: ir.Equation, body: ir.Program, first: int, count: int, live: list[bool]) -> ir.Program:
    """The body of a loop; a carry is live too if another iteration computes something live from it."""
    carries = body.inputs[first : first + count]
    while True:
        pruned, read = _without_dead_code(body, live)
        after = [a or v in read for a, v in zip(live, carries, strict=False)] + live[count:]
        if after == live:
            break
        live = after
    outputs = [atom if a else v for atom, a, v in zip(pruned.outputs, live, carries, strict=False)]
    pruned = dataclasses.replace(pruned, outputs=(*outputs, *pruned.outputs[count:]))
    return _with_zeros(equation, pruned, [True] * count + live[count:])


def _with_zeros(equation: ir.Equation, program: ir.Program, live: Sequence[bool]) -> ir.Program:
    """A program of a loop or branch, with zeros for the outputs that are not live."""
    zeros: dict[int, ir.Equation] = {}
    for i, atom in enumerate(program.outputs):
        if not live[i]:
            params = {"shape": atom.shape, "broadcast_dimensions": (), "sharding": None}
            zero, output = ir.Constant(np.zeros((), atom.dtype)), ir.Variable(atom.shape, atom.dtype)
            zeros[i] = ir.Equation(primitives.broadcast_p, params, (zero,), (output,), equation.context)
    outputs = tuple(zeros[i].outputs[0] if i in zeros else atom for i, atom in enumerate(program.outputs))
    return dataclasses.replace(program, equations=(*program.equations, *zeros.values()), outputs=outputs)
