"""Activations by name, and the names of activations.

A name means the function of `jax.nn`, with that function's default arguments.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxinit._caches import kept_with_functions
from jaxinit._typing import Array

Activation = str | Callable[[Array], Array]
_T = TypeVar("_T")


def lecun_tanh(x: Array) -> Array:
    r"""LeCun's scaled hyperbolic tangent.

    .. math:: f(x) = 1.7159 \tanh(2x/3)

    It maps ±1 to ±1, has a gain near one around these points, and its second derivative is largest at ±1.

    Args:
      x: an array of any shape.

    Returns:
      An array of the shape of x.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> jaxinit.lecun_tanh(jnp.array([-1.0, 0.0, 1.0])).round(3)
      Array([-1.,  0.,  1.], dtype=float32)

    Reference: LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998.
    """
    return 1.7159 * jnp.tanh((2 / 3) * x)


def linear(x: Array) -> Array:
    """The identity, for layers that no activation follows."""
    return x


# Of two equal functions, such as elu and celu, the first name is used.
# fmt: off
_NAMES = (
    "elu", "celu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "log_sigmoid", "mish", "relu",
    "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "sparse_plus", "squareplus", "tanh",
)
# fmt: on
_TABLE: dict[str, Callable[..., Array]] = {
    **{name: getattr(jax.nn, name) for name in _NAMES},
    "lecun_tanh": lecun_tanh,
    "linear": linear,
    "sin": jnp.sin,
}
_ALIASES = {
    "hard_swish": "hard_silu",
    "identity": "linear",
    "softsign": "soft_sign",
    "swish": "silu",
}
NAMES = tuple(_TABLE)
"""Every activation that has a name."""

_NAME_OF = {function: name for name, function in _TABLE.items()}
_NAME_OF[jnp.tanh] = "tanh"


def activation_function(activation: Activation) -> Callable[..., Array]:
    """The function that a name means, or the callable itself.

    Raises:
      ValueError: no activation has this name.
      TypeError: it is neither a name nor a callable.
    """
    if callable(activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a name such as 'relu' or an elementwise function, got {activation!r}")
    try:
        return _TABLE[_ALIASES.get(activation, activation)]
    except KeyError:
        raise ValueError(
            f"no activation is called {activation!r}; expected one of {', '.join(sorted(_TABLE))}, "
            "or an elementwise function"
        ) from None


def canonical_activation(activation: Activation) -> Activation:
    """The canonical name of an activation, if it has one, so that equal activations compare equal.

    Raises:
      ValueError, TypeError: as `activation_function`.
    """
    function = activation_function(activation)
    return _NAME_OF.get(function, activation) if _is_hashable(function) else activation


def cached(compute: Callable[..., _T]) -> Callable[..., _T]:
    """Caches a function of an activation; for activations without a hash, such as modules of arrays, recomputes it."""
    return kept_with_functions(256)(compute)


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
