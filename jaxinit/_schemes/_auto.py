"""The default scheme: every pre-activation has unit variance at initialization."""

import dataclasses
import math
from collections.abc import Sequence

from jaxinit._initializers import variance_scaling
from jaxinit._moments import Incoming
from jaxinit._reading import UNREAD, Layer
from jaxinit._schemes._incoming import argument_factor
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, Scheme, register
from jaxinit._schemes._signal import orthogonal_matrix

_ALIKE = 1.05
"""If no slice of a stack has inputs more than this many times as large as the smallest, all share one variance."""
_DIGITS = 4
"""How many digits of a variance are kept: more would only show how it was computed."""


@register
@dataclasses.dataclass(frozen=True)
class auto(Scheme):
    r"""Variance scaling by the inputs of each layer, so that every pre-activation has unit variance.

    .. math:: \mathrm{Var}(W) = \frac{1}{\text{fan\_in} \; \mathrm{E}[x^2]}, \qquad
        \mathrm{Var}(W_\text{last}) = \frac{1}{L \; \text{fan\_in} \; \mathrm{E}[x^2]}

    where E[x²] is the mean square of the layer's inputs x as the program computes them: from activations, gated units,
    dropout, normalizations, pooling, attention, and sums with residual branches. After a ReLU it is 1/2, which yields
    He's 2 / fan-in. The second formula is for the last layer of each of L residual branches, so that all branches
    together add the variance of one. In a stack that a loop runs over, each slice has the variance for its own input.
    If the outputs of k layers are added before anything else is done with them, each has the
    variance 1 / k; constants that multiply a pre-activation are compensated. Kernels that a recurrence applies to its
    state are orthogonal, gate by gate, since keeping a state is not keeping a variance. Embeddings have rows of unit
    variance, or 1 / fan-in where they read out as well; biases and offsets are zero, scales one.

    The mean square is computed from the program, without running it. For the batch itself it is computed from its
    numbers; it is taken to be one if there are only shapes, if all numbers are equal, or if the batch is traced by
    `jit`. Weights that the program centres, so that those into each unit sum to zero, do not see the mean of their
    inputs, so for them the variance is used instead.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.auto()
      auto()

    Reference: LeCun et al., 1998 (Efficient BackProp); He et al., 2015 (arXiv:1502.01852); Zhang et al., 2019
      (arXiv:1901.09321) for the depth; Brock et al., 2021 (arXiv:2101.08692) for centred weights.
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        if matrix.meets_state:
            return Rule(
                orthogonal_matrix(1.0, layer), "meets the state of a recurrence: orthogonal, so that the state is kept"
            )
        met = model.met(layer)
        slices = [_second_moment(x) for x in met.slices] or [_second_moment(met)]
        if max(slices) < _ALIKE * min(slices):
            slices = [_second_moment(met)]
        taken = math.exp(sum(map(math.log, slices)) / len(slices))
        by_slice = tuple(_rounded(math.sqrt(taken / x)) for x in slices) if len(slices) > 1 else ()
        variance, reason = 1 / taken, _reason(met, slices)
        factor = argument_factor(layer)
        if factor != 1:
            variance /= factor**2
            reason += f", multiplied afterwards by {factor:.3g}"
        terms = model.terms(layer)
        if terms > 1:
            variance /= terms
            reason += f", one of {terms} layers that are added: variance / {terms}"
        if model.closed is None and model.last_in_branch(layer):
            variance /= model.branches
            reason += f", last layer of a branch: variance / {model.branches}"
        if layer.note and layer.note.startswith(UNREAD):
            reason += f"; {layer.note}"
        return Rule(variance_scaling(_rounded(variance), "fan_in", "normal"), reason, by_slice=by_slice)

    def centred(self, layer: Layer, model: Model) -> float | Sequence[float]:
        met = model.met(layer)
        return [_share(x) for x in met.slices] or _share(met)


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _second_moment(met: Incoming) -> float:
    """The mean square of the inputs; 1 where it is not known."""
    return met.second_moment if met.known and met.second_moment > 0 else 1.0


def _reason(met: Incoming, slices: Sequence[float]) -> str:
    if len(slices) > 1:
        unknown = sum(not x.known for x in met.slices)
        taken = f", unknown for {unknown} of {len(slices)} and taken as 1" if unknown else ""
        return f"inputs of mean square {min(slices):.3g} to {max(slices):.3g} by slice{taken}"
    if met.known and met.second_moment > 0:
        return f"inputs of mean square {met.second_moment:.3g}"
    return "inputs of unknown mean square, taken as 1"


def _share(met: Incoming) -> float:
    return met.second_moment / met.variance if met.variance > 1e-3 * met.second_moment > 0 else 1.0
