"""The default initializations of the layers of PyTorch, Keras and Flax."""

import dataclasses
import math
from typing import ClassVar

from jaxinit._initializers import (
    constant,
    glorot_uniform,
    lecun_normal,
    normal,
    orthogonal,
    scaled,
    uniform,
    variance_scaling,
)
from jaxinit._reading import Layer
from jaxinit._schemes._roles import Matrix, Model, Vector, transposed_features
from jaxinit._schemes._scheme import Rule, Scheme, register


def _torch_fan_in(layer: Layer) -> int | float:
    """PyTorch's fan-in is the second axis of the weight, which in a transposed convolution holds the output."""
    features = transposed_features(layer)
    return layer.fan_in if features is None else layer.receptive_field * features[1]


@register
@dataclasses.dataclass(frozen=True)
class torch_default(Scheme):
    r"""The defaults of PyTorch's layers: uniform weights and biases, scaled by the fan-in of the layer.

    .. math:: W, b \sim U\left(\pm \frac{1}{\sqrt{\text{fan\_in}}}\right)

    For a transposed convolution PyTorch counts the features of the output, and every tap.
    Embeddings are standard normal. Weights and biases of a recurrent cell are scaled by its hidden size. PyTorch's
    cells have two biases where most have one.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.torch_default()
      torch_default()

    Reference: torch.nn.Linear, torch.nn.Conv2d, torch.nn.LSTM, torch.nn.Embedding.
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.cell is not None:
            bound = 1 / math.sqrt(model.hidden_size(matrix.cell))
            return Rule(uniform(bound, minval=-bound), f"U(±1/sqrt({model.hidden_size(matrix.cell)})): its hidden size")
        if transposed_features(matrix.layer) is not None:
            n = _torch_fan_in(matrix.layer)
            return Rule(uniform(n**-0.5, minval=-(n**-0.5)), f"U(±1/sqrt({n:g})): transposed, its output's features")
        return Rule(variance_scaling(1 / 3, "fan_in", "uniform"), "U(±1/sqrt(fan-in))")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        return Rule(normal(1.0), "N(0, 1), tied or not")

    def vector(self, vector: Vector, model: Model) -> Rule:
        n = _torch_fan_in(vector.layer) if vector.layer is not None else None
        if vector.cell is not None:
            n = model.hidden_size(vector.cell)
        if vector.role == "bias" and n is not None:
            bound = 1 / math.sqrt(n)
            return Rule(uniform(bound, minval=-bound), f"U(±1/sqrt({n:g})): as the weights of its layer")
        return super().vector(vector, model)


@register
@dataclasses.dataclass(frozen=True)
class keras_default(Scheme):
    """The defaults of Keras's layers: Glorot uniform kernels, orthogonal recurrent ones, zero biases.

    Embeddings are U(±0.05), and the forget gates of LSTM cells have a bias of one. Keras keeps the gates of a cell in
    one matrix; where a program does too, it is drawn as one, so that its fan-out counts all gates. For a transposed
    convolution Keras counts every tap, whatever its stride.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.keras_default() == jaxinit.schemes.keras_default()
      True

    Reference: keras.layers.Dense, Conv2D, LSTM, Embedding.
    """

    fused: ClassVar[bool] = True

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.meets_state:
            return Rule(orthogonal(), "meets the state of a recurrent cell")
        groups = matrix.layer.feature_group_count
        features = transposed_features(matrix.layer)
        if features is not None:
            bound = math.sqrt(6 / (matrix.layer.receptive_field * (features[0] + features[1] * groups)))
            return Rule(uniform(bound, minval=-bound), "Glorot uniform; transposed, all taps count")
        if groups > 1:
            bound = math.sqrt(6 / (matrix.layer.fan_in + matrix.layer.fan_out * groups))
            return Rule(uniform(bound, minval=-bound), "Glorot uniform; Keras's fan-out counts all groups")
        return Rule(glorot_uniform(), "Glorot uniform")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        return Rule(uniform(0.05, minval=-0.05), "U(±0.05)")

    def vector(self, vector: Vector, model: Model) -> Rule:
        gate = vector.gate
        if gate is not None and gate.role == "forget" and gate.cell is not None and model.is_gated(gate.cell):
            return Rule(constant(1.0 - gate.open), "forget gate, initially open")
        return super().vector(vector, model)


def _is_stored_transposed(layer: Layer) -> bool:
    """Whether the last axis of a kernel holds the features of the input."""
    return layer.view is not None and layer.in_axes is not None and len(layer.view) - 1 in layer.in_axes


@register
@dataclasses.dataclass(frozen=True)
class flax_default(Scheme):
    """The defaults of Flax's layers: LeCun normal kernels, orthogonal recurrent ones, zero biases.

    Embeddings have variance 1 / features. For a transposed convolution Flax counts every tap, and the last axis but one
    of the kernel: the output's features with `transpose_kernel=True`.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.flax_default()
      flax_default()

    Reference: flax.linen.Dense, Conv, LSTMCell, Embed.
    """

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.meets_state:
            return Rule(orthogonal(), "meets the state of a recurrent cell")
        features = transposed_features(matrix.layer)
        if features is not None:
            n_in, n_out = features
            counted = n_out if _is_stored_transposed(matrix.layer) else n_in
            # Always a factor, even if it is one: initializers by fans are drawn for the taps that a unit sees.
            return Rule(scaled(lecun_normal(), (n_in / counted) ** 0.5), "LeCun normal; transposed, all taps count")
        return Rule(lecun_normal(), "LeCun normal")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        return Rule(variance_scaling(1.0, "fan_in", "normal", out_axis=0), "variance 1 / features")
