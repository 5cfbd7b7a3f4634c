"""Looks-linear: a rectified network that computes a linear function at the start."""

import dataclasses

from jaxinit import _initializers as initializers
from jaxinit._schemes._requirements import check_rectified_chain, rectifier
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, Scheme, register
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
        check_rectified_chain(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        chain = [layer for layer, _ in model.layers]
        at = next(i for i, layer in enumerate(chain) if layer.name == matrix.layer.name)
        drawn = orthogonal_matrix(1.0, matrix.layer)
        paired_in = at > 0
        paired_out = at < len(chain) - 1 and rectifier(chain[at], model) == "relu"
        if not paired_in and not paired_out:
            return Rule(drawn, "what follows makes the pairs")
        form = "hidden" if paired_in and paired_out else "last" if paired_in else "first"
        return Rule(initializers.looks_linear(drawn, form=form), f"the {form} form")
