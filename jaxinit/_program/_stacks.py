"""Stacks of weights that a loop indexes by its counter, turned into inputs that the loop scans over.

`w[i]` in step i of a scan of len(w) steps is the slice that the scan would pass to its body if `w` were a stacked
input. It becomes one, so that rules for stacked inputs (a scale for each slice) apply to `lax.fori_loop` too.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives


def with_stacks(program: ir.Program) -> ir.Program:
    """The same program, with each stack that a scan indexes by its counter among the scan's stacked inputs."""
    if not program.holders:
        return program
    return _replaced(program, {e: _rewritten(e, program.producers) for e in program.holders})


def _replaced(program: ir.Program, new: Mapping[ir.Equation, ir.Equation]) -> ir.Program:
    """A program with some equations replaced."""

    def those(equations: tuple[ir.Equation, ...]) -> tuple[ir.Equation, ...]:
        return tuple(new.get(e, e) for e in equations)

    return dataclasses.replace(
        program,
        equations=those(program.equations),
        calls=tuple(dataclasses.replace(c, inlined=those(c.inlined)) for c in program.calls),
        recomputed=tuple(dataclasses.replace(r, inlined=those(r.inlined)) for r in program.recomputed),
    )


def _rewritten(equation: ir.Equation, producers: dict[ir.Atom, ir.Equation]) -> ir.Equation:
    match equation:
        case ir.Scan():
            body = with_stacks(equation.body)
            return _with_stacked_inputs(dataclasses.replace(equation, body=body), producers)
        case ir.Switch():
            return dataclasses.replace(equation, branches=tuple(map(with_stacks, equation.branches)))
        case ir.While():
            return dataclasses.replace(equation, body=with_stacks(equation.body))
    return equation


def _with_stacked_inputs(scan: ir.Scan, producers: dict[ir.Atom, ir.Equation]) -> ir.Scan:
    body = scan.body
    counters = _counters(body, _starts(scan, producers))
    outside = dict(zip(body.inputs[: scan.num_consts], scan.inputs, strict=False))
    slices: dict[ir.Atom, ir.Variable] = {}
    new: dict[ir.Equation, ir.Equation] = {}
    for equation in body.equations:
        if not _picks_slice(equation, counters, scan.length) or equation.inputs[0] not in outside:
            continue
        stack, (output,) = equation.inputs[0], equation.outputs
        one = slices.setdefault(stack, ir.Variable(stack.shape[1:], stack.dtype))
        params = {"new_sizes": output.shape, "dimensions": None, "sharding": None}
        new[equation] = ir.Equation(primitives.reshape_p, params, (one,), (output,), equation.context)
    if not slices:
        return scan
    body = dataclasses.replace(_replaced(body, new), inputs=(*body.inputs, *slices.values()))
    stacks = tuple(outside[v] for v in slices)  # type: ignore[index]
    return dataclasses.replace(scan, body=body, inputs=(*scan.inputs, *stacks), appended=len(stacks))


def _picks_slice(equation: ir.Equation, counters: set[ir.Atom], length: int) -> bool:
    """Whether an equation is w[i], where i is the counter of a loop with one step for each slice of w."""
    if equation.primitive is not primitives.dynamic_slice_p or equation.inputs[1] not in counters:
        return False
    shape = equation.inputs[0].shape
    return shape[0] == length and tuple(equation.params["slice_sizes"]) == (1, *shape[1:])


def _starts(scan: ir.Scan, producers: dict[ir.Atom, ir.Equation]) -> Iterable[ir.Atom]:
    """The inputs of a scan's body that are the number of the slice."""
    first, second = scan.num_consts, scan.num_consts + scan.num_carry
    inner = scan.body.producers
    # A carry that starts at zero and grows by one; in reverse, the last slice would be number zero.
    for i in range(first, second if not scan.reverse else first):
        carry, after = scan.body.inputs[i], inner.get(scan.body.outputs[i - first])
        grows = after is not None and after.primitive is primitives.add_p and after.inputs[0] is carry
        if grows and after is not None and _equals(after.inputs[1], 1) and _equals(scan.inputs[i], 0):
            yield carry
    for v, atom in zip(scan.body.inputs[second:], scan.inputs[second:], strict=True):
        producer = producers.get(atom)
        is_range = producer is not None and producer.primitive is primitives.iota_p and len(atom.shape) == 1
        if is_range or _equals(atom, np.arange(scan.length)):
            yield v


def _counters(body: ir.Program, starts: Iterable[ir.Atom]) -> set[ir.Atom]:
    """All values that equal the counter; indexing asks whether it is negative, which it never is."""
    counters, no = set(starts), set[ir.Atom]()
    for equation in body.equations if counters else ():
        first, *others = equation.inputs
        if first in counters and equation.primitive in primitives.IDENTITIES:
            counters.update(equation.outputs)
        elif first in counters and equation.primitive is primitives.lt_p and _equals(others[0], 0):
            no.update(equation.outputs)
        elif first in no and equation.primitive is primitives.select_p and others[0] in counters:
            counters.update(equation.outputs)
    return counters


def _equals(atom: ir.Atom, value: int | np.ndarray) -> bool:
    """Whether a value is known to be these integers."""
    if not isinstance(atom, ir.Constant) or not ir.is_known(atom) or not ir.is_integer(atom):
        return False
    return np.array_equal(np.asarray(atom.value), value)
