"""Products that contract dimensions, and convolutions; which dimension of a weight does what in them is `_geometry`."""

from collections.abc import Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, inhomogeneous
from jaxinit._reading._one_hot import NONE
from jaxinit._reading._rules._arithmetic import product
from jaxinit._reading._rules._rule import PrimitiveRule, register


def _product(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inhomogeneous(inputs) if any(x.segments is not None for x in inputs) else product(inputs, None)


register(PrimitiveRule(_product, linear="each", pattern=lambda *_: NONE), ir.dot_general_p, ir.conv_p)
