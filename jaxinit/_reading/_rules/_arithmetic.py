"""Functions of one number or of several at the same position; sums, products, extremes along dimensions; linear maps.

The role of each dimension of a weight in a product or a convolution is decided by `_geometry`.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence, Segments, added, inhomogeneous, multiplied, shared
from jaxinit._reading._one_hot import NONE, Pattern
from jaxinit._reading._origin import Origin
from jaxinit._reading._rules._rearranging import with_segments
from jaxinit._reading._rules._rule import PrimitiveRule, is_free, register, scale_free


def _no_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    return NONE


# Sums


_GUARD = 1e-3
"""A constant up to this size that is added to a statistic guards a division."""


def _without_guards(equation: ir.Equation, inputs: Sequence[Dependence]) -> list[Dependence]:
    """The operands without zeros, and without the small constants that keep norms of weights from zero."""
    terms = [(x, atom) for x, atom in zip(inputs, equation.inputs, strict=True) if not x.zero]
    statistics = all(not x.origins and x.segments is None for x, _ in terms)
    return [x for x, atom in terms if not (statistics and _is_guard(atom))]


def _is_guard(atom: ir.Atom) -> bool:
    if not isinstance(atom, ir.Constant) or atom.shape or not ir.is_known(atom) or not ir.is_floating(atom):
        return False
    return abs(complex(atom.value)) <= _GUARD


def _sum(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return added(_without_guards(equation, inputs))


def _difference(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    # The rest of 0 - x is x with another sign.
    return inputs[1].negated() if inputs[0].zero and not inputs[1].zero else _sum(equation, inputs)


def _sum_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    """A range of integers stays one when a number is added."""
    return next((x for x, other in zip(inputs, equation.inputs[::-1], strict=True) if other.shape == ()), NONE)


def _negated(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inputs[0].negated()


register(PrimitiveRule(_sum, linear="all", elementwise=True, pattern=_sum_pattern), ir.add_p)
register(PrimitiveRule(_sum, linear="all", elementwise=True, pattern=_no_pattern), ir.add_any_p)
register(PrimitiveRule(_difference, linear="all", elementwise=True, pattern=_no_pattern), ir.sub_p)
register(PrimitiveRule(_sum, linear="all", pattern=_no_pattern), ir.complex_p)
register(PrimitiveRule(_negated, linear="all", elementwise=True, pattern=_no_pattern), ir.neg_p)

# Products


def product(inputs: Sequence[Dependence], shape: tuple[int, ...] | None) -> Dependence:
    """A product adds degrees; an elementwise one, of this shape, keeps the origins of elements."""
    degrees: dict[int, float | None] = {}
    for x in inputs:
        for leaf, degree in x.degrees.items():
            before = degrees.get(leaf, 0.0)
            degrees[leaf] = None if degree is None or before is None else before + degree
    leaves_in = {leaf: sum(leaf in x.degrees for x in inputs) for leaf in degrees}
    origins: dict[int, Origin] = {}
    if shape is not None:
        for x in inputs:
            # A factor may be a number, or have size 1 along a dimension of the product.
            spread = {leaf: o.broadcast(shape, range(len(o.dims))) for leaf, o in multiplied(x.origins).items()}
            origins |= {leaf: o for leaf, o in spread.items() if leaf not in origins and leaves_in[leaf] == 1}
    sums = [x for x in inputs if x.terms]
    terms: tuple[frozenset[int], ...] = ()
    if sums:
        others = frozenset(leaf for x in inputs if x is not sums[0] for leaf, d in x.degrees.items() if d != 0)
        if len(sums) > 1 or any(leaves_in[leaf] > 1 for term in sums[0].terms for leaf in term):
            return inhomogeneous(inputs)
        terms = tuple(term | others for term in sums[0].terms)
    return Dependence(degrees=degrees, origins=origins, terms=terms)


def _multiplied(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    segmented = [x for x in inputs if x.segments is not None]
    if not segmented:
        return product(inputs, equation.outputs[0].shape)
    if not all(is_free(x) for x in inputs if x is not segmented[0]):
        return inhomogeneous(inputs)
    return _scaled_segments(segmented[0].segments)


def _divided(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    if inputs[0].segments is not None and is_free(inputs[1]):
        return _scaled_segments(inputs[0].segments)
    if any(x.segments is not None for x in inputs):
        return inhomogeneous(inputs)
    return product([inputs[0], inputs[1].power(-1.0)], equation.outputs[0].shape)


def _scaled_segments(segments: Segments | None) -> Dependence:
    assert segments is not None
    parts = tuple(part.map(Origin.multiplied) for part in segments.parts)
    return with_segments(dataclasses.replace(segments, parts=parts))


register(PrimitiveRule(_multiplied, linear="each", elementwise=True, pattern=_no_pattern), ir.mul_p)
register(PrimitiveRule(_divided, linear="first", elementwise=True, pattern=_no_pattern), ir.div_p)

# Powers


def _power(exponent: float) -> Callable[[ir.Equation, Sequence[Dependence]], Dependence]:
    return lambda equation, inputs: inputs[0].power(exponent)


def _integer_power(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inputs[0].power(float(equation.params["y"]))


register(PrimitiveRule(_integer_power, elementwise=True, pattern=_no_pattern), ir.integer_pow_p)
for _primitive, _exponent in ((ir.square_p, 2.0), (ir.sqrt_p, 0.5), (ir.rsqrt_p, -0.5)):
    register(PrimitiveRule(_power(_exponent), elementwise=True, pattern=_no_pattern), _primitive)

# Choices


def _extreme(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return shared(_without_guards(equation, inputs)).without_origins()


def _chosen(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    if not is_free(inputs[0]):
        return inhomogeneous(inputs)
    cases = [x for x in inputs[1:] if not x.zero]
    # If one case is zero, the other is multiplied by a mask.
    return cases[0].map(Origin.multiplied) if len(cases) == 1 < len(inputs) - 1 else shared(cases)


register(PrimitiveRule(_extreme, elementwise=True, pattern=_no_pattern), ir.max_p, ir.min_p)
register(PrimitiveRule(_chosen, linear="cases", elementwise=True, pattern=_no_pattern), ir.select_p)


def _absolute(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inputs[0].without_origins() if inputs[0].segments is None else inhomogeneous(inputs)


def _free(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return scale_free(inputs)


def _equal_pattern(equation: ir.Equation, inputs: Sequence[Pattern]) -> Pattern:
    for one, other in (inputs, inputs[::-1]):
        if one.counts is not None and one.counts in other.repeats:
            return Pattern(hot=one.counts)
    return NONE


register(PrimitiveRule(_absolute, elementwise=True, pattern=_no_pattern), ir.abs_p)
register(PrimitiveRule(_free, elementwise=True, pattern=_equal_pattern), ir.eq_p)
_COMPARISONS = ir.SCALE_FREE & ir.ELEMENTWISE - {ir.eq_p}
register(PrimitiveRule(_free, elementwise=True, pattern=_no_pattern), *_COMPARISONS)

# All others: the degree is lost.
_KNOWN = {ir.add_p, ir.sub_p, ir.add_any_p, ir.neg_p, ir.mul_p, ir.div_p, ir.integer_pow_p, ir.square_p, ir.sqrt_p}
_KNOWN |= {ir.rsqrt_p, ir.max_p, ir.min_p, ir.select_p, ir.abs_p, ir.eq_p, *_COMPARISONS, *ir.IDENTITIES}
register(PrimitiveRule(elementwise=True, pattern=_no_pattern), *ir.ELEMENTWISE - _KNOWN)


# Along dimensions


def _mixed(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """Linear in the first operand, whose elements can no longer be distinguished."""
    if inputs[0].segments is not None or not all(is_free(x) for x in inputs[1:]):
        return inhomogeneous(inputs)
    return inputs[0].without_origins()


def _largest(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    """f(s·x) = s·f(x) for s > 0, but not linear."""
    return inputs[0].without_origins() if len(inputs) == 1 and inputs[0].segments is None else inhomogeneous(inputs)


register(
    PrimitiveRule(_mixed, linear="first", pattern=_no_pattern),
    *ir.family("reduce_sum", "cumsum", "real", "imag", "conj", "fft", "reduce_window_sum"),
)
register(
    PrimitiveRule(_largest, pattern=_no_pattern), *ir.family("reduce_max", "reduce_min", "cummax", "cummin", "sort")
)
register(PrimitiveRule(_free, pattern=_no_pattern), *ir.family("argmax", "argmin"))


def _product(equation: ir.Equation, inputs: Sequence[Dependence]) -> Dependence:
    return inhomogeneous(inputs) if any(x.segments is not None for x in inputs) else product(inputs, None)


register(PrimitiveRule(_product, linear="each", pattern=_no_pattern), ir.dot_general_p, ir.conv_p)
