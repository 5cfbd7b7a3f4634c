"""The weights that a program makes of leaves, for given values of the leaves: scaled, gathered, normalised, summed.

Only values that depend on no data are computed, before data meets the weight, and through loops slice by slice.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._reading._layers import Analysis, Use, Weight
from jaxinit._reading._rules import rule_of
from jaxinit._typing import Array

_Steps: TypeAlias = Mapping[ir.Scan, int]


def is_made(weight: Weight) -> bool:
    """Whether the weight of a layer is something other than elements of one leaf."""
    component = weight.first_component
    return bool(weight.members) or component.origin is None or not component.origin.exact


def weights_made(analysis: Analysis, weight: Weight, leaves: Sequence[Any]) -> list[list[Array]] | None:
    """For each slice of a weight, in the order of loops over it, the weights that its first layer uses.

    If data picks weights, these are all that it may pick, multiplied by the root mean square of the factors of
    those picked. None if they depend on data in other ways.
    multiplies those picked. None where they depend on more data than that.
    """
    values, use = Made(analysis, leaves), weight.uses[0]
    atoms = [entry.atom for entry in use.entries] if use.lookup is None else [use.lookup.atom]
    loops = values.loops_around(atoms[0])
    walked = loops[len(loops) - len(weight.stack) :] if weight.stack else []
    slices = []
    for steps in itertools.product(*(range(loop.length) for loop in walked)):
        at = dict.fromkeys(loops, 0) | dict(zip(walked, steps, strict=True))
        found = [values.of(atom, at) for atom in atoms]
        factors = values.factors_behind(use, at)
        if factors is None or any(x is None for x in found):
            return None
        for factor in factors:
            found = [x * jnp.sqrt(jnp.mean(jnp.square(jnp.abs(factor)))).astype(x.dtype) for x in found]
        slices.append(found)
    return slices


class Made:
    """Values of a program that depend on no data, computed on demand."""

    def __init__(self, analysis: Analysis, leaves: Sequence[Any]):
        self.analysis = analysis
        self.known: dict[ir.Atom, Any] = dict(zip(analysis.program.inputs, leaves, strict=False))
        self.producer: dict[ir.Atom, ir.Equation] = {}
        self.outside: dict[ir.Atom, tuple[ir.Scan | None, ir.Atom]] = {}
        self.home: dict[ir.Atom, tuple[ir.Scan, ...]] = {}
        self._enter(analysis.program, ())

    def _enter(self, program: ir.Program, loops: tuple[ir.Scan, ...]) -> None:
        self.home.update(dict.fromkeys(program.inputs, loops))
        for equation in program.equations:
            self.producer.update(dict.fromkeys(equation.outputs, equation))
            self.home.update(dict.fromkeys(equation.outputs, loops))
            match equation:
                case ir.Scan():
                    first, second = equation.num_consts, equation.num_consts + equation.num_carry
                    for i, (v, atom) in enumerate(zip(equation.body.inputs, equation.inputs, strict=True)):
                        if not first <= i < second:
                            self.outside[v] = equation if i >= second else None, atom
                    self._enter(equation.body, (*loops, equation))
                case ir.Switch():
                    for branch in equation.branches:
                        for v, atom in zip(branch.inputs, equation.inputs[1:], strict=True):
                            self.outside[v] = None, atom
                        self._enter(branch, loops)
                case ir.While():
                    consts = equation.inputs[equation.condition_consts :]
                    for v, atom in zip(equation.body.inputs[: equation.body_consts], consts, strict=False):
                        self.outside[v] = None, atom
                    self._enter(equation.body, loops)

    def loops_around(self, atom: ir.Atom) -> list[ir.Scan]:
        """The scans in whose bodies a value is computed, outermost first."""
        return list(self.home.get(atom, ()))

    def factors_behind(self, use: Use, steps: _Steps) -> list[Array] | None:
        """The factor of a weight that data has picked; None if it is more than numbers."""
        atom, factors = use.entries[0].atom, []
        while use.lookup is not None and atom not in use.lookup.equation.outputs:
            equation = self.producer[atom]
            primitive, values = equation.primitive, [self.of(a, steps) for a in equation.inputs]
            picked = [a for a, x in zip(equation.inputs, values, strict=True) if x is None]
            others = [jnp.asarray(x) for x in values if x is not None]
            moved = rule_of(equation).rearranges or primitive in (ir.neg_p, *ir.IDENTITIES)
            if len(picked) != 1 or not (primitive in (ir.mul_p, ir.div_p) if others else moved):
                return None
            factors += [1 / x if primitive is ir.div_p else x for x in others]
            (atom,) = picked
        return factors

    def of(self, atom: ir.Atom, steps: _Steps) -> Any:
        """The value of an atom in these steps of the scans around it; None if it depends on data."""
        if isinstance(atom, ir.Constant):
            return atom.value
        if atom in self.known:
            return self.known[atom]
        if self.analysis.of(atom).data and atom not in self.analysis.as_data:
            return None
        if atom in self.outside:
            loop, outer = self.outside[atom]
            value = self.of(outer, steps)
            return value if value is None or loop is None else value[steps[loop]]
        equation = self.producer.get(atom)
        if equation is None:
            return None
        arguments = [self.of(x, steps) for x in equation.inputs]
        if any(x is None for x in arguments):
            return None
        outputs = equation.bind(*arguments)
        if not self.home[atom]:
            self.known.update(zip(equation.outputs, outputs, strict=True))
        return outputs[equation.outputs.index(atom)]  # type: ignore[arg-type]
