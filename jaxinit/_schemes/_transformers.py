"""Schemes for transformers: value, output and feed-forward weights that shrink with depth; queries and keys do not."""

import dataclasses
from typing import NamedTuple

from jaxinit._initializers import glorot_normal, glorot_uniform, normal, scaled
from jaxinit._reading import Layer
from jaxinit._schemes._requirements import check_attention, check_branches
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, Scheme, register


def shrinks(matrix: Matrix) -> bool:
    """Whether a weight is one of those that are scaled by depth."""
    return matrix.layer.skip is not None and matrix.role not in ("query", "key")


class DeepnormConstants(NamedTuple):
    """α of the skip connections x ← LN(α x + f(x)), and β of the weights."""

    alpha: float
    beta: float


def deepnorm_constants(
    encoder_layers: int = 0, decoder_layers: int = 0
) -> tuple[DeepnormConstants | None, DeepnormConstants | None]:
    r"""Computes DeepNorm's constants for an encoder of N layers and a decoder of M.

    .. math::
        \alpha = (2N)^{1/4}, \quad \beta = (8N)^{-1/4} \quad \text{for a stack of one kind}

    and with both kinds, for the encoder α = 0.81 (N⁴M)^{1/16}, β = 0.87 (N⁴M)^{-1/16}, for the decoder α = (3M)^{1/4},
    β = (12M)^{-1/4}.

    Args:
      encoder_layers: N, 0 for a model without encoder.
      decoder_layers: M, 0 for a model without decoder.

    Returns:
      A pair for the encoder and the decoder, with None for the one that the model does not have.

    Example:
      >>> import jaxinit.schemes
      >>> encoder, decoder = jaxinit.schemes.deepnorm_constants(decoder_layers=8)
      >>> decoder
      DeepnormConstants(alpha=2.0, beta=0.3535533905932738)

    Reference: Wang et al., 2022 (arXiv:2203.00555).
    """
    n, m = encoder_layers, decoder_layers
    if n and m:
        both = (n**4 * m) ** (1 / 16)
        return DeepnormConstants(0.81 * both, 0.87 / both), DeepnormConstants((3 * m) ** 0.25, (12 * m) ** -0.25)
    encoder, decoder = (DeepnormConstants((2 * k) ** 0.25, (8 * k) ** -0.25) if k else None for k in (n, m))
    return encoder, decoder


@register
@dataclasses.dataclass(frozen=True)
class t_fixup(Scheme):
    r"""T-Fixup: transformers without layer normalization and without warm-up.

    .. math:: W = 0.67 \, N^{-1/4} \, W_\text{Glorot} \text{ in the encoder}, \qquad
        W = (9N)^{-1/4} \, W_\text{Glorot} \text{ in the decoder}

    for value, output and feed-forward weights of stacks of N blocks; queries and keys are Glorot's. Embeddings are
    N(0, 1/d), times the decoder's factor. A model without cross attention is one stack, with the encoder's factor
    for its blocks and the decoder's for its embeddings. In a fused weight only the columns of the values are scaled.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.t_fixup()
      t_fixup()

    Reference: Huang et al., 2020, "Improving transformer optimization through better initialization".
    """

    def check(self, model: Model) -> None:
        check_attention(self, model)
        check_branches(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if not shrinks(matrix):
            return Rule(glorot_uniform(), "Glorot")
        in_decoder = bool(model.traced.structure.encoder) and not matrix.in_encoder
        n = max(model.blocks(encoder=not in_decoder and bool(model.traced.structure.encoder)), 1)
        if in_decoder:
            return Rule(scaled(glorot_uniform(), (9 * n) ** -0.25), f"Glorot × (9·{n})^(-1/4), decoder")
        return Rule(scaled(glorot_uniform(), 0.67 * n**-0.25), f"Glorot × 0.67·{n}^(-1/4)")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        n = max(model.blocks(encoder=False), 1)
        return Rule(normal((9 * n) ** -0.25 * layer.fan_out**-0.5), f"N(0, 1/{layer.fan_out}) × (9·{n})^(-1/4)")


@register
@dataclasses.dataclass(frozen=True)
class deepnorm(Scheme):
    r"""DeepNorm's weights, for transformers whose blocks are x ← LN(α x + f(x)).

    .. math:: W = \beta \, W_\text{Glorot}

    for value, output and feed-forward weights; queries and keys are Glorot's. β depends on the depth of the stack (see
    `deepnorm_constants`, which also computes the α for the network). A model without cross attention is one stack.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.deepnorm()
      deepnorm()

    Reference: Wang et al., 2022 (arXiv:2203.00555).
    """

    def check(self, model: Model) -> None:
        check_attention(self, model)
        check_branches(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if not shrinks(matrix):
            return Rule(glorot_normal(), "Glorot")
        of_encoder, of_decoder = deepnorm_constants(model.blocks(encoder=True), model.blocks(encoder=False))
        constants = (of_encoder if matrix.in_encoder else of_decoder) or of_encoder or of_decoder
        beta = constants.beta if constants else 1.0
        return Rule(scaled(glorot_normal(), beta), f"Glorot × β = {beta:.3g}")
