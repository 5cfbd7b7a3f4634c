"""Steps of a loop that are written out one after another, and the scan that they amount to.

An input that a step does not compute itself comes from the step before (a carry), from elsewhere and always the same (a
constant), or from elsewhere and different in each step (a slice).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives
from jaxinit._typing import Array

_MOVES = frozenset({primitives.slice_p, primitives.dynamic_slice_p, primitives.gather_p, primitives.squeeze_p})
_MOVES |= {primitives.reshape_p, primitives.transpose_p, primitives.broadcast_p, primitives.convert_p}


class Run(NamedTuple):
    """Equations from `start` to `stop`, each of which equals the one that comes `period` later."""

    start: int
    stop: int
    period: int


class Sources:
    """For every value, whether it depends on data, and if not, the first parameter that it depends on."""

    def __init__(self, program: ir.Program, leaf_count: int):
        inputs = enumerate(program.inputs)
        self.data: set[ir.Atom] = {v for i, v in inputs if i >= leaf_count}
        self.leaves: frozenset[ir.Atom] = frozenset(program.inputs[:leaf_count])
        self.leaf: dict[ir.Atom, int] = {v: i for i, v in enumerate(program.inputs[:leaf_count]) if ir.is_floating(v)}
        for equation in program.equations:
            if not self.data.isdisjoint(equation.inputs):
                self.data.update(equation.outputs)
                continue
            leaves = [self.leaf[a] for a in equation.inputs if a in self.leaf]
            if leaves:
                self.leaf.update(dict.fromkeys(equation.outputs, min(leaves)))

    def is_parameter(self, atom: ir.Atom) -> bool:
        """Whether a value depends on parameters and on no data."""
        return atom in self.leaf

    def chooses(self, equation: ir.Equation) -> bool:
        """Whether an equation picks elements of a value at known positions, or computes positions from numbers."""
        if not any(v in self.data or v in self.leaf for v in equation.outputs):
            return True
        return equation.primitive in _MOVES and self.data.isdisjoint(equation.inputs[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Rolled(ir.Scan):
    """A scan that was not traced as one."""

    def bind(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, computed by the equations of the body."""
        first, last = self.num_consts, self.num_consts + self.num_carry

        def step(carry: list[Array], slices: list[Array]) -> tuple[list[Array], list[Array]]:
            results = ir.run(self.body, [*values[:first], *carry, *slices])
            return results[: self.num_carry], results[self.num_carry :]

        start = [jnp.asarray(x) for x in values[first:last]]
        carry, outputs = lax.scan(step, start, list(values[last:]), length=self.length)
        return [*carry, *outputs]


_Where = tuple[int, int]
"""An output of an equation of a step: the number of the equation, and the number of the output."""


@dataclasses.dataclass
class Steps:
    """A run cut into steps.

    Attributes:
      run: the run.
      hoisted: equations that only pick a part of something; they are moved before the loop.
      inner: (equation, input) → the output of the same step that it reads.
      carries: (output of the step before, initial value) → the inputs that read it.
      constants, slices: values from outside the step → the inputs that read them.
    """

    run: Run
    equations: tuple[tuple[ir.Equation, ...], ...]
    hoisted: set[int] = dataclasses.field(default_factory=set)
    inner: dict[_Where, _Where] = dataclasses.field(default_factory=dict)
    carries: dict[tuple[_Where, ir.Atom], list[_Where]] = dataclasses.field(default_factory=dict)
    constants: dict[ir.Atom, list[_Where]] = dataclasses.field(default_factory=dict)
    slices: dict[tuple[ir.Atom, ...], list[_Where]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, program: ir.Program, run: Run, sources: Sources) -> "Steps | None":
        """The steps of a run; None if they do not form one loop over data."""
        starts = range(run.start, run.stop, run.period)
        steps = cls(run, tuple(program.equations[i : i + run.period] for i in starts))
        made: dict[ir.Atom, tuple[int, int, int]] = {
            v: (t, j, o)
            for t, es in enumerate(steps.equations)
            for j, e in enumerate(es)
            for o, v in enumerate(e.outputs)
        }
        for j, alike in enumerate(zip(*steps.equations, strict=True)):
            kinds = [
                steps._take((j, k), atoms, made) for k, atoms in enumerate(zip(*(e.inputs for e in alike), strict=True))
            ]
            if None in kinds:
                return None
            differs = len({repr(e.params) for e in alike}) > 1
            outside = set(kinds) <= {"constant", "slice"}
            if differs and not outside:
                return None
            # If each step picks another part of something, the parts are picked before the loop.
            if differs or (outside and "slice" in kinds and all(sources.chooses(e) for e in alike)):
                steps.hoisted.add(j)
                for e in alike:
                    for v in e.outputs:
                        del made[v]
        return steps if steps._is_recurrence(sources) else None

    def _take(self, at: _Where, atoms: tuple[ir.Atom, ...], made: Mapping[ir.Atom, tuple[int, int, int]]) -> str | None:
        """The way in which an input of an equation is read in all steps; None if the steps differ."""
        places = [made.get(a) for a in atoms]
        second = places[1]
        if second is None:
            if any(places):
                return None
            if all(_is_same(a, atoms[0]) for a in atoms):
                self.constants.setdefault(atoms[0], []).append(at)
                return "constant"
            if len({(a.shape, a.dtype) for a in atoms}) > 1:
                return None
            self.slices.setdefault(atoms, []).append(at)
            return "slice"
        (back, *where) = second
        output = (where[0], where[1])
        if back == 1 and all(place == (t, *output) for t, place in enumerate(places)):
            self.inner[at] = output
            return "inner"
        first = atoms[0]
        same = (first.shape, first.dtype) == (atoms[1].shape, atoms[1].dtype)
        if back == 0 and places[0] is None and same and all(p == (t, *output) for t, p in enumerate(places[1:])):
            self.carries.setdefault((output, first), []).append(at)
            return "carry"
        return None

    def _is_recurrence(self, sources: Sources) -> bool:
        """Whether a state goes from step to step, and new data comes in each; parameters do not change on the way."""
        # Values that only hoisted equations read do not enter the loop.
        for table in (self.constants, self.slices):
            for key, inputs in list(table.items()):
                table[key] = [at for at in inputs if at[0] not in self.hoisted]  # type: ignore[index]
                if not table[key]:  # type: ignore[index]
                    del table[key]  # type: ignore[arg-type]
        if any(sources.is_parameter(a) for atoms in self.slices for a in atoms):
            return False
        new = any(all(a in sources.data and not ir.is_key(a) for a in atoms) for atoms in self.slices)
        return new and self._state_is_multiplied()

    def _state_is_multiplied(self) -> bool:
        """Whether what goes from step to step is more than a sum over them."""
        inputs = {at for (_, start), places in self.carries.items() if ir.is_floating(start) for at in places}
        moved: set[_Where] = set()
        for j, equation in enumerate(self.equations[1]):
            state = [(j, k) in inputs or self.inner.get((j, k)) in moved for k in range(len(equation.inputs))]
            if any(state):
                if equation.primitive in (primitives.mul_p, *primitives.CONTRACTIONS):
                    return True
                moved.update((j, o) for o in range(len(equation.outputs)))
        return False

    def replaced(self, program: ir.Program) -> ir.Program:
        """The program with a scan in place of the run."""
        made = {v for es in self.equations for e in es for v in e.outputs}
        inside = {e for es in self.equations for j, e in enumerate(es) if j not in self.hoisted}
        hoisted = [es[j] for es in self.equations for j in sorted(self.hoisted)]
        used = {a for e in program.equations if e not in inside for a in e.inputs} | set(program.outputs)
        used |= {a for call in program.calls if inside.isdisjoint(call.inlined) for a in (*call.inputs, *call.results)}
        new = [*hoisted, *self._loop(used & made, program)]
        start, stop = self.run.start, self.run.stop
        equations = (*program.equations[:start], *new, *program.equations[stop:])

        def with_loop(inlined: tuple[ir.Equation, ...]) -> tuple[ir.Equation, ...]:
            kept = [e for e in inlined if e not in inside and e not in new]
            return (*kept[:0], *sorted([*kept, *new], key=numbers.__getitem__)) if inside & set(inlined) else inlined

        numbers = {e: i for i, e in enumerate(equations)}
        calls = tuple(c for c in program.calls if inside.isdisjoint(c.inlined))
        around = [r for r in program.recomputed if inside <= set(r.inlined) or inside.isdisjoint(r.inlined)]
        recomputed = tuple(dataclasses.replace(r, inlined=with_loop(r.inlined)) for r in around)
        return dataclasses.replace(program, equations=equations, calls=calls, recomputed=recomputed)

    def _loop(self, used: set[ir.Atom], program: ir.Program) -> Iterator[ir.Equation]:
        """The stacks of slices, the scan over them, and the parts of its outputs that are used."""
        context = self.equations[0][0].context
        length = len(self.equations)
        stacks: list[ir.Atom] = []
        for atoms in self.slices:
            if all(isinstance(a, ir.Constant) for a in atoms):
                stacks.append(ir.Constant(np.stack([np.asarray(a.value, a.dtype) for a in atoms])))  # type: ignore[union-attr]
                continue
            rows = [ir.Variable((1, *a.shape), a.dtype) for a in atoms]
            for atom, row in zip(atoms, rows, strict=True):
                yield _reshaped(atom, row, context)
            stack = ir.Variable((length, *atoms[0].shape), atoms[0].dtype)
            yield ir.Equation(primitives.concatenate_p, {"dimension": 0}, tuple(rows), (stack,), context)
            stacks.append(stack)
        consts = [a for a in self.constants if not isinstance(a, ir.Constant)]
        starts = [start for _, start in self.carries]
        inputs = [ir.Variable(a.shape, a.dtype) for a in (*consts, *starts)]
        inputs += [ir.Variable(atoms[0].shape, atoms[0].dtype) for atoms in self.slices]
        body, where = self._body(inputs, len(consts), program)
        outputs: list[ir.Variable] = []
        after: list[ir.Equation] = []
        updates = [output for output, _ in self.carries]
        last = self.equations[-1]
        taken: set[ir.Atom] = set()
        for j, o in updates:
            v = last[j].outputs[o]
            outputs.append(v if v not in taken else ir.Variable(v.shape, v.dtype))
            taken.add(v)
        collected: list[ir.Atom] = []
        for j in range(self.run.period):
            for o, v in enumerate(last[j].outputs) if j not in self.hoisted else ():
                rows_used = [(t, es[j].outputs[o]) for t, es in enumerate(self.equations)]
                rows_used = [(t, x) for t, x in rows_used if x in used and x not in taken]
                if not rows_used:
                    continue
                collected.append(where[j, o])
                whole = ir.Variable((length, *v.shape), v.dtype)
                outputs.append(whole)
                for t, x in rows_used:
                    row = ir.Variable((1, *x.shape), x.dtype)
                    limits = {"start_indices": (t, *[0] * len(x.shape)), "limit_indices": (t + 1, *x.shape)}
                    params = {**limits, "strides": None}
                    after.append(ir.Equation(primitives.slice_p, params, (whole,), (row,), context))
                    after.append(_reshaped(row, x, context))
        body = dataclasses.replace(body, outputs=(*(where[u] for u in updates), *collected))
        taken_in = (*consts, *starts, *stacks)
        sizes = len(consts), len(starts), length
        yield Rolled(primitives.scan_p, {}, taken_in, tuple(outputs), context, body, *sizes, reverse=False)
        yield from after

    def _body(
        self, inputs: Sequence[ir.Variable], consts: int, program: ir.Program
    ) -> tuple[ir.Program, dict[_Where, ir.Atom]]:
        """One step with inputs of its own, and the outputs of its equations."""
        known: dict[_Where, ir.Atom] = {}
        tables = [at for a, at in self.constants.items() if not isinstance(a, ir.Constant)]
        tables += [*self.carries.values(), *self.slices.values()]
        for v, places in zip(inputs, tables, strict=True):
            known.update(dict.fromkeys(places, v))
        where: dict[_Where, ir.Atom] = {}
        copies: dict[ir.Equation, ir.Equation] = {}
        renamed: dict[ir.Atom, ir.Atom] = {}
        for j, equation in enumerate(self.equations[1]):
            if j in self.hoisted:
                continue
            outputs = tuple(ir.Variable(v.shape, v.dtype) for v in equation.outputs)
            taken = []
            for k, atom in enumerate(equation.inputs):
                mine = where[self.inner[j, k]] if (j, k) in self.inner else known.get((j, k), atom)
                renamed[atom] = mine
                taken.append(mine)
            where.update(((j, o), v) for o, v in enumerate(outputs))
            renamed.update(zip(equation.outputs, outputs, strict=True))
            copies[equation] = dataclasses.replace(equation, inputs=tuple(taken), outputs=outputs)
        found = [_call(c, copies, renamed) for c in program.calls if set(c.inlined) <= copies.keys()]
        calls = [c for c in found if c is not None]
        recomputed = [
            dataclasses.replace(r, inlined=tuple(copies[e] for e in r.inlined))
            for r in program.recomputed
            if set(r.inlined) <= copies.keys()
        ]
        return ir.Program(tuple(inputs), tuple(copies.values()), (), tuple(calls), tuple(recomputed)), where


def _call(
    call: ir.Call, copies: Mapping[ir.Equation, ir.Equation], renamed: Mapping[ir.Atom, ir.Atom]
) -> ir.Call | None:
    """A call of one step, with the variables of the body; None if it reads values that no equation of the step does."""
    if any(isinstance(a, ir.Variable) and a not in renamed for a in (*call.inputs, *call.results)):
        return None
    return dataclasses.replace(
        call,
        inputs=tuple(renamed.get(a, a) for a in call.inputs),
        outputs=tuple(ir.Variable(v.shape, v.dtype) for v in call.outputs),
        inlined=tuple(copies[e] for e in call.inlined),
        results=tuple(renamed.get(a, a) for a in call.results),
    )


def _is_same(a: ir.Atom, b: ir.Atom) -> bool:
    if a is b:
        return True
    if not isinstance(a, ir.Constant) or not isinstance(b, ir.Constant) or not (ir.is_known(a) and ir.is_known(b)):
        return False
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(np.asarray(a.value), np.asarray(b.value))


def _reshaped(atom: ir.Atom, output: ir.Variable, context: Any) -> ir.Equation:
    params = {"new_sizes": output.shape, "dimensions": None, "sharding": None}
    return ir.Equation(primitives.reshape_p, params, (atom,), (output,), context)
