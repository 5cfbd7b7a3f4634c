"""Schemes for residual networks: branches that start small, or at zero, so that depth does not matter."""

import dataclasses

from jaxinit._checks import check_flag, check_integer, check_number
from jaxinit._initializers import glorot_uniform, he_normal, normal, variance_scaling, zeros
from jaxinit._reading import Layer
from jaxinit._schemes._requirements import check_branch_lengths, check_branches, check_multipliers
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._scheme import Rule, Scheme, register


@register
@dataclasses.dataclass(frozen=True)
class gpt2(Scheme):
    r"""GPT-2's initialization: small normals, with the last layer of each residual branch scaled down by depth.

    .. math:: W \sim N(0, \sigma^2), \qquad W_\text{last} \sim N(0, \sigma^2 / L)

    where L is the number of branches, two for each block of a transformer. Embeddings are N(0, σ²), and positions
    N(0, σ²/4), as in OpenAI's code: .01 where weights have .02.

    Args:
      stddev: σ.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.gpt2(stddev=0.01)
      gpt2(stddev=0.01)

    Reference: Radford et al., 2019, "Language models are unsupervised multitask learners".
    """

    stddev: float = 0.02

    def _check_fields(self) -> None:
        check_number("stddev", self.stddev, nonnegative=True)

    def check(self, model: Model) -> None:
        check_branches(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        if model.last_in_branch(layer):
            reason = f"last layer of a branch: divided by sqrt({model.branches})"
            return Rule(normal(self.stddev / model.branches**0.5), reason)
        return Rule(normal(self.stddev), "N(0, σ²)")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        return Rule(normal(self.stddev), "N(0, σ²)")

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role == "position":
            return Rule(normal(self.stddev / 2), "positions, N(0, σ²/4)")
        return super().vector(vector, model)


@register
@dataclasses.dataclass(frozen=True)
class fixup(Scheme):
    r"""Fixup: residual networks without normalization, whose updates do not grow with depth.

    .. math:: W = L^{-1/(2m - 2)} \, W_\text{He}, \qquad W_\text{last} = 0

    for the layers of L residual branches of m layers each. The last layer of every branch and the classifier are zero;
    layers outside of branches are He's. The method also needs a scalar bias before every layer and activation and a
    scalar multiplier for each branch, which belong to the network (`jaxinit.linen.FixupResidual`, also for NNX) and
    learn at a tenth of the rate (`jaxinit.scalar_labels`).

    Args:
      branches: L; by default the number of skip connections in the program.
      zero_classifier: whether the model's last layer is initially zero too.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.fixup()
      fixup(branches=None, zero_classifier=True)

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    branches: int | None = None
    zero_classifier: bool = True

    def _check_fields(self) -> None:
        if self.branches is not None:
            check_integer("branches", self.branches, 1)
        check_flag("zero_classifier", self.zero_classifier)

    def check(self, model: Model) -> None:
        check_branch_lengths(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        if layer.skip is None:
            if self.zero_classifier and layer.name == model.layers[-1][0].name:
                return Rule(zeros, "the classifier")
            return Rule(variance_scaling(2.0, "fan_in", "normal"), "He, outside of branches")
        if model.last_in_branch(layer):
            return Rule(zeros, "last layer of its branch")
        count, m = self.branches or model.branches, layer.branch_length or 2
        factor = count ** (-1 / (2 * m - 2))
        reason = f"He × {count}^(-1/{2 * m - 2}), {m} layers a branch"
        return Rule(variance_scaling(2.0 * factor**2, "fan_in", "normal"), reason)


@register
@dataclasses.dataclass(frozen=True)
class skip_init(Scheme):
    r"""SkipInit: residual branches multiplied by a scalar that is initially zero, with He's weights.

    .. math:: x + \alpha f(x), \qquad \alpha = 0

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.skip_init()
      skip_init()

    Reference: De & Smith, 2020 (arXiv:2002.10444).
    """

    def check(self, model: Model) -> None:
        check_multipliers(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        return Rule(he_normal(), "He")

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role == "multiplier":
            return Rule(zeros, "multiplies a branch: initially closed")
        return super().vector(vector, model)


@register
@dataclasses.dataclass(frozen=True)
class rezero(skip_init):
    r"""ReZero: residual branches multiplied by a scalar that is initially zero, with Glorot's weights.

    .. math:: x + \alpha f(x), \qquad \alpha = 0

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.rezero()
      rezero()

    Reference: Bachlechner et al., 2020 (arXiv:2003.04887).
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        return Rule(glorot_uniform(), "Glorot")
