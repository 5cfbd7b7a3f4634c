"""Recurrences that a Python loop wrote out step by step, read as the scans that they are.

`for t in range(T): h = tanh(x[:, t] @ w + h @ u)` traces to T copies of the same equations. Steps are found by a weight
that the program multiplies again and again at equal distances. They form one loop if the equations in between are the
same, and fit together as the steps of a scan that reads new data in each step. If a block is applied again and again to
its own output, that is depth, and it is not changed.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

from jaxinit._program import _ir as ir
from jaxinit._program import _primitives as primitives
from jaxinit._program._steps import Run, Sources, Steps

_OFFSETS = 16
"""How many positions are tried at most as the beginning of steps."""


def rolled(program: ir.Program, leaf_count: int) -> ir.Program:
    """The same program, with recurrences replaced by scans; its first `leaf_count` inputs are parameters."""
    sources = Sources(program, leaf_count)
    found: list[Steps] = []
    for run in _runs(program, sources):
        start = max(run.start, found[-1].run.stop) if found else run.start
        found += itertools.islice(_segmented(program, run._replace(start=start), sources), 1)
    # From the last to the first, so that the others keep their positions.
    for steps in reversed(found):
        program = steps.replaced(program)
    return program


def _runs(program: ir.Program, sources: Sources) -> Iterator[Run]:
    """Runs that repeat a product of data with the same weight, in order."""
    equations = program.equations
    groups: dict[Any, list[int]] = collections.defaultdict(list)
    for i, equation in enumerate(equations):
        if equation.primitive in (primitives.dot_general_p, primitives.conv_p):
            weights = [a for a in equation.inputs if sources.is_parameter(a)]
            if len(weights) == 1:
                groups[equation.primitive, sources.leaf[weights[0]], weights[0].shape].append(i)
    signatures: dict[int, Any] = {}

    def alike(i: int, j: int) -> bool:
        for k in (i, j):
            if k not in signatures:
                signatures[k] = _signature(equations[k], sources)
        return bool(signatures[i] == signatures[j])

    found: list[Run] = []
    for places in groups.values():
        for i, j in (*itertools.pairwise(places), *zip(places, places[2:], strict=False)):
            if any(run.start <= i and j < run.stop for run in found):
                continue
            period = j - i
            start, stop = i, i
            while start > 0 and alike(start - 1, start - 1 + period):
                start -= 1
            while stop + period < len(equations) and alike(stop, stop + period):
                stop += 1
            if stop + period - start >= 2 * period:
                found.append(Run(start, stop + period, period))
    yield from sorted(found)


def _signature(equation: ir.Equation, sources: Sources) -> Any:
    """What is the same in every step."""
    if ir.subprograms(equation):
        return equation
    left_out = ("start_indices", "limit_indices") if equation.primitive is primitives.slice_p else ()
    params = repr(sorted((k, repr(v)) for k, v in equation.params.items() if k not in left_out))
    inputs = tuple((a.shape, str(a.dtype), a if a in sources.leaves else None) for a in equation.inputs)
    return equation.primitive, params, inputs, tuple((v.shape, str(v.dtype)) for v in equation.outputs)


def _segmented(program: ir.Program, run: Run, sources: Sources) -> "Iterator[Steps]":
    """The steps of a run, cut where they pass the fewest values to one another."""
    if run.stop - run.start < 2 * run.period:
        return
    left = (run.stop - run.start) % run.period
    found = []
    # It is more common that the first step differs, for instance without a state, than the last one.
    for offset in list(range(left, -1, -1))[:_OFFSETS]:
        steps = Steps.of(program, Run(run.start + offset, run.stop - left + offset, run.period), sources)
        if steps is not None:
            found.append(steps)
    yield from sorted(found, key=lambda steps: len(steps.carries))
