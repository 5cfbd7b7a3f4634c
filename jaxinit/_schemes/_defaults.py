"""What PyTorch, Keras and Flax give to the layers that they make."""

import dataclasses
import math

from jaxinit._initializers import glorot_uniform, lecun_normal, orthogonal, uniform, variance_scaling
from jaxinit._layers import Layer
from jaxinit._schemes._roles import Model, Vector
from jaxinit._schemes._scheme import Rule, Scheme


@dataclasses.dataclass(frozen=True)
class torch_default(Scheme):
    r"""The defaults of PyTorch's layers: weights and biases uniform, by the fan-in of the layer.

    .. math:: W, b \sim U\left(\pm \frac{1}{\sqrt{\text{fan\_in}}}\right)

    Embeddings are standard normal. Weights and biases of a recurrent cell go by its hidden size, which is the fan-out
    of its input kernels and the fan-in of its recurrent ones.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.torch_default()
      torch_default()

    Reference: torch.nn.Linear, torch.nn.Conv2d, torch.nn.LSTM, torch.nn.Embedding.
    """

    def weight(self, layer: Layer, model: Model) -> Rule:
        if model.is_recurrent(layer):
            bound = 1 / math.sqrt(layer.fan_out)
            return uniform(bound, minval=-bound), f"U(±1/sqrt({layer.fan_out})): the hidden size of its cell"
        return variance_scaling(1 / 3, "fan_in", "uniform"), "U(±1/sqrt(fan-in))"

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role == "bias" and vector.layer is not None:
            n = vector.layer.fan_out if model.is_recurrent(vector.layer) else vector.layer.fan_in
            bound = 1 / math.sqrt(n)
            return uniform(bound, minval=-bound), f"U(±1/sqrt({n:g})): as the weights of its layer"
        return super().vector(vector, model)


@dataclasses.dataclass(frozen=True)
class keras_default(Scheme):
    """The defaults of Keras's layers: Glorot uniform kernels, orthogonal recurrent ones, zero biases.

    Embeddings are U(±0.05).

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.keras_default() == jaxinit.schemes.keras_default()
      True

    Reference: keras.layers.Dense, Conv2D, LSTM, Embedding.
    """

    def weight(self, layer: Layer, model: Model) -> Rule:
        if model.is_recurrent(layer) and layer.fan_in == layer.fan_out:
            return orthogonal(), "a square kernel of a recurrent cell"
        return glorot_uniform(), "Glorot uniform"

    def embedding(self, layer: Layer, model: Model) -> Rule:
        return uniform(0.05, minval=-0.05), "U(±0.05)"


@dataclasses.dataclass(frozen=True)
class flax_default(Scheme):
    """The defaults of Flax's layers: LeCun normal kernels, orthogonal recurrent ones, zero biases.

    Embeddings have variance 1 / features.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.flax_default()
      flax_default()

    Reference: flax.linen.Dense, Conv, LSTMCell, Embed.
    """

    def weight(self, layer: Layer, model: Model) -> Rule:
        if model.is_recurrent(layer) and layer.fan_in == layer.fan_out:
            return orthogonal(), "a square kernel of a recurrent cell"
        return lecun_normal(), "LeCun normal"

    def embedding(self, layer: Layer, model: Model) -> Rule:
        return variance_scaling(1.0, "fan_in", "normal", out_axis=0), "variance 1 / features"
