"""Functions of one number, or of several at the same position, on samples.

NumPy and SciPy compute them, since JAX would compile each for each shape. If the operands share no random numbers,
the second moment of a product, a sum or a choice is known exactly, and the samples are scaled to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxinit import _program as ir
from jaxinit._arrays import outside_traces
from jaxinit._moments._samples import Samples, aligned

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_jaxvals": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "real": np.real,
    "imag": np.imag,
    "conj": np.conj,
    "complex": lambda real, imaginary: real + 1j * imaginary,
    "sign": np.sign,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "pow": np.power,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": special.expit,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erf_inv": special.erfinv,
    "floor": np.floor,
    "ceil": np.ceil,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases, mode="clip"),
}
BY_PRIMITIVE = {
    ir.primitive(name): function
    for name, function in _FUNCTIONS.items()
    if not isinstance(ir.primitive(name), ir.Absent)
}
"""Primitives that act element by element, and the functions that compute them."""
_SMALL = 0.05
"""The share of the mean square of a sum that an unknown term may have."""


def elementwise(equation: ir.Equation, inputs: Sequence[Samples]) -> Samples:
    """The output of an elementwise primitive."""
    arrays, factors = aligned(inputs)
    marks, known = 0, all(x.known for x in inputs) or (equation.primitive in ir.ADDITIONS and _is_dominated(inputs))
    for x in inputs:
        marks |= x.marks
    with np.errstate(all="ignore"):
        result = Samples(values_of(equation, arrays), factors, marks, known)
    exact = _second_moment(equation, inputs)
    return result if exact is None else result.with_second_moment(exact)


def _is_dominated(inputs: Sequence[Samples]) -> bool:
    """Whether the unknown part of a sum is small relative to the known part."""
    sizes = [(x.second_moment(), x.known) for x in inputs]
    return max((n for n, known in sizes if not known), default=0.0) < _SMALL * max(
        (n for n, k in sizes if k), default=0.0
    )


def values_of(equation: ir.Equation, arrays: list[np.ndarray]) -> np.ndarray:
    """The primitive of an equation applied to arrays."""
    found = BY_PRIMITIVE.get(equation.primitive)
    if equation.primitive is ir.div_p:
        floating = ir.is_floating(equation.outputs[0])
        return np.divide(*arrays) if floating else np.floor_divide(arrays[0], np.where(arrays[1], arrays[1], 1))
    if equation.primitive is ir.integer_pow_p:
        return np.asarray(arrays[0], float) ** equation.params["y"]
    if equation.primitive is ir.convert_p:
        return _converted(arrays[0], equation)
    if equation.primitive in ir.IDENTITIES:
        return arrays[0]
    if found is not None:
        return np.asarray(found(*arrays))
    dtypes = [atom.dtype for atom in equation.inputs]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    wide = [np.broadcast_to(a, shape).astype(d) for a, d in zip(arrays, dtypes, strict=True)]
    (computed,) = outside_traces(lambda: [np.asarray(x) for x in equation.bind_here(*map(jnp.asarray, wide))])
    return computed if computed.dtype.kind in "biu" else computed.astype(np.result_type(computed.dtype, np.float64))


def _converted(x: np.ndarray, equation: ir.Equation) -> np.ndarray:
    target = equation.outputs[0].dtype
    if ir.is_floating(equation.outputs[0]):
        return x if np.iscomplexobj(x) else x.astype(np.float64)
    if target == np.dtype(bool):
        return x != 0
    return np.nan_to_num(x.real).astype(target)


def _second_moment(equation: ir.Equation, inputs: Sequence[Samples]) -> float | None:
    """The exact second moment, if the operands are random and independent of one another."""
    if len(inputs) < 2 or not ir.is_floating(equation.outputs[0]) or not all(x.marks for x in inputs[:2]):
        return None
    first, second = inputs[0], inputs[-1]
    if equation.primitive is ir.select_p:
        which, *cases = inputs
        if any(which.marks & x.marks for x in cases):
            return None
        shares = [float(np.mean(which.values == i)) for i in range(len(cases))]
        return sum(share * x.second_moment() for share, x in zip(shares, cases, strict=True) if share)
    if first.marks & second.marks:
        return None
    if equation.primitive is ir.mul_p:
        return first.second_moment() * second.second_moment()
    if equation.primitive in ir.ADDITIONS:
        sign = -1 if equation.primitive is ir.sub_p else 1
        return first.second_moment() + second.second_moment() + 2 * sign * first.mean() * second.mean()
    return None
