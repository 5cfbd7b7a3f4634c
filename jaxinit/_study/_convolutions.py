"""Convolutions in the form that a CPU computes fast inside a loop.

XLA passes a convolution to Eigen, on all cores, only if batch, space and channels are in one certain order (NHWC,
HWIO); otherwise it computes it by nested loops, ten to fifty times slower. It reorders others, but only outside of
loops: in `lax.scan` the two convolutions of a gradient stay as they are (XLA's
`conv_canonicalization.cc`). A convolution that is mapped over kernels has groups, which are no faster. So here each
convolution is written in that order, and under `vmap` they run one after the other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._typing import Array


def with_fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, differentiated, with convolutions that a CPU computes fast in a loop."""
    return ir.replacing(function, ir.conv_p, _convolution)


def _convolution(equation: ir.Equation, x: Array, kernel: Array) -> Array:
    one = jax.custom_batching.custom_vmap(lambda x, kernel: _in_order(equation, x, kernel))

    @one.def_vmap
    def each(size: int, batched: Sequence[bool], *operands: Array) -> tuple[Array, bool]:
        found = [one(*(a[i] if many else a for a, many in zip(operands, batched, strict=True))) for i in range(size)]
        return jnp.stack(found), True

    return one(x, kernel)


def _in_order(equation: ir.Equation, x: Array, kernel: Array) -> Array:
    numbers = equation.params["dimension_numbers"]
    # For each: batch, or outputs of a kernel; channels; and the spatial dimensions.
    (batch, channel, *space), (out, into, *window), result = numbers
    last = len(space) + 1
    middle = tuple(range(1, last))
    ordered = type(numbers)((0, last, *middle), (last, last - 1, *range(last - 1)), (0, last, *middle))
    (y,) = dataclasses.replace(equation, params=equation.params | {"dimension_numbers": ordered}).bind(
        lax.transpose(x, (batch, *space, channel)), lax.transpose(kernel, (*window, into, out))
    )
    places = (result[0], *result[2:], result[1])
    return lax.transpose(y, [places.index(i) for i in range(last + 1)])
