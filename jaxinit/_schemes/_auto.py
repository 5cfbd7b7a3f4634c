"""The scheme of a user who knows nothing about initialization: gains from the program, depth factors from its skips."""

import dataclasses

from jaxinit._gain import elementwise, gain
from jaxinit._initializers import variance_scaling
from jaxinit._quadrature import gaussian_means
from jaxinit._reading import UNREAD, Layer
from jaxinit._schemes._roles import Model, Piece
from jaxinit._schemes._scheme import Rule, Scheme

_LEAST_SHARE = 1e-3
"""Of the second moment of an activation: where less of it is variance, it is a constant to a centred kernel."""


def _gained(layer: Layer) -> tuple[float, str]:
    """The gain of the activation that follows a layer, and its name; 1 where the function has none."""
    if layer.activation is None:
        unread = layer.note if layer.note and layer.note.startswith(UNREAD) else ""
        if layer.multiplier == 1:
            return 1.0, unread or "no activation follows"
        return 1 / layer.multiplier, f"what follows multiplies by {layer.multiplier:.3g}" + (unread and f"; {unread}")
    try:
        return float(gain(layer.activation)), f"gain of {layer.activation.name}"
    except ValueError:
        return 1.0, f"{layer.activation.name} has no gain"


@dataclasses.dataclass(frozen=True)
class auto(Scheme):
    r"""Variance scaling with the gain of the activation that follows in the program.

    .. math:: \mathrm{Var}(W) = \frac{g^2}{\text{fan\_in}}, \qquad
        \mathrm{Var}(W_\text{last}) = \frac{g^2}{L \, \text{fan\_in}}

    with g = E[f(z)²]^{-1/2}, and the second for the last layer of each of L residual branches, so that all branches
    together add the variance of one. Embeddings have rows of unit variance, or 1 / fan-in where they read out as well;
    biases and offsets are zero, scales one.

    Weights that the program centres, so that those into each unit sum to zero, do not see the mean of the activation:
    for them g = Var[f(z)]^{-1/2}.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.auto()
      auto()

    Reference: He et al., 2015 (arXiv:1502.01852); Zhang et al., 2019 (arXiv:1901.09321) for the depth; Brock et al.,
      2021 (arXiv:2101.08692) for centred weights.
    """

    def weight(self, piece: Piece, model: Model) -> Rule:
        layer = piece.layer
        factor, reason = _gained(layer)
        variance = factor**2
        if model.last_in_branch(layer):
            variance /= model.branches
            reason += f", last layer of a branch: variance / {model.branches}"
        return Rule(variance_scaling(variance, "fan_in", "normal"), reason)

    def centred(self, layer: Layer) -> float:
        if layer.activation is None:
            return 1.0
        try:
            function = elementwise(layer.activation)
            second = 1 / float(gain(layer.activation)) ** 2
        except ValueError:
            return 1.0
        # Raised by its size, so that the mean of an odd function is no sum that cancels to nothing.
        (raised,) = gaussian_means(lambda z: (function(z) + second**0.5,))
        variance = second - (float(raised) - second**0.5) ** 2
        return second / variance if variance > _LEAST_SHARE * second else 1.0
