"""The scheme of a user who knows nothing about initialization: every pre-activation has unit variance at the start."""

import dataclasses

from jaxinit._initializers import variance_scaling
from jaxinit._reading import UNREAD, Layer
from jaxinit._schemes._incoming import argument_factor
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, Scheme, register

_DIGITS = 4
"""Of variances that are drawn from: more would only show how they were computed."""


@register
@dataclasses.dataclass(frozen=True)
class auto(Scheme):
    r"""Variance scaling by what comes into each layer, so that every pre-activation has unit variance.

    .. math:: \mathrm{Var}(W) = \frac{1}{\text{fan\_in} \; \mathrm{E}[x^2]}, \qquad
        \mathrm{Var}(W_\text{last}) = \frac{1}{L \; \text{fan\_in} \; \mathrm{E}[x^2]}

    with the mean square of the inputs x as the program makes them: of activations, gated units, dropout,
    normalizations, pooling, attention, and sums with residual branches. After a ReLU it is 1/2, which gives He's 2 /
    fan-in. The second formula is for the last layer of each of L residual branches, so that all branches together add
    the variance of one. Where the outputs of k layers are added before anything else is done with them, each has the
    variance 1 / k; numbers that multiply a pre-activation are made up for. Embeddings have rows of unit variance, or
    1 / fan-in where they read out as well; biases and offsets are zero, scales one.

    The mean square is computed from the program, without running it. Of the batch itself it is that of its numbers;
    where there are only shapes, or one number throughout, or the batch is traced by `jit`, it is taken to be one.
    Weights that the program centres, so that those into each unit sum to zero, do not see the mean of their inputs: for
    them the variance counts.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.auto()
      auto()

    Reference: LeCun et al., 1998 (Efficient BackProp); He et al., 2015 (arXiv:1502.01852); Zhang et al., 2019
      (arXiv:1901.09321) for the depth; Brock et al., 2021 (arXiv:2101.08692) for centred weights.
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        met = model.met(layer)
        variance, reason = 1.0, "inputs of unknown mean square, taken as 1"
        if met.known and met.second_moment > 0:
            variance, reason = 1 / met.second_moment, f"inputs of mean square {met.second_moment:.3g}"
        factor = argument_factor(layer)
        if factor != 1:
            variance /= factor**2
            reason += f", what follows multiplies by {factor:.3g}"
        terms = model.terms(layer)
        if terms > 1:
            variance /= terms
            reason += f", one of {terms} layers that are added: variance / {terms}"
        if model.last_in_branch(layer):
            variance /= model.branches
            reason += f", last layer of a branch: variance / {model.branches}"
        if layer.note and layer.note.startswith(UNREAD):
            reason += f"; {layer.note}"
        return Rule(variance_scaling(float(f"{variance:.{_DIGITS}g}"), "fan_in", "normal"), reason)

    def centred(self, layer: Layer, model: Model) -> float:
        met = model.met(layer)
        return met.second_moment / met.variance if met.variance > 1e-3 * met.second_moment > 0 else 1.0
