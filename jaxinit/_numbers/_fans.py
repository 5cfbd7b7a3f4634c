"""Fans: how many weights lead into a unit (fan-in) and how many lead out of it (fan-out).

For a kernel of shape (*receptive field, in, out) they are `receptive_field * in` and
`receptive_field * out`. Groups, transposition and batched contractions change the connections of a unit, and are
counted here as the program computes them.
"""

import math
import operator
import re
from typing import NamedTuple

from jaxinit._arrays import canonical_axis, canonical_shape, layout
from jaxinit._typing import Axis, Shape

_INDICES = r"[A-Za-z]*(\.\.\.)?[A-Za-z]*"
_EINSUM = re.compile(rf"{_INDICES}(,{_INDICES})*->{_INDICES}")


class Fans(NamedTuple):
    """A pair (fan_in, fan_out): integers, or floats where input dilation makes them an average."""

    fan_in: int | float
    fan_out: int | float


def fans(
    shape: Shape,
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    *,
    feature_group_count: int = 1,
    transpose: bool = False,
    lhs_dilation: Axis = 1,
) -> Fans:
    r"""Computes the fan-in and fan-out of a weight of this shape.

    .. math::
        \text{fan\_in} = \frac{r \cdot n_\text{in}}{d}, \qquad
        \text{fan\_out} = \frac{r \cdot n_\text{out}}{g}

    with r the receptive field, g the number of feature groups and d the product of the input dilation.

    Args:
      shape: sizes of the weight.
      in_axis: axis or axes contracted with the input. In a grouped convolution it holds in/groups features.
      out_axis: axis or axes of the output features.
      batch_axis: axes along which independent weights are stacked; they count for neither fan.
      feature_group_count: groups of a grouped convolution; depthwise where it equals the input features.
      transpose: whether the kernel is stored as that of the convolution that is transposed,
        (*spatial, out, in): `transpose_kernel=True` in Flax, and every transposed convolution of PyTorch.
        Input and output are exchanged, while `in_axis` and `out_axis` still name the axes as they are stored.
      lhs_dilation: dilation of the input, one number or one for each spatial axis: what Flax's
        ConvTranspose calls `strides`. Each unit then meets only one in that many taps on average, so the fan-in
        may not be an integer.

    Returns:
      `Fans(fan_in, fan_out)`.

    Raises:
      ValueError: the shape has fewer than two dimensions, an axis is out of range or has two roles (but a matrix
        may have in_axis equal to out_axis: the lookup table of an embedding), or the groups do not divide the
        output features.

    Examples:
      >>> import jaxinit
      >>> jaxinit.fans((3, 3, 16, 32))
      Fans(fan_in=144, fan_out=288)
      >>> jaxinit.fans((3, 3, 2, 6), feature_group_count=2)
      Fans(fan_in=18, fan_out=27)
      >>> jaxinit.fans((12, 64, 128), batch_axis=0)  # twelve stacked layers
      Fans(fan_in=64, fan_out=128)

    Reference: LeCun et al., Efficient BackProp, 1998; Glorot & Bengio, 2010.
    """
    axes = layout(shape, in_axis, out_axis, batch_axis)
    receptive_field = axes.size(axes.receptive_axes)
    if axes.is_lookup_table:
        return Fans(receptive_field, receptive_field)
    groups = operator.index(feature_group_count)
    n_in, n_out = axes.size(axes.in_axes), axes.size(axes.out_axes)
    # Stored transposed, the axis that holds all features (not features / groups) is the input's.
    if groups < 1 or n_out % groups:
        raise ValueError(
            f"feature_group_count must divide the {n_out} features on out_axis={out_axis} of the shape "
            f"{axes.shape}, got {feature_group_count}"
        )
    fan_in, fan_out = receptive_field * n_in, receptive_field * n_out // groups
    if transpose:
        fan_in, fan_out = fan_out, fan_in
    dilation = _dilation(lhs_dilation, len(axes.receptive_axes))
    return Fans(fan_in // dilation if fan_in % dilation == 0 else fan_in / dilation, fan_out)


def check_dilation(lhs_dilation: Axis) -> int | tuple[int, ...]:
    """`lhs_dilation` as one integer, or one for each spatial axis.

    Raises:
      TypeError: it is neither.
      ValueError: one is below 1.
    """
    factors = canonical_axis("lhs_dilation", lhs_dilation)
    if min((factors,) if isinstance(factors, int) else factors, default=1) < 1:
        raise ValueError(f"lhs_dilation must be 1 or more, got {lhs_dilation}")
    return factors


def _dilation(lhs_dilation: Axis, spatial_rank: int) -> int:
    """The product over the spatial axes."""
    factors = check_dilation(lhs_dilation)
    if isinstance(factors, int):
        return int(factors**spatial_rank)
    if len(factors) != spatial_rank:
        raise ValueError(
            f"lhs_dilation={lhs_dilation} must be one number or one for each of the {spatial_rank} "
            "receptive-field axes of the kernel"
        )
    return math.prod(factors)


def einsum_fans(equation: str, shape: Shape, *, operand: int = -1) -> Fans:
    """Computes the fan-in and fan-out of a weight used in an einsum.

    An index of the weight that the output does not have is summed over and counts for the fan-in. An index that only
    the weight and the output have counts for the fan-out. An index that the weight, the output and another operand
    share is a batch of independent weights and counts for neither.

    Args:
      equation: an einsum with explicit output, `"...a,abc->...bc"`.
      shape: sizes of the weight.
      operand: which operand is the weight, counted from the left or, if negative, from the right.

    Returns:
      `Fans(fan_in, fan_out)`.

    Raises:
      ValueError: the equation has no output, repeats an index in the weight, or does not fit the shape.

    Examples:
      >>> import jaxinit
      >>> jaxinit.einsum_fans("...a,abc->...bc", (4, 2, 3))
      Fans(fan_in=4, fan_out=6)
      >>> jaxinit.einsum_fans("gna,gab->gnb", (8, 16, 32))  # eight experts
      Fans(fan_in=16, fan_out=32)

    Reference: the roles of the axes follow jax.numpy.einsum.
    """
    shape = canonical_shape(shape)
    in_axis, out_axis, batch_axis = _einsum_roles(equation, len(shape), operand)
    axes = layout(shape, in_axis, out_axis, batch_axis)
    return Fans(axes.size(axes.in_axes), axes.size(axes.out_axes))


def einsum_axes(equation: str, *, operand: int = -1) -> dict[str, tuple[int, ...]]:
    """Returns the axes of an einsum's weight by role, as keyword arguments of any initializer with `in_axis`.

    Args:
      equation: an einsum with explicit output; the weight's own indices are written out, without "...".
      operand: which operand is the weight.

    Returns:
      A dictionary with `in_axis`, `out_axis` and `batch_axis`.

    Raises:
      ValueError: as `einsum_fans`, or the weight's indices contain "...", whose axes depend on the shape.

    Examples:
      >>> import jaxinit
      >>> jaxinit.einsum_axes("gna,gab->gnb")
      {'in_axis': (1,), 'out_axis': (2,), 'batch_axis': (0,)}
      >>> init = jaxinit.he_normal(**jaxinit.einsum_axes("...a,abc->...bc"))

    Reference: the roles of the axes follow jax.numpy.einsum.
    """
    inputs, _ = _parse(equation)
    weight = _weight(inputs, operand, equation)
    if "..." in weight:
        raise ValueError(f"the weight {weight!r} of {equation!r} must name every axis: write letters instead of '...'")
    in_axis, out_axis, batch_axis = _einsum_roles(equation, len(weight), operand)
    return {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}


def _parse(equation: str) -> tuple[list[str], str]:
    """The operands' indices and the output's."""
    parts = equation.replace(" ", "") if isinstance(equation, str) else ""
    left, _, output = parts.partition("->")
    letters = output.replace("...", "", 1)
    if not _EINSUM.fullmatch(parts) or len(set(letters)) < len(letters) or not set(letters) <= set(left):
        raise ValueError(
            f"the equation must be an einsum with its output, made of letters that the operands have, as in "
            f"'...a,ab->...b', got {equation!r}"
        )
    return left.split(","), output


def _weight(inputs: list[str], operand: int, equation: str) -> str:
    if not -len(inputs) <= operand < len(inputs):
        raise ValueError(f"operand={operand} is out of range for the {len(inputs)} operands of {equation!r}")
    return inputs[operand]


def _einsum_roles(equation: str, rank: int, operand: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(in, out, batch) axes of the weight."""
    inputs, output = _parse(equation)
    weight = _weight(inputs, operand, equation)
    others = [indices for i, indices in enumerate(inputs) if i != operand % len(inputs)]
    letters = weight.replace("...", "")
    hidden = rank - len(letters)
    if len(set(letters)) < len(letters) or hidden < 0 or (hidden > 0 and "..." not in weight):
        raise ValueError(
            f"the weight {weight!r} of {equation!r} must name each of its axes once, "
            f"and its shape has {rank} dimensions"
        )
    # One symbol per axis: letters stand for themselves, "." for each axis of an ellipsis.
    symbols = weight.replace("...", "." * hidden)
    shared = set("".join(others)) & set(output)
    in_axes = tuple(axis for axis, symbol in enumerate(symbols) if symbol not in output)
    batch_axes = tuple(axis for axis, symbol in enumerate(symbols) if symbol in shared)
    out_axes = tuple(axis for axis in range(rank) if axis not in {*in_axes, *batch_axes})
    return in_axes, out_axes, batch_axes
