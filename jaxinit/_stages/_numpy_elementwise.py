"""Functions of one number, or of several at the same position, in NumPy, and the table of all such rules."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir

Compute: TypeAlias = Callable[..., Any]
"""The output of an equation, for its inputs; or a list of outputs, if there are several."""

TABLE: dict[Any, Callable[[ir.Equation], Compute | None]] = {}
"""For each primitive a function that returns the computation of an equation, or None if NumPy differs."""


def rule(*names: str) -> Callable[[Callable[[ir.Equation], Compute | None]], None]:
    def register(make: Callable[[ir.Equation], Compute | None]) -> None:
        TABLE.update(dict.fromkeys(ir.family(*names), make))

    return register


def _special(name: str, x: Any) -> Any:
    from scipy import special  # here, since few programs need it

    return getattr(special, name)(x).astype(x.dtype)


# Elementwise, the same for all numbers: NumPy's function unchanged. Functions that are not always rounded correctly,
# such as `exp`, are only for floats of at least 32 bits.

_ELEMENTWISE: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "add_jaxvals": np.add,
    "neg": np.negative,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "square": np.square,
    "is_finite": np.isfinite,
    "real": np.real,
    "imag": np.imag,
    "conj": np.conj,
    "copy": np.asarray,
    "stop_gradient": np.asarray,
}
_FLOATING: dict[str, Any] = {
    "div": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "tanh": np.tanh,
    "floor": np.floor,
    "erf": functools.partial(_special, "erf"),
    "erfc": functools.partial(_special, "erfc"),
    "erf_inv": functools.partial(_special, "erfinv"),
    "logistic": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype),
    "cos": np.cos,
    "sin": np.sin,
    "ceil": np.ceil,
    "atan2": np.arctan2,
}
_LOGICAL: dict[str, tuple[Any, Any]] = {
    "and": (np.logical_and, np.bitwise_and),
    "or": (np.logical_or, np.bitwise_or),
    "xor": (np.logical_xor, np.bitwise_xor),
    "not": (np.logical_not, np.bitwise_not),
}


def _fixed(function: Any, fits: Callable[[ir.Equation], bool], equation: ir.Equation) -> Compute | None:
    return function if fits(equation) else None


def _logical(pair: tuple[Any, Any], equation: ir.Equation) -> Compute:
    of_truths, of_bits = pair
    found: Compute = of_truths if equation.inputs[0].dtype == np.bool_ else of_bits
    return found


_ORDERING = ir.family("max", "min", "lt", "le", "gt", "ge", "conj")


def _orders_complex(equation: ir.Equation) -> bool:
    return equation.primitive in _ORDERING and jnp.issubdtype(equation.inputs[0].dtype, np.complexfloating)


def _is_wide(equation: ir.Equation) -> bool:
    return ir.is_floating(equation.inputs[0]) and equation.inputs[0].dtype.itemsize >= 4


for _name, _function in _ELEMENTWISE.items():
    rule(_name)(functools.partial(_fixed, _function, lambda equation: not _orders_complex(equation)))
for _name, _function in _FLOATING.items():
    rule(_name)(functools.partial(_fixed, _function, _is_wide))
for _name, _pair in _LOGICAL.items():
    rule(_name)(functools.partial(_logical, _pair))


@rule("integer_pow")
def _integer_pow(equation: ir.Equation) -> Compute | None:
    power = equation.params["y"]
    if power == 2:
        return np.square
    return (lambda x: x**power) if power >= 0 else None


@rule("pow")
def _pow(equation: ir.Equation) -> Compute | None:
    same = equation.inputs[0].dtype == equation.inputs[1].dtype
    return np.power if same and _is_wide(equation) else None


@rule("sign")
def _sign(equation: ir.Equation) -> Compute | None:
    return None if jnp.issubdtype(equation.inputs[0].dtype, np.complexfloating) else np.sign


@rule("select_n")
def _select(equation: ir.Equation) -> Compute | None:
    if equation.inputs[0].dtype != np.bool_ or len(equation.inputs) != 3:
        return None
    return lambda which, no, yes: np.where(which, yes, no)


@rule("clamp")
def _clamp(_: ir.Equation) -> Compute:
    return lambda low, x, high: np.minimum(np.maximum(x, low), high)


@rule("convert_element_type")
def _convert(equation: ir.Equation) -> Compute | None:
    old, new = equation.inputs[0].dtype, equation.outputs[0].dtype
    narrows = jnp.issubdtype(old, np.inexact) and not jnp.issubdtype(new, np.inexact) and new != np.bool_
    drops = jnp.issubdtype(old, np.complexfloating) and not jnp.issubdtype(new, np.complexfloating)
    if narrows or drops:  # values out of range are rounded differently
        return None
    return lambda x: np.asarray(x).astype(new, copy=False)
