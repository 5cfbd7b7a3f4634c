"""Rearrangements, reductions and products of arrays, as NumPy computes them."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._haar import product
from jaxinit._stages._numpy_elementwise import Compute, rule

# Rearranging.


@rule("reshape")
def _reshape(equation: ir.Equation) -> Compute | None:
    shape = equation.params["new_sizes"]
    return None if equation.params.get("dimensions") is not None else lambda x: np.reshape(x, shape)


@rule("squeeze")
def _squeeze(equation: ir.Equation) -> Compute:
    shape = equation.outputs[0].shape
    return lambda x: np.reshape(x, shape)


@rule("transpose")
def _transpose(equation: ir.Equation) -> Compute:
    return lambda x: np.transpose(x, equation.params["permutation"])


@rule("broadcast_in_dim")
def _broadcast(equation: ir.Equation) -> Compute | None:
    shape, where = tuple(equation.params["shape"]), equation.params["broadcast_dimensions"]
    if len(equation.inputs) != 1:
        return None
    between = [1] * len(shape)
    for axis, size in zip(where, equation.inputs[0].shape, strict=True):
        between[axis] = size
    return lambda x: np.broadcast_to(np.reshape(x, between), shape)


@rule("slice")
def _slice(equation: ir.Equation) -> Compute:
    params = equation.params
    strides = params["strides"] or (None,) * len(params["start_indices"])
    cut = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
    return lambda x: x[cut]


@rule("concatenate")
def _concatenate(equation: ir.Equation) -> Compute:
    return lambda *parts: np.concatenate(parts, axis=equation.params["dimension"])


@rule("pad")
def _pad(equation: ir.Equation) -> Compute | None:
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        return None
    margins = [(low, high) for low, high, _ in config]
    return lambda x, value: np.pad(x, margins, constant_values=value)


@rule("split")
def _split(equation: ir.Equation) -> Compute:
    ends = np.cumsum(equation.params["sizes"])[:-1]
    return lambda x: np.split(x, ends, axis=equation.params["axis"])


@rule("stack")
def _stack(equation: ir.Equation) -> Compute:
    return lambda *parts: np.stack(parts, axis=equation.params["axis"])


@rule("unstack")
def _unstack(equation: ir.Equation) -> Compute:
    return lambda x: list(np.moveaxis(x, equation.params["axis"], 0))


@rule("rev")
def _rev(equation: ir.Equation) -> Compute:
    return lambda x: np.flip(x, equation.params["dimensions"])


@rule("iota")
def _iota(equation: ir.Equation) -> Compute | None:
    params = equation.params
    if equation.inputs:
        return None
    shape, axis = params["shape"], params["dimension"]
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return lambda: np.broadcast_to(np.arange(shape[axis]).astype(params["dtype"]).reshape(ones), shape)


# Reducing. Sums of narrow floats are computed in float32, as XLA does.


def _sum(x: Any, axes: tuple[int, ...], dtype: Any) -> Any:
    wide = np.float32 if jnp.issubdtype(dtype, np.floating) and dtype.itemsize < 4 else dtype
    return np.sum(x, axis=axes, dtype=wide).astype(dtype, copy=False)


@rule("reduce_sum")
def _reduce_sum(equation: ir.Equation) -> Compute:
    axes, dtype = tuple(equation.params["axes"]), equation.outputs[0].dtype
    return lambda x: _sum(x, axes, dtype)


def _reduction(function: Any, equation: ir.Equation) -> Compute | None:
    axes = tuple(equation.params["axes"])
    empty = 0 in equation.inputs[0].shape
    if empty or jnp.issubdtype(equation.inputs[0].dtype, np.complexfloating):
        return None
    return lambda x: function(x, axis=axes)


rule("reduce_max")(functools.partial(_reduction, np.max))
rule("reduce_min")(functools.partial(_reduction, np.min))
rule("reduce_and")(lambda e: _reduction(np.all, e) if e.inputs[0].dtype == np.bool_ else None)
rule("reduce_or")(lambda e: _reduction(np.any, e) if e.inputs[0].dtype == np.bool_ else None)


@rule("reduce")
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


@rule("optimization_barrier")
def _optimization_barrier(_: ir.Equation) -> Compute:
    return lambda *values: list(values)


@rule("sort")
def _sort(equation: ir.Equation) -> Compute | None:
    axis = equation.params["dimension"]
    if len(equation.inputs) != 1 or not jnp.issubdtype(equation.inputs[0].dtype, np.floating):
        return None
    return lambda x: [np.sort(x, axis=axis)]


@rule("cumsum")
def _cumsum(equation: ir.Equation) -> Compute | None:
    axis, dtype = equation.params["axis"], equation.outputs[0].dtype
    return None if equation.params["reverse"] else lambda x: np.cumsum(x, axis=axis, dtype=dtype)


@rule("cumprod")
def _cumprod(equation: ir.Equation) -> Compute | None:
    axis, dtype = equation.params["axis"], equation.outputs[0].dtype
    return None if equation.params["reverse"] else lambda x: np.cumprod(x, axis=axis, dtype=dtype)


# Products.


@rule("dot_general")
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
