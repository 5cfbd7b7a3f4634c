"""Which layers can be centred: those with a bias, of either sign, that has its own entry for each channel."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._reading import FOREIGN, Factor, Origin, Traced, Weight, of_constant, rearrangement, scale_factors


class Centre(NamedTuple):
    """The bias that centres the output of a weight.

    Attributes:
      channels: the factors along which each mean of the output is removed separately.
      leaf, origin: the bias, and which of its elements.
      sign: with which the bias enters the output.
    """

    channels: tuple[Factor, ...]
    leaf: int
    origin: Origin
    sign: int


def centres(traced: Traced, selected: frozenset[Weight]) -> tuple[dict[Weight, Centre], dict[Weight, str]]:
    """The bias that centres each weight; and why other selected weights are not centred.

    A weight can be centred only if it is used once, with a bias, of either sign, that is a leaf of its own and has one
    entry for each channel.
    """
    found, refused = {}, {}
    for weight in selected:
        if weight.use_count > 1:
            # What centres one use would not centre the others.
            refused[weight] = "not centred: it is used more than once"
            continue
        if len(weight.uses) == 1 and not weight.uses[0].bias_dims <= set(weight.uses[0].placed.values()):
            refused[weight] = "not centred: the term added to its output varies along dimensions other than its units"
            continue
        channels = scale_factors(traced.analysis, weight, per_channel=True)
        biases = _bias_leaves(traced, weight)
        fitting = [b for b in biases if _has_entry_for_each_channel(weight, channels, b[1])]
        if fitting:
            found[weight] = Centre(channels, *fitting[0])
        elif biases:
            refused[weight] = "not centred: its bias does not have one entry for each unit"
        else:
            refused[weight] = "not centred: it has no real bias of its own"
    return found, refused


def _bias_leaves(traced: Traced, weight: Weight) -> list[tuple[int, Origin, int]]:
    """The leaves that are only a weight's bias, their origins, and the signs with which they are added."""
    if len(weight.uses) != 1:
        return []
    (use,) = weight.uses
    component = weight.first_component
    if len(use.components) != 1 or component.origin is None or component.size is not None:
        return []
    if jnp.issubdtype(use.finish.outputs[0].dtype, jnp.complexfloating):  # means are kept as real numbers
        return []
    found = []
    for bias in use.biases:
        dependence = traced.analysis.of(bias.value)
        if bias.is_noise or bias.moves or len(dependence.origins) != 1 or list(dependence.degrees.values()) != [1]:
            continue
        ((leaf, origin),) = dependence.origins.items()
        sign = _sign(traced, bias.value)
        reads = [read for read in traced.analysis.reads if read.leaf == leaf]
        whole = all(
            stop - start == n for (start, stop), n in zip(origin.region, np.shape(traced.leaves[leaf]), strict=True)
        )
        if sign and whole and len(reads) == 1 and not _is_in_a_weight(traced, leaf):
            found.append((leaf, origin, bias.sign * sign))
    return found


def _sign(traced: Traced, value: ir.Atom) -> int:
    """1 for elements of a leaf, -1 for elements with the other sign, 0 for anything else computed from them."""
    sign = 1
    while not all(origin.exact for origin in traced.analysis.of(value).origins.values()):
        equation = traced.flow.producer.get(value)
        if equation is None:
            return 0
        terms = [atom for atom in equation.inputs if traced.analysis.of(atom).degrees]
        others = [atom for atom in equation.inputs if atom not in terms]
        zeros = all(_is_zero(traced, atom) for atom in others)
        if len(terms) == 1 and equation.primitive in (ir.add_p, ir.sub_p, ir.neg_p) and zeros:
            negative = equation.primitive is ir.neg_p or (
                equation.primitive is ir.sub_p and equation.inputs[1] is terms[0]
            )
            sign = -sign if negative else sign
        elif rearrangement(equation) is None:
            return 0
        value = equation.inputs[0] if rearrangement(equation) is not None else terms[0]
    return sign


def _is_zero(traced: Traced, atom: ir.Atom) -> bool:
    return of_constant(atom).zero if isinstance(atom, ir.Constant) else traced.analysis.of(atom).zero


def _is_in_a_weight(traced: Traced, leaf: int) -> bool:
    """Whether the weight of any layer is made of this leaf, or a program that is not read uses it."""
    weights = (component.dependence for use in traced.analysis.uses.values() for component in use.components)
    return any(leaf in weight.degrees for weight in weights) or any(leaf == at for at, _ in traced.analysis.opaque)


def _has_entry_for_each_channel(weight: Weight, factors: tuple[Factor, ...], bias: Origin) -> bool:
    """Whether the bias has its own entry wherever the output has a channel of its own."""
    if [f.size for f in weight.stack] != [f.size for f in bias.stack]:
        return False
    dims = output_dims(weight)
    for dim, own in zip(dims, bias.dims or [()] * len(dims), strict=True):
        if not any(f in factors for f in dim) and all(f.axis == FOREIGN for f in own):
            continue
        if any(f not in factors for f in dim) or any(f.axis == FOREIGN for f in own):
            return False
        if math.prod(f.size for f in dim) != math.prod(f.size for f in own):
            return False
    return True


def output_dims(weight: Weight) -> list[tuple[Factor, ...]]:
    """The factors of the weight along each dimension of the output of its only layer."""
    (use,) = weight.uses
    origin = use.components[0].origin
    assert origin is not None
    dims: list[tuple[Factor, ...]] = [()] * len(use.finish.outputs[0].shape)
    for source, target in use.placed.items():
        dims[target] = origin.dims[source]
    return dims
