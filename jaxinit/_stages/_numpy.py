"""Primitives computed by NumPy, as XLA computes them up to rounding: those of which measuring consists.

An equation that is not in this table, or of a kind that NumPy computes otherwise, is compiled.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._haar import product

Compute: TypeAlias = Callable[..., Any]
"""The output of an equation, for its inputs; or a list of them, for several."""


def computation(equation: ir.Equation) -> Compute | None:
    """How NumPy computes an equation; None if it does not."""
    make = _TABLE.get(equation.primitive)
    if make is None or any(ir.is_key(atom) for atom in (*equation.inputs, *equation.outputs)):
        return None
    return make(equation)


def program_computation(program: ir.Program) -> Callable[..., list[Any]] | None:
    """How NumPy computes a flat program; None if it does not compute some equation."""
    numbers: dict[ir.Atom, int] = {}
    values: list[Any] = []

    def slot(atom: ir.Atom) -> int:
        if atom not in numbers:
            numbers[atom] = len(values)
            values.append(as_numpy(atom) if isinstance(atom, ir.Constant) else None)
        return numbers[atom]

    inputs = [slot(atom) for atom in program.inputs]
    steps = []
    for equation in program.equations:
        compute = computation(equation)
        if compute is None:
            return None
        taken = [slot(atom) for atom in equation.inputs]
        steps.append((compute, taken, [slot(atom) for atom in equation.outputs], equation.primitive.multiple_results))
    outputs = [slot(atom) for atom in program.outputs]

    def run(*arguments: Any) -> list[Any]:
        environment = list(values)
        for i, argument in zip(inputs, arguments, strict=True):
            environment[i] = argument
        for compute, taken, made, several in steps:
            result = compute(*[environment[i] for i in taken])
            if several:
                for i, x in zip(made, result, strict=True):
                    environment[i] = x
            else:
                environment[made[0]] = result
        return [environment[i] for i in outputs]

    return run


def as_numpy(constant: ir.Constant) -> Any:
    """The value of a constant, in its dtype."""
    return np.asarray(constant.value, constant.dtype)


_TABLE: dict[Any, Callable[[ir.Equation], Compute | None]] = {}


def _rule(*names: str) -> Callable[[Callable[[ir.Equation], Compute | None]], None]:
    def register(make: Callable[[ir.Equation], Compute | None]) -> None:
        _TABLE.update(dict.fromkeys(ir.family(*names), make))

    return register


def _special(name: str, x: Any) -> Any:
    from scipy import special  # here, since few programs need it

    return getattr(special, name)(x).astype(x.dtype)


# Elementwise, the same for all numbers: NumPy's function as it is. Those that are not rounded correctly everywhere, as
# `exp`, are for floats of 32 bits and more alone.

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
    _rule(_name)(functools.partial(_fixed, _function, lambda equation: not _orders_complex(equation)))
for _name, _function in _FLOATING.items():
    _rule(_name)(functools.partial(_fixed, _function, _is_wide))
for _name, _pair in _LOGICAL.items():
    _rule(_name)(functools.partial(_logical, _pair))


@_rule("integer_pow")
def _integer_pow(equation: ir.Equation) -> Compute | None:
    power = equation.params["y"]
    if power == 2:
        return np.square
    return (lambda x: x**power) if power >= 0 else None


@_rule("pow")
def _pow(equation: ir.Equation) -> Compute | None:
    same = equation.inputs[0].dtype == equation.inputs[1].dtype
    return np.power if same and _is_wide(equation) else None


@_rule("sign")
def _sign(equation: ir.Equation) -> Compute | None:
    return None if jnp.issubdtype(equation.inputs[0].dtype, np.complexfloating) else np.sign


@_rule("select_n")
def _select(equation: ir.Equation) -> Compute | None:
    if equation.inputs[0].dtype != np.bool_ or len(equation.inputs) != 3:
        return None
    return lambda which, no, yes: np.where(which, yes, no)


@_rule("clamp")
def _clamp(_: ir.Equation) -> Compute:
    return lambda low, x, high: np.minimum(np.maximum(x, low), high)


@_rule("convert_element_type")
def _convert(equation: ir.Equation) -> Compute | None:
    old, new = equation.inputs[0].dtype, equation.outputs[0].dtype
    narrows = jnp.issubdtype(old, np.inexact) and not jnp.issubdtype(new, np.inexact) and new != np.bool_
    drops = jnp.issubdtype(old, np.complexfloating) and not jnp.issubdtype(new, np.complexfloating)
    if narrows or drops:  # what is out of range is rounded otherwise
        return None
    return lambda x: np.asarray(x).astype(new, copy=False)


# Rearranging.


@_rule("reshape")
def _reshape(equation: ir.Equation) -> Compute | None:
    shape = equation.params["new_sizes"]
    return None if equation.params.get("dimensions") is not None else lambda x: np.reshape(x, shape)


@_rule("squeeze")
def _squeeze(equation: ir.Equation) -> Compute:
    shape = equation.outputs[0].shape
    return lambda x: np.reshape(x, shape)


@_rule("transpose")
def _transpose(equation: ir.Equation) -> Compute:
    return lambda x: np.transpose(x, equation.params["permutation"])


@_rule("broadcast_in_dim")
def _broadcast(equation: ir.Equation) -> Compute | None:
    shape, where = tuple(equation.params["shape"]), equation.params["broadcast_dimensions"]
    if len(equation.inputs) != 1:
        return None
    between = [1] * len(shape)
    for axis, size in zip(where, equation.inputs[0].shape, strict=True):
        between[axis] = size
    return lambda x: np.broadcast_to(np.reshape(x, between), shape)


@_rule("slice")
def _slice(equation: ir.Equation) -> Compute:
    params = equation.params
    strides = params["strides"] or (None,) * len(params["start_indices"])
    cut = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
    return lambda x: x[cut]


@_rule("concatenate")
def _concatenate(equation: ir.Equation) -> Compute:
    return lambda *parts: np.concatenate(parts, axis=equation.params["dimension"])


@_rule("pad")
def _pad(equation: ir.Equation) -> Compute | None:
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        return None
    margins = [(low, high) for low, high, _ in config]
    return lambda x, value: np.pad(x, margins, constant_values=value)


@_rule("split")
def _split(equation: ir.Equation) -> Compute:
    ends = np.cumsum(equation.params["sizes"])[:-1]
    return lambda x: np.split(x, ends, axis=equation.params["axis"])


@_rule("stack")
def _stack(equation: ir.Equation) -> Compute:
    return lambda *parts: np.stack(parts, axis=equation.params["axis"])


@_rule("unstack")
def _unstack(equation: ir.Equation) -> Compute:
    return lambda x: list(np.moveaxis(x, equation.params["axis"], 0))


@_rule("rev")
def _rev(equation: ir.Equation) -> Compute:
    return lambda x: np.flip(x, equation.params["dimensions"])


@_rule("iota")
def _iota(equation: ir.Equation) -> Compute | None:
    params = equation.params
    if equation.inputs:
        return None
    shape, axis = params["shape"], params["dimension"]
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return lambda: np.broadcast_to(np.arange(shape[axis]).astype(params["dtype"]).reshape(ones), shape)


# Reducing. Sums of narrow floats are taken in float32, as XLA takes them.


def _sum(x: Any, axes: tuple[int, ...], dtype: Any) -> Any:
    wide = np.float32 if jnp.issubdtype(dtype, np.floating) and dtype.itemsize < 4 else dtype
    return np.sum(x, axis=axes, dtype=wide).astype(dtype, copy=False)


@_rule("reduce_sum")
def _reduce_sum(equation: ir.Equation) -> Compute:
    axes, dtype = tuple(equation.params["axes"]), equation.outputs[0].dtype
    return lambda x: _sum(x, axes, dtype)


def _reduction(function: Any, equation: ir.Equation) -> Compute | None:
    axes = tuple(equation.params["axes"])
    empty = 0 in equation.inputs[0].shape
    if empty or jnp.issubdtype(equation.inputs[0].dtype, np.complexfloating):
        return None
    return lambda x: function(x, axis=axes)


_rule("reduce_max")(functools.partial(_reduction, np.max))
_rule("reduce_min")(functools.partial(_reduction, np.min))
_rule("reduce_and")(lambda e: _reduction(np.all, e) if e.inputs[0].dtype == np.bool_ else None)
_rule("reduce_or")(lambda e: _reduction(np.any, e) if e.inputs[0].dtype == np.bool_ else None)


@_rule("reduce")
def _reduce(equation: ir.Equation) -> Compute | None:
    """Sums, or maxima, of several arrays, written as one reduction."""
    body = ir.flat_program(equation.params["jaxpr"])
    count = len(equation.inputs) // 2
    primitives = {e.primitive for e in body.equations}
    pairs = [(e.inputs[0], e.inputs[1]) for e in body.equations]
    wanted = list(zip(body.inputs[:count], body.inputs[count:], strict=True))
    if pairs != wanted or list(body.outputs) != [e.outputs[0] for e in body.equations]:
        return None
    axes = tuple(equation.params["dimensions"])

    def run(*operands: Any) -> list[Any]:
        if primitives == {ir.add_p}:
            return [_sum(x, axes, x.dtype) + start for x, start in zip(operands[:count], operands[count:], strict=True)]
        return [
            np.max(x, axis=axes, initial=start) for x, start in zip(operands[:count], operands[count:], strict=True)
        ]

    if primitives not in ({ir.add_p}, {ir.max_p}):
        return None

    return run


@_rule("optimization_barrier")
def _optimization_barrier(_: ir.Equation) -> Compute:
    return lambda *values: list(values)


@_rule("sort")
def _sort(equation: ir.Equation) -> Compute | None:
    axis = equation.params["dimension"]
    if len(equation.inputs) != 1 or not jnp.issubdtype(equation.inputs[0].dtype, np.floating):
        return None
    return lambda x: [np.sort(x, axis=axis)]


@_rule("cumsum")
def _cumsum(equation: ir.Equation) -> Compute | None:
    axis, dtype = equation.params["axis"], equation.outputs[0].dtype
    return None if equation.params["reverse"] else lambda x: np.cumsum(x, axis=axis, dtype=dtype)


@_rule("cumprod")
def _cumprod(equation: ir.Equation) -> Compute | None:
    axis, dtype = equation.params["axis"], equation.outputs[0].dtype
    return None if equation.params["reverse"] else lambda x: np.cumprod(x, axis=axis, dtype=dtype)


# Products.


@_rule("dot_general")
def _dot_general(equation: ir.Equation) -> Compute | None:
    """As a product of matrices, batch dimensions first."""
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = (atom.shape for atom in equation.inputs)
    dtype = equation.outputs[0].dtype
    if any(atom.dtype != dtype for atom in equation.inputs) or dtype not in (np.float32, np.float64):
        return None
    left_free = [a for a in range(len(left)) if a not in (*left_sums, *left_batch)]
    right_free = [a for a in range(len(right)) if a not in (*right_sums, *right_batch)]
    batch = [left[a] for a in left_batch]
    terms = math.prod(left[a] for a in left_sums)
    rows, columns = math.prod(left[a] for a in left_free), math.prod(right[a] for a in right_free)
    left_order, right_order = (*left_batch, *left_free, *left_sums), (*right_batch, *right_sums, *right_free)
    shape = equation.outputs[0].shape

    def run(x: Any, y: Any) -> Any:
        x = np.transpose(x, left_order).reshape([*batch, rows, terms])
        y = np.transpose(y, right_order).reshape([*batch, terms, columns])
        return (np.matmul(x, y) if batch else product(x, y)).reshape(shape)

    return run


def is_small(equation: ir.Equation, most: int) -> bool:
    """Whether an equation takes and gives no more than so many numbers."""
    atoms: Sequence[ir.Atom] = (*equation.inputs, *equation.outputs)
    return sum(math.prod(atom.shape) for atom in atoms) <= most
