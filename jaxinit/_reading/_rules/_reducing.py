"""Sums, maxima and sorts along dimensions, products that contract some, and linear maps such as Fourier transforms.

Which dimension of a weight does what in a product or a convolution is told by `_geometry`.
"""

from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, inhomogeneous
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._rules._arithmetic import product
from jaxinit._reading._rules._rule import PrimitiveRule, is_free, register, scale_free


def _no_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    return NONE


def _mixed(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """Linear in the first operand, whose elements can no longer be told apart."""
    if inputs[0].segments is not None or not all(is_free(x) for x in inputs[1:]):
        return inhomogeneous(inputs)
    return inputs[0].without_origins()


def _extreme(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """f(s·x) = s·f(x) for s > 0, but not linear."""
    return inputs[0].without_origins() if len(inputs) == 1 and inputs[0].segments is None else inhomogeneous(inputs)


def _free(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return scale_free(inputs)


register(
    PrimitiveRule(_mixed, linear="first", pattern=_no_pattern),
    *ir.family("reduce_sum", "cumsum", "real", "imag", "conj", "fft", "reduce_window_sum"),
)
register(
    PrimitiveRule(_extreme, pattern=_no_pattern), *ir.family("reduce_max", "reduce_min", "cummax", "cummin", "sort")
)
register(PrimitiveRule(_free, pattern=_no_pattern), *ir.family("argmax", "argmin"))


def _product(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inhomogeneous(inputs) if any(x.segments is not None for x in inputs) else product(inputs, None)


register(PrimitiveRule(_product, linear="each", pattern=lambda *_: NONE), ir.dot_general_p, ir.conv_p)
