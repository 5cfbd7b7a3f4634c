"""Schemes for deep plain networks: signals and gradients that keep their size, on average or exactly."""

import dataclasses

from jaxinit import _initializers as initializers
from jaxinit._checks import check_integer, check_number
from jaxinit._initializers import Initializer, delta_orthogonal, normal, orthogonal
from jaxinit._numbers import NAMES, critical
from jaxinit._reading import Layer
from jaxinit._schemes._requirements import MisfitError, check_rectified_chain, rectifier
from jaxinit._schemes._roles import Matrix, Model, Vector, matrix_fan_in
from jaxinit._schemes._scheme import Rule, Scheme, register


def orthogonal_matrix(scale: float, layer: Layer) -> Initializer:
    """An orthogonal weight for a dense layer, or its counterpart at the centre tap for a convolution."""
    spatial = layer.kind == "conv" and layer.receptive_field > 1
    return delta_orthogonal(scale) if spatial else orthogonal(scale)


@register
@dataclasses.dataclass(frozen=True)
class orthogonal_critical(Scheme):
    r"""Orthogonal weights at the edge of chaos of the activation that follows in the program.

    .. math:: W = \sigma_w Q, \quad Q^\top Q = I, \qquad b \sim N(0, \sigma_b^2), \qquad \chi(\sigma_w, \sigma_b) = 1

    Convolutions have Q at their centre tap (delta-orthogonal). Layers that no activation follows have
    σ_w = 1.

    Args:
      bias_variance: σ_b².

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.orthogonal_critical(bias_variance=0.01)
      orthogonal_critical(bias_variance=0.01)

    Reference: Pennington, Schoenholz & Ganguli, 2017 (arXiv:1711.04735); Xiao et al., 2018 (arXiv:1806.05393).
    """

    bias_variance: float = 0.0

    def _check_fields(self) -> None:
        check_number("bias_variance", self.bias_variance, nonnegative=True)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        if layer.activation is None:
            return Rule(orthogonal_matrix(1.0, layer), "no activation follows")
        point = critical(layer.activation, bias_variance=self.bias_variance)
        return Rule(orthogonal_matrix(float(point.sigma_w), layer), f"critical for {layer.activation.name}")

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role == "bias" and self.bias_variance > 0 and vector.layer and vector.layer.activation:
            return Rule(normal(self.bias_variance**0.5), "N(0, σ_b²)")
        return super().vector(vector, model)


@register
@dataclasses.dataclass(frozen=True)
class sparse(Scheme):
    """Martens's sparse initialization: a fixed number of connections into each unit.

    Args:
      num_nonzero: nonzero weights into each unit; all weights if the fan-in is smaller.
      stddev: their standard deviation.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.sparse()
      sparse(num_nonzero=15, stddev=1.0)

    Reference: Martens, 2010, "Deep learning via Hessian-free optimization".
    """

    num_nonzero: int = 15
    stddev: float = 1.0

    def _check_fields(self) -> None:
        check_integer("num_nonzero", self.num_nonzero, 1)
        check_number("stddev", self.stddev, nonnegative=True)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        count = min(self.num_nonzero, layer.receptive_field * matrix_fan_in(layer))
        return Rule(initializers.sparse(count, self.stddev), f"{count} connections into each unit")


@register
@dataclasses.dataclass(frozen=True)
class random_walk(Scheme):
    """Sussillo and Abbott's random walk: the gain that keeps the log-norm of gradients from drifting over depth.

    Every layer has the gain for the activation that follows and for the depth of the model; the last layer, which no
    activation follows, has that of a linear one.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.random_walk()
      random_walk()

    Reference: Sussillo & Abbott, 2014 (arXiv:1412.6558).
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        depth = model.depth
        name = layer.activation.name if layer.activation else "linear"
        activation = name if name in NAMES or layer.activation is None else layer.activation
        try:
            return Rule(initializers.random_walk(activation, depth=depth), f"{name}, depth {depth}")
        except ValueError as error:
            raise MisfitError(f"{self!r} has no gain for {layer.path}, which {name} follows: {error}") from error


@register
@dataclasses.dataclass(frozen=True)
class looks_linear(Scheme):
    r"""Looks-linear: mirrored pairs of units, which make a rectified network exactly linear at initialization.

    .. math:: W_\text{first} = [Q, -Q], \quad
        W_\text{hidden} = \begin{bmatrix} Q & -Q \\ -Q & Q \end{bmatrix}, \quad
        W_\text{last} = \begin{bmatrix} Q \\ -Q \end{bmatrix}

    for kernels (in, out), where Q is orthogonal, or delta-orthogonal for convolutions; biases are zero. After a
    concatenated ReLU, [relu(z), relu(−z)], which makes the pairs itself, the first layer is Q and all others have the
    last form. The layers of a scanned stack are hidden ones: the first and the last layer must be outside of it.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.looks_linear()
      looks_linear()

    Reference: Balduzzi et al., 2017 (arXiv:1702.08591).
    """

    def check(self, model: Model) -> None:
        check_rectified_chain(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        chain = [layer for layer, _ in model.layers]
        at = next(i for i, layer in enumerate(chain) if layer.name == matrix.layer.name)
        drawn = orthogonal_matrix(1.0, matrix.layer)
        paired_in = at > 0
        paired_out = at < len(chain) - 1 and rectifier(chain[at], model) == "relu"
        if not paired_in and not paired_out:
            return Rule(drawn, "the next operation makes the pairs")
        form = "hidden" if paired_in and paired_out else "last" if paired_in else "first"
        return Rule(initializers.looks_linear(drawn, form=form), f"the {form} form")
