"""Looks-linear weights: rectified units in mirrored pairs, so that a deep ReLU network is linear at initialization.

relu(z) - relu(-z) = z: a pair of units carries a number through a rectifier unchanged. An orthogonal Q then yields
dynamical isometry, which a plain ReLU network cannot have with any other initialization.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_rank
from jaxinit._initializers._base import draw_with, initializer
from jaxinit._initializers._combinators import Combinator
from jaxinit._initializers._orthogonal import orthogonal
from jaxinit._typing import Array

_FORMS = ("first", "hidden", "last")


@initializer
class looks_linear(Combinator):
    r"""Mirrored weights, which make a plain ReLU network an exactly linear function at initialization.

    .. math::
        W_\text{first} = [Q, -Q], \qquad
        W_\text{hidden} = \begin{bmatrix} Q & -Q \\ -Q & Q \end{bmatrix}, \qquad
        W_\text{last} = \begin{bmatrix} Q \\ -Q \end{bmatrix}

    for kernels stored (in, out): units come in pairs that carry the positive and the negative part of a number, and
    the next layer joins the two parts. After a concatenated ReLU, which makes the pairs itself, every layer but the
    first has the "last" form. Biases must be zero.

    Args:
      init: the initializer of Q, for the kernel's shape with its doubled axes halved: `orthogonal()` for dense layers,
        `delta_orthogonal()` for convolutions, whose feature axes are the last two.
      form: "first", "hidden" or "last".

    Raises:
      TypeError, ValueError: when made, on something that is not an initializer or form; when called, on an odd number
        of features on an axis that is to be doubled.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
      >>> first = jaxinit.looks_linear(form="first")(k1, (4, 8))
      >>> hidden = jaxinit.looks_linear()(k2, (8, 8))
      >>> last = jaxinit.looks_linear(form="last")(k3, (8, 4))
      >>> net = lambda x: jax.nn.relu(jax.nn.relu(x @ first) @ hidden) @ last
      >>> x, y = jnp.eye(4)[:2]
      >>> bool(jnp.allclose(net(x + y), net(x) + net(y), atol=1e-6))
      True

    Reference: Balduzzi et al., 2017 (arXiv:1702.08591).
    """

    init: Callable[..., Array] = orthogonal()
    form: str = "hidden"

    def _check(self) -> None:
        super()._check()
        check_choice("form", self.form, _FORMS)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 2, "(*spatial, in, out)")
        *spatial, inputs, outputs = shape
        doubles_in, doubles_out = self.form != "first", self.form != "last"
        if (doubles_in and inputs % 2) or (doubles_out and outputs % 2):
            raise ValueError(
                f"{self!r} pairs units, so their number must be even: got {inputs} inputs and {outputs} outputs in "
                f"the shape {shape}"
            )
        half = (*spatial, inputs // (1 + doubles_in), outputs // (1 + doubles_out))
        kernel = draw_with(self.init, key, half, dtype)
        if doubles_out:
            kernel = jnp.concatenate([kernel, -kernel], axis=-1)
        return jnp.concatenate([kernel, -kernel], axis=-2) if doubles_in else kernel
