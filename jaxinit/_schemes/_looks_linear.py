"""Looks-linear: a rectified network that computes a linear function at the start."""

import dataclasses

from jaxinit import _initializers as initializers
from jaxinit._reading import Layer
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import MisfitError, Rule, Scheme, register
from jaxinit._schemes._signal import orthogonal_matrix


@register
@dataclasses.dataclass(frozen=True)
class looks_linear(Scheme):
    r"""Looks-linear: mirrored pairs of units, with which a rectified network is exactly linear at the start.

    .. math:: W_\text{first} = [Q, -Q], \quad
        W_\text{hidden} = \begin{bmatrix} Q & -Q \\ -Q & Q \end{bmatrix}, \quad
        W_\text{last} = \begin{bmatrix} Q \\ -Q \end{bmatrix}

    for kernels (in, out), Q orthogonal, or delta-orthogonal for convolutions; biases are zero. After a concatenated
    ReLU, [relu(z), relu(−z)], which makes the pairs itself, the first layer is Q and all others have the last form. The
    layers of a scanned stack are hidden ones: the first and the last layer lie outside of it.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.looks_linear()
      looks_linear()

    Reference: Balduzzi et al., 2017 (arXiv:1702.08591).
    """

    def check(self, model: Model) -> None:
        *hidden, (last, _) = model.layers
        for layer, _ in hidden:
            name = _activation(layer, model)
            if name not in ("relu", "crelu") or layer.skip is not None or layer.uses > 1 or layer.kind == "embed":
                where = " in a residual branch" if layer.skip is not None else ""
                raise MisfitError(
                    f"{self!r} is for plain chains of layers with ReLU or concatenated ReLU between them, but "
                    f"{layer.path}, a layer of kind {layer.kind!r}{where}, is used {layer.uses} times and followed by "
                    f"{name or 'no activation'}"
                )
        if _activation(last, model) is not None:
            raise MisfitError(
                f"{self!r} needs a last layer without activation, but {_activation(last, model)} follows {last.path}"
            )
        for layer in (model.layers[0][0], last):
            if layer.stacked > 1:
                raise MisfitError(
                    f"{self!r} needs the first and the last layer of the model outside of a scan, since they differ "
                    f"from the hidden ones, but {layer.path} holds {layer.stacked} layers"
                )

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        chain = [layer for layer, _ in model.layers]
        at = next(i for i, layer in enumerate(chain) if layer.name == matrix.layer.name)
        drawn = orthogonal_matrix(1.0, matrix.layer)
        paired_in = at > 0
        paired_out = at < len(chain) - 1 and _activation(chain[at], model) == "relu"
        if not paired_in and not paired_out:
            return Rule(drawn, "what follows makes the pairs")
        form = "hidden" if paired_in and paired_out else "last" if paired_in else "first"
        return Rule(initializers.looks_linear(drawn, form=form), f"the {form} form")


def _activation(layer: Layer, model: Model) -> str | None:
    """The name of the activation that follows; "crelu" for a concatenated ReLU."""
    if layer.activation is not None:
        return layer.activation.name
    return "crelu" if model.has_concatenated_relu(layer) else None
