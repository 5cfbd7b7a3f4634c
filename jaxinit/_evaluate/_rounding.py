"""Values that hold nothing but rounding: what is left when equal numbers are subtracted from one another.

A batch of identical samples before a batch normalization leaves x - mean(x), whose entries are the rounding of the
mean, not signal, and anything that is multiplied by them is rounding too. So does x minus anything that equals it. Such
a difference is recognised by its size relative to that of x, and followed to the layers that use it, into and out of
loops and branches. Each answer is computed only when a layer or a loop asks for it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import drawing_dtype, with_automatic_axes
from jaxinit._reading import Analysis, rearrangement, rule_of
from jaxinit._stages import hosted
from jaxinit._typing import Array

Answer: TypeAlias = Callable[[], Array]
"""Whether a value is only rounding, computed when it is needed."""

_Constants: TypeAlias = Mapping[ir.Atom, ir.Constant]

_STEPS = 8
"""A mean may be wrong by this many roundings, times the square root of the number of terms."""
_TERMS = 64
"""The least number of terms of which a value is assumed to be a sum; where a mean is subtracted, they are counted."""
_LEVELS = 8
"""How many equations back sums are looked for."""
_CENTRED = 1e-4
"""The largest sum of numbers that are meant to sum to zero, relative to the sum of their absolute values."""

_THROUGH_ZERO = ir.family("neg", "abs", "tanh", "sin", "tan", "asin", "atan", "erf", "expm1", "log1p", "sqrt", "cbrt")
_THROUGH_ZERO |= ir.family("sinh", "asinh", "square", "integer_pow", "sign")
"""Functions that are zero at zero."""


class Rounding:
    """Follows values that are only rounding through one program."""

    def __init__(
        self,
        analysis: Analysis,
        program: ir.Program,
        known: Mapping[ir.Atom, Answer] = MappingProxyType({}),
        constants: _Constants = MappingProxyType({}),
    ):
        self.analysis = analysis
        self.known: dict[ir.Atom, Answer] = dict(known)
        self.constants = constants
        self._producers: dict[ir.Atom, ir.Equation] = {v: e for e in program.equations for v in e.outputs}
        self._negated = _negated(program)

    def enters(self, equation: ir.Equation) -> bool:
        """Whether an input of a loop or a branch may be rounding, or rounding may arise inside."""
        if any(atom in self.known for atom in equation.inputs):
            return True
        return any(_may_cancel(inner, _entered(equation, self.constants)) for inner in ir.subprograms(equation))

    def flags(self, atoms: Iterable[ir.Atom]) -> list[Array]:
        """Whether values are only rounding, as an array; unknown for values that are not followed."""
        return [jnp.asarray(self.known[atom]() if atom in self.known else False) for atom in atoms]

    def found(self, atoms: Iterable[ir.Atom], flags: Iterable[Array]) -> None:
        """Records values for which it is known whether they are only rounding."""
        self.known.update((atom, _answered(flag)) for atom, flag in zip(atoms, flags, strict=False))

    def within(self, equation: ir.Equation, program: ir.Program, flags: Sequence[Array]) -> "Rounding":
        """The values of a loop's or a branch's program, for inputs that are only rounding or not."""
        known: dict[ir.Atom, Answer] = {v: _answered(x) for v, x in zip(program.inputs, flags, strict=False)}
        return Rounding(self.analysis, program, known, _entered(equation, self.constants))

    def follow(self, equation: ir.Equation, values: Sequence[Any], results: Sequence[Any]) -> None:
        """Records an equation that has been evaluated, with the values of its inputs and outputs."""
        answer = self._of(equation, values, results)
        if answer is not None:
            self.known.update(dict.fromkeys(equation.outputs, functools.cache(answer)))

    def _of(self, equation: ir.Equation, values: Sequence[Any], results: Sequence[Any]) -> Answer | None:
        primitive, inputs = equation.primitive, equation.inputs
        if all(self.analysis.of(atom).data for atom in inputs) and _is_difference(equation, self._negated):
            terms = max(map(self._terms, inputs))
            before = self._all(inputs, values)
            cancels = functools.partial(_cancels, results[0], values, terms)
            return cancels if before is None else lambda: cancels() | before()
        if (centred := _centred_operand(equation, self.constants)) is not None:
            data, size, terms = centred
            known = self.known.get(inputs[data])
            sums = functools.partial(_cancels, results[0], [values[data]], terms, size)
            return sums if known is None else lambda: sums() | known()
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

    def _terms(self, atom: ir.Atom) -> int:
        """How many numbers a value is a sum of, as far as the last equations show."""
        found, level = _TERMS, [atom]
        for _ in range(_LEVELS):
            makers = [e for e in (self._producers.get(a) for a in level) if e is not None]
            found = max([found, *map(_summed, makers)])
            level = list(dict.fromkeys(a for e in makers if not ir.subprograms(e) for a in e.inputs))
        return found

    def _all(self, atoms: Sequence[ir.Atom], values: Sequence[Any]) -> Answer | None:
        """Whether each of some values is rounding, or zero and not data."""
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


def _negated(program: ir.Program) -> set[ir.Atom]:
    """Values that are a negative multiple of this one, possibly rearranged."""
    found: set[ir.Atom] = set()
    for e in program.equations:
        moved = rearrangement(e) is not None or e.primitive in (ir.mul_p, ir.div_p)
        if e.primitive is ir.neg_p or (moved and any(a in found or _is_negative(a) for a in e.inputs)):
            found.update(e.outputs)
    return found


def _is_negative(atom: ir.Atom) -> bool:
    if not isinstance(atom, ir.Constant) or not ir.is_known(atom) or not ir.is_floating(atom):
        return False
    return bool(np.all(np.asarray(atom.value) < 0))


def _is_difference(equation: ir.Equation, negated: Set[ir.Atom]) -> bool:
    """Whether an equation subtracts one variable from another."""
    if len(equation.outputs) != 1 or not ir.is_floating(equation.outputs[0]):
        return False
    if not all(isinstance(atom, ir.Variable) for atom in equation.inputs):
        return False
    adds = equation.primitive in (ir.add_p, ir.add_any_p)
    return equation.primitive is ir.sub_p or (adds and not negated.isdisjoint(equation.inputs))


def _entered(equation: ir.Equation, constants: _Constants) -> _Constants:
    """The known numbers that go unchanged into the programs of a loop or a branch."""
    pairs = [(v, constants.get(a, a)) for entered in ir.entrances(equation) for v, a in entered if v.shape == a.shape]
    return {v: a for v, a in pairs if isinstance(a, ir.Constant)}


def _centred_operand(equation: ir.Equation, constants: _Constants) -> tuple[int, float, int] | None:
    """For a product with known numbers that sum to zero over the contracted axes: which input is the data, and sizes.

    These are the largest sum of absolute values of the numbers, and how many there are in a sum.
    """
    if equation.primitive is not ir.dot_general_p or not ir.is_floating(equation.outputs[0]):
        return None
    for i, atom in enumerate(constants.get(a, a) for a in equation.inputs):
        if isinstance(atom, ir.Constant) and ir.is_known(atom) and isinstance(equation.inputs[1 - i], ir.Variable):
            numbers = np.asarray(atom.value, np.float64)
            rounded = max(_CENTRED, float(jnp.finfo(atom.dtype).eps))
            axes = tuple(equation.params["dimension_numbers"][0][i])
            sums, sizes = np.abs(numbers.sum(axes)), np.abs(numbers).sum(axes)
            if axes and sizes.size and sizes.max() > 0 and (sums <= rounded * sizes).all():
                return 1 - i, float(sizes.max()), math.prod(numbers.shape[a] for a in axes)
    return None


def _summed(equation: ir.Equation) -> int:
    """How many numbers an equation adds for each element of its output."""
    if equation.primitive is ir.dot_general_p:
        axes = equation.params["dimension_numbers"][0][0]
        return math.prod(equation.inputs[0].shape[a] for a in axes)
    if equation.primitive in ir.family("reduce_sum", "reduce_window_sum", "cumsum"):
        return math.prod(equation.inputs[0].shape) // max(math.prod(equation.outputs[0].shape), 1)
    return equation.length if isinstance(equation, ir.Scan) else 1


def _may_cancel(program: ir.Program, constants: _Constants) -> bool:
    """Whether a program, or one inside it, subtracts one variable from another, or multiplies by centred numbers."""
    negated = _negated(program)
    return any(
        _is_difference(e, negated)
        or _centred_operand(e, constants) is not None
        or any(_may_cancel(inner, _entered(e, constants)) for inner in ir.subprograms(e))
        for e in program.equations
    )


def is_zero(x: Any) -> Array:
    """Whether all elements are zero."""
    found: Array = with_automatic_axes(_all_zero, jnp.asarray(x))
    return found


@hosted()
def _all_zero(x: Array) -> Array:
    return jnp.all(x == 0)


def _cancels(difference: Array, operands: Sequence[Array], terms: int, size: float = 1.0) -> Array:
    """Whether a difference is as small as the rounding of its operands, each a sum of so many numbers times `size`."""
    found: Array = with_automatic_axes(functools.partial(_compared, terms, size), difference, *operands)
    return found


@hosted(static_argnums=(0, 1))
def _compared(terms: int, size: float, difference: Array, *operands: Array) -> Array:
    dtype = difference.dtype
    wide = drawing_dtype(dtype)
    limit = 2 * float(jnp.finfo(dtype).eps) + _STEPS * math.sqrt(terms) * float(jnp.finfo(wide).eps)
    small, *sizes = (jnp.max(jnp.abs(x), initial=0).astype(wide) for x in (difference, *operands))
    large = functools.reduce(jnp.maximum, sizes)
    return (small <= limit * size * large) & (large > 0)
