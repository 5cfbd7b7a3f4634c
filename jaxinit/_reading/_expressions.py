"""Elementwise functions as expressions: how one number of a value is computed.

A number is made by steps from the number at the same place of an argument, from known numbers, from random bits and
from parameters. Where the numbers lie and how precisely they are stored is left out, and expressions made of the same
steps are one object: so two values are the same function of the argument if they have the same expression.
"""

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit import _program as ir
from jaxinit._arrays import whole_array
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """The number that the function is of; there is only one, `ARGUMENT`, and it is unpickled as that."""

    degree = 1

    def __reduce__(self) -> str:
        return "ARGUMENT"


@dataclasses.dataclass(frozen=True, eq=False)
class Number:
    """A number that the program holds."""

    value: np.ndarray
    degree = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Bits:
    """Random bits, as many as its dtype holds; equal whenever the same equation draws them."""

    dtype: Any
    degree = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """An element of a leaf of the parameters."""

    leaf: int
    degree = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A primitive applied to expressions.

    Attributes:
      equation: an equation of the program that applies it.
      inputs: what it is applied to.
      degree: 0 if the argument has no influence, 1 if it is only multiplied and added to, 2 for any other function.
    """

    equation: ir.Equation
    inputs: "tuple[Expression, ...]"
    degree: int

    @property
    def dtype(self) -> Any:
        """The dtype of the result, in the program."""
        return self.equation.outputs[0].dtype


Expression: TypeAlias = Argument | Number | Bits | Parameter | Step
ARGUMENT = Argument()


class Expressions:
    """Makes expressions, each once."""

    def __init__(self) -> None:
        self._made: dict[Any, Expression] = {}

    def number(self, value: Any) -> Number:
        """A known number."""
        array = np.asarray(value).reshape(())
        made = self._made.setdefault((array.dtype.str, array.tobytes()), Number(array))
        assert isinstance(made, Number)
        return made

    def parameter(self, leaf: int) -> Parameter:
        """An element of a leaf."""
        made = self._made.setdefault(leaf, Parameter(leaf))
        assert isinstance(made, Parameter)
        return made

    def step(self, equation: ir.Equation, inputs: Sequence[Expression]) -> Expression:
        """An elementwise equation applied to expressions; equations that change no number return them unchanged."""
        if keeps_numbers(equation):
            return inputs[0]
        if equation.primitive in ir.ADDITIONS and isinstance(inputs[1], Number) and not inputs[1].value:
            return inputs[0]
        key = (*signature(equation), *inputs)
        return self._made.setdefault(key, Step(equation, tuple(inputs), _degree(equation, inputs)))


def keeps_numbers(equation: ir.Equation) -> bool:
    """Whether an equation changes only the position of a number and its precision."""
    if equation.primitive is ir.stop_gradient_p:
        return False
    if equation.primitive is ir.broadcast_p:
        return True
    floating = ir.is_floating(equation.inputs[0]) and ir.is_floating(equation.outputs[0])
    return equation.primitive in ir.IDENTITIES and (floating or equation.primitive is not ir.convert_p)


def signature(equation: ir.Equation) -> tuple[Any, ...]:
    """A description of what an equation does, except for the precision of floating-point numbers."""
    if equation.primitive in ir.IDENTITIES:
        params: tuple[Any, ...] = ()
    else:
        params = tuple((name, _hashable(value)) for name, value in equation.params.items())
    kinds = tuple("f" if ir.is_floating(v) else str(v.dtype) for v in equation.outputs)
    return str(equation.primitive), params, kinds


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _degree(equation: ir.Equation, inputs: Sequence[Expression]) -> int:
    degrees = [x.degree for x in inputs]
    if not any(degrees):
        return 0
    primitive = equation.primitive
    floating = ir.is_floating(equation.outputs[0])
    linear = (
        primitive in ir.ADDITIONS
        or primitive in (ir.neg_p, ir.stop_gradient_p)
        or (primitive is ir.mul_p and 0 in degrees)
        or (primitive in (ir.div_p, ir.select_p) and degrees[primitive is ir.div_p] == 0)
    )
    return max(degrees) if linear and floating else 2


def ordered(results: Sequence[Expression], known: Container[Expression] = ()) -> list[Expression]:
    """All parts of some expressions, including themselves, parts first; without the parts of those that are known."""
    found: dict[Expression, None] = {}
    pending: list[tuple[Expression, bool]] = [(x, False) for x in reversed(results)]
    while pending:
        node, entered = pending.pop()
        if node in found:
            continue
        if entered or not isinstance(node, Step) or node in known:
            found[node] = None
            continue
        pending.append((node, True))
        pending.extend((x, False) for x in reversed(node.inputs))
    return list(found)


def reaches(result: Expression, without: Expression, decisions: bool = True) -> bool:
    """Whether the argument goes into an expression other than through one of its parts.

    Args:
      result: the expression.
      without: the part.
      decisions: whether uses that only decide between values count.
    """
    pending, seen = [result], {without}
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is ARGUMENT:
            return True
        if isinstance(node, Step):
            pending.extend(node.inputs[not decisions and node.equation.primitive is ir.select_p :])
    return False


def sources(result: Expression) -> Iterator[Bits | Parameter]:
    """The random bits and parameters that go into an expression."""
    return (x for x in ordered([result]) if isinstance(x, Bits | Parameter))


def evaluate(results: Sequence[Expression], values: Mapping[Expression, Any], dtype: Any = None) -> list[Array]:
    """Evaluates expressions, given values of some of their parts, whose shapes broadcast.

    Args:
      results: the expressions.
      values: the parts that are known, the argument and random numbers among them.
      dtype: of floating-point numbers; None for those of the program.

    Returns:
      One array for each expression.
    """
    known: dict[Expression, Any] = dict(values)

    def as_in(x: Any, stored: Any) -> Any:
        floating = jnp.issubdtype(stored, jnp.floating)
        return jnp.asarray(x, dtype if floating and dtype is not None else stored)

    for node in ordered(results, known):
        if node in known:
            continue
        if isinstance(node, Number):
            known[node] = as_in(node.value, node.value.dtype)
            continue
        assert isinstance(node, Step), "every source has a value"
        equation, stored = node.equation, node.dtype
        inputs = [known[x] for x in node.inputs]
        if equation.primitive is ir.stop_gradient_p:
            known[node] = lax.stop_gradient(inputs[0])
        elif equation.primitive in ir.IDENTITIES:
            known[node] = as_in(inputs[0], stored)
        else:
            # A number may have been read from a value of another dtype.
            inputs = [as_in(x, a.dtype) for x, a in zip(inputs, equation.inputs, strict=True)]
            shape = np.broadcast_shapes(*(jnp.shape(x) for x in inputs))
            known[node] = equation.bind_here(*(jnp.broadcast_to(x, shape) for x in inputs))[0]
    return [known[x] for x in results]


def concrete(leaf: Any) -> np.ndarray | None:
    """The numbers of a leaf, if they are available now."""
    if not isinstance(leaf, np.ndarray | jax.Array) or ir.is_traced(leaf):
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return np.array(whole_array(leaf), np.float64).reshape(-1)
