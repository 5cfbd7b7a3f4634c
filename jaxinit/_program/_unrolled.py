"""Scans over weights that are several leaves, read as separate steps.

`scan(body, x, jnp.stack(leaves))` runs over an array that holds a leaf, or some leaves' slices, for each step. Its
steps use different leaves, so each is written out. So is a scan that adds a product with another slice of a weight in
each step, as a convolution of shifted copies does: no step of it is a layer, but all together are.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives

_LONGEST = 64
"""The maximum number of steps of a scan that is written out."""

_MOVES = {primitives.reshape_p, primitives.broadcast_p, primitives.squeeze_p, primitives.transpose_p}
_MOVES |= primitives.IDENTITIES


def unrolled(program: ir.Program, leaf_count: int) -> ir.Program:
    """The same program, with its scans over several of the first `leaf_count` inputs written out."""
    leaves, producers = frozenset(program.inputs[:leaf_count]), program.producers
    several = {e for e in program.holders if isinstance(e, ir.Scan) and _is_of_several(e, producers, leaves)}
    if not several:
        return program
    used = {atom for e in program.equations for atom in e.inputs} | set(program.outputs)
    equations: list[ir.Equation] = []
    calls = list(program.calls)
    for equation in program.equations:
        if isinstance(equation, ir.Scan) and equation in several:
            new, own_calls = _Steps(equation, producers, used).written_out()
            equations.extend(new)
            calls.extend(own_calls)
        else:
            equations.append(equation)
    # A call that holds a loop is differentiated as its inlined equations are.
    calls = [c for c in calls if several.isdisjoint(c.inlined)]
    return dataclasses.replace(program, equations=tuple(equations), calls=tuple(calls))


def _is_of_several(scan: ir.Scan, producers: Mapping[ir.Atom, ir.Equation], leaves: frozenset[ir.Atom]) -> bool:
    if not 1 < scan.length <= _LONGEST:
        return False
    stacked = scan.inputs[scan.num_consts + scan.num_carry :]
    if any(len({_unmoved(p, producers) for p, _ in _pieces(x, producers)} & leaves) > 1 for x in stacked):
        return True
    return _sums_products(scan, {i for i, x in enumerate(stacked) if _unmoved(x, producers) in leaves})


def _unmoved(atom: ir.Atom, producers: Mapping[ir.Atom, ir.Equation]) -> ir.Atom:
    while (equation := producers.get(atom)) is not None and equation.primitive in _MOVES:
        atom = equation.inputs[0]
    return atom


def _pieces(atom: ir.Atom, producers: Mapping[ir.Atom, ir.Equation]) -> list[tuple[ir.Atom, int]]:
    """The parts that a value is concatenated from along its first dimension, and the position where each begins."""
    equation = producers.get(atom)
    if equation is not None and equation.primitive is primitives.concatenate_p and equation.params["dimension"] == 0:
        return [piece for x in equation.inputs for piece in _pieces(x, producers)]
    if equation is not None and equation.primitive is primitives.stack_p and equation.params.get("axis", 0) == 0:
        return [(x, -1) for x in equation.inputs]
    return [(atom, 0)]


def _sums_products(scan: ir.Scan, walked: set[int]) -> bool:
    """Whether each step adds a product with a slice of a leaf to a value that it carries, and nothing else."""
    body, first = scan.body, scan.num_consts
    slices = {body.inputs[first + scan.num_carry + i] for i in walked}
    producers = body.producers
    for i in range(scan.num_carry):
        before, after = body.inputs[first + i], producers.get(body.outputs[i])
        readers = [e for e in body.equations if before in e.inputs]
        if after is None or after.primitive is not primitives.add_p or readers != [after]:
            continue
        (other,) = [x for x in after.inputs if x is not before] or [before]
        product = producers.get(_unmoved(other, producers))
        if product is not None and product.primitive is primitives.mul_p:
            return any(_unmoved(x, producers) in slices for x in product.inputs)
    return False


class _Steps:
    """The steps of a scan, one after another."""

    def __init__(self, scan: ir.Scan, producers: Mapping[ir.Atom, ir.Equation], used: set[ir.Atom]):
        self.scan, self.producers, self.used = scan, producers, used
        self.equations: list[ir.Equation] = []
        self.calls: list[ir.Call] = []

    def written_out(self) -> tuple[list[ir.Equation], list[ir.Call]]:
        """The equations that compute what the scan does, and the calls among them."""
        scan = self.scan
        first, last = scan.num_consts, scan.num_consts + scan.num_carry
        consts, carry, stacked = scan.inputs[:first], scan.inputs[first:last], scan.inputs[last:]
        rows: dict[int, list[ir.Atom]] = {}
        for step in range(scan.length)[:: -1 if scan.reverse else 1]:
            slices = [self._slice(x, step) for x in stacked]
            results, equations, calls = _copy(scan.body, (*consts, *carry, *slices))
            self.equations.extend(equations)
            self.calls.extend(calls)
            carry, rows[step] = results[: scan.num_carry], list(results[scan.num_carry :])
        for output, atom in zip(scan.outputs, carry, strict=False):
            self._add(primitives.copy_p, {}, (atom,), output)
        for i, output in enumerate(scan.outputs[scan.num_carry :]):
            if output in self.used:
                whole = [self._reshaped(rows[step][i], (1, *output.shape[1:])) for step in range(scan.length)]
                self._add(primitives.concatenate_p, {"dimension": 0}, tuple(whole), output)
        return self.equations, self.calls

    def _slice(self, atom: ir.Atom, step: int) -> ir.Atom:
        for piece, start in _pieces(atom, self.producers):
            if start < 0:  # one whole value per step
                if step == 0:
                    return piece
                step -= 1
                continue
            if step < piece.shape[0]:
                row = ir.Variable((1, *piece.shape[1:]), piece.dtype)
                params = {
                    "start_indices": (step, *[0] * (len(piece.shape) - 1)),
                    "limit_indices": (step + 1, *piece.shape[1:]),
                    "strides": None,
                }
                self._add(primitives.slice_p, params, (piece,), row)
                return self._reshaped(row, piece.shape[1:])
            step -= piece.shape[0]
        raise AssertionError(f"{atom} has no slice {step}")

    def _reshaped(self, atom: ir.Atom, sizes: Sequence[int]) -> ir.Variable:
        output = ir.Variable(tuple(sizes), atom.dtype)
        params = {"new_sizes": tuple(sizes), "dimensions": None, "sharding": None}
        self._add(primitives.reshape_p, params, (atom,), output)
        return output

    def _add(
        self, primitive: object, params: Mapping[str, object], inputs: tuple[ir.Atom, ...], output: ir.Variable
    ) -> None:
        self.equations.append(ir.Equation(primitive, dict(params), inputs, (output,), self.scan.context))


def _copy(
    program: ir.Program, arguments: Sequence[ir.Atom]
) -> tuple[tuple[ir.Atom, ...], list[ir.Equation], list[ir.Call]]:
    """The results, the equations and the calls of a program applied to arguments, with variables of their own."""
    known: dict[ir.Atom, ir.Atom] = dict(zip(program.inputs, arguments, strict=True))

    def new(atoms: Sequence[ir.Atom]) -> tuple[ir.Atom, ...]:
        return tuple(known.get(atom, atom) for atom in atoms)

    def fresh(variables: Sequence[ir.Variable]) -> tuple[ir.Variable, ...]:
        made = tuple(ir.Variable(v.shape, v.dtype) for v in variables)
        known.update(zip(variables, made, strict=True))
        return made

    copies: dict[ir.Equation, ir.Equation] = {}
    for equation in program.equations:
        inputs = new(equation.inputs)
        copies[equation] = dataclasses.replace(
            _with_own_programs(equation), inputs=inputs, outputs=fresh(equation.outputs)
        )
    calls = [
        dataclasses.replace(
            call,
            inputs=new(call.inputs),
            outputs=fresh(call.outputs),
            inlined=tuple(copies[e] for e in call.inlined),
            results=new(call.results),
        )
        for call in program.calls
    ]
    return new(program.outputs), list(copies.values()), calls


def _with_own_programs(equation: ir.Equation) -> ir.Equation:
    """An equation, with copies of the programs that it holds."""
    match equation:
        case ir.Scan():
            return dataclasses.replace(equation, body=_copied(equation.body))
        case ir.Switch():
            return dataclasses.replace(equation, branches=tuple(map(_copied, equation.branches)))
        case ir.While():
            return dataclasses.replace(equation, condition=_copied(equation.condition), body=_copied(equation.body))
    return equation


def _copied(program: ir.Program) -> ir.Program:
    inputs = tuple(ir.Variable(v.shape, v.dtype) for v in program.inputs)
    outputs, equations, calls = _copy(program, inputs)
    return ir.Program(inputs, tuple(equations), outputs, tuple(calls))
