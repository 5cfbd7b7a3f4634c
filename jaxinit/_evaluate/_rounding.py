"""Values that hold nothing but rounding: what is left of equal numbers once their mean is taken off.

A batch of identical samples in front of a batch normalization leaves x - mean(x), whose entries are the rounding of the
mean and no signal, and whatever is multiplied by them is rounding too. The difference is found where a mean is taken
off, by its size next to that of x, and followed to the layers that take it, into loops and branches and out of them.
Each answer is computed only when a layer or a loop asks for it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._arrays import drawing_dtype, with_automatic_axes
from jaxinit._reading import Analysis, rearrangement, rule_of
from jaxinit._typing import Array

Answer: TypeAlias = Callable[[], Array]
"""Whether a value is rounding alone, asked when it is needed."""

_STEPS = 8
"""Times the square root of the number of terms, by so many roundings a mean may miss."""

_THROUGH_ZERO = ir.family("neg", "abs", "tanh", "sin", "tan", "asin", "atan", "erf", "expm1", "log1p", "sqrt", "cbrt")
_THROUGH_ZERO |= ir.family("sinh", "asinh", "square", "integer_pow", "sign")
"""Functions that are zero at zero."""


class Rounding:
    """Follows values that are rounding alone through one program."""

    def __init__(self, analysis: Analysis, program: ir.Program, known: Mapping[ir.Atom, Answer] = MappingProxyType({})):
        self.analysis = analysis
        self.known: dict[ir.Atom, Answer] = dict(known)
        repeating = (e for e in program.equations if e.primitive is ir.broadcast_p)
        self._repeated: dict[ir.Atom, ir.Atom] = {e.outputs[0]: e.inputs[0] for e in repeating}

    def enters(self, equation: ir.Equation) -> bool:
        """Whether a value that goes into a loop or a branch may be rounding, or one that is made there."""
        if any(atom in self.known for atom in equation.inputs):
            return True
        return any(_takes_off(inner) for inner in ir.subprograms(equation))

    def flags(self, atoms: Iterable[ir.Atom]) -> list[Array]:
        """Whether values are rounding alone, here and now; nothing is said of those that are not followed."""
        return [jnp.asarray(self.known[atom]() if atom in self.known else False) for atom in atoms]

    def found(self, atoms: Iterable[ir.Atom], flags: Iterable[Array]) -> None:
        """Takes note of values of which it is known whether they are rounding alone."""
        self.known.update((atom, _answered(flag)) for atom, flag in zip(atoms, flags, strict=False))

    def within(self, program: ir.Program, flags: Sequence[Array]) -> "Rounding":
        """The values of a loop's or a branch's program, for inputs that are rounding alone or not."""
        return Rounding(self.analysis, program, dict(zip(program.inputs, map(_answered, flags), strict=False)))

    def follow(self, equation: ir.Equation, values: Sequence[Any], results: Sequence[Any]) -> None:
        """Takes note of an equation that has been evaluated, with these values of its inputs and outputs."""
        answer = self._of(equation, values, results)
        if answer is not None:
            self.known.update(dict.fromkeys(equation.outputs, functools.cache(answer)))

    def _of(self, equation: ir.Equation, values: Sequence[Any], results: Sequence[Any]) -> Answer | None:
        primitive, inputs = equation.primitive, equation.inputs
        if primitive is ir.sub_p and (source := self._repeated.get(inputs[1])) is not None and self._is_mean(equation):
            terms = math.prod(inputs[0].shape) // max(math.prod(source.shape), 1)
            before = self._all(inputs, values)
            cancels = functools.partial(_cancels, results[0], values[0], terms)
            return cancels if before is None else lambda: cancels() | before()
        if not any(atom in self.known for atom in inputs):
            return None
        if primitive in (ir.add_p, ir.sub_p, ir.add_any_p, ir.max_p, ir.min_p, ir.concatenate_p):
            return self._all(inputs, values)
        if primitive is ir.select_p:
            return self._all(inputs[1:], values[1:])
        if primitive in (ir.mul_p, ir.dot_general_p, ir.conv_p):
            found = [self.known[atom] for atom in inputs if atom in self.known]
            return lambda: functools.reduce(jnp.logical_or, [ask() for ask in found])
        first = self.known.get(inputs[0])
        passes = primitive in _THROUGH_ZERO or primitive is ir.div_p or rearrangement(equation) is not None
        return first if passes or rule_of(equation).linear == "first" else None

    def _is_mean(self, equation: ir.Equation) -> bool:
        return ir.is_floating(equation.outputs[0]) and all(self.analysis.of(atom).data for atom in equation.inputs)

    def _all(self, atoms: Sequence[ir.Atom], values: Sequence[Any]) -> Answer | None:
        """Whether each of some values is rounding, or zero and no data."""
        answers: list[Answer] = []
        for atom, value in zip(atoms, values, strict=True):
            if atom in self.known:
                answers.append(self.known[atom])
            elif self.analysis.of(atom).data:
                return None
            else:
                answers.append(functools.partial(is_zero, value))
        return lambda: functools.reduce(jnp.logical_and, [ask() for ask in answers])

    def through(self, answer: Answer, bias: Array | None) -> Answer:
        """The answer for a layer's output, given that for its data."""
        return answer if bias is None else functools.cache(lambda: answer() & is_zero(bias))


def _answered(flag: Array) -> Answer:
    return lambda: flag


def _takes_off(program: ir.Program) -> bool:
    """Whether a program, or one that it holds, takes something off that is repeated, such as a mean."""
    repeated = {v for e in program.equations if e.primitive is ir.broadcast_p for v in e.outputs}
    return any(
        (e.primitive is ir.sub_p and e.inputs[1] in repeated) or any(map(_takes_off, ir.subprograms(e)))
        for e in program.equations
    )


def is_zero(x: Any) -> Array:
    """Whether all elements are zero."""
    found: Array = with_automatic_axes(lambda x: jnp.all(x == 0), jnp.asarray(x))
    return found


def _cancels(difference: Array, minuend: Array, terms: int) -> Array:
    """Whether a difference with the mean of so many numbers is as small as the rounding of the mean."""
    dtype = difference.dtype
    wide = drawing_dtype(dtype)
    limit = float(jnp.finfo(dtype).eps) + _STEPS * math.sqrt(terms) * float(jnp.finfo(wide).eps)

    def compared(difference: Array, minuend: Array) -> Array:
        small, large = (jnp.max(jnp.abs(x), initial=0) for x in (difference, minuend))
        return (small.astype(wide) <= limit * large.astype(wide)) & (large > 0)

    found: Array = with_automatic_axes(compared, difference, minuend)
    return found
