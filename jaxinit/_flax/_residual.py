"""Where the scalars of residual branches without normalization go; the same for every framework.

Scalars are cast to the dtype of the data: a branch in half precision stays so, whatever its scalars are stored in.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxinit._typing import Array

Function: TypeAlias = Callable[..., Any]


def add_scalar(x: Any, scalar: Any) -> Array:
    """A scalar added to data, in the dtype of the data unless that is an integer dtype."""
    x = _floating(x, scalar)
    return x + jnp.asarray(scalar, x.dtype)


def multiply_scalar(x: Any, scalar: Any) -> Array:
    """Data multiplied by a scalar, in the dtype of the data unless that is an integer dtype."""
    x = _floating(x, scalar)
    return x * jnp.asarray(scalar, x.dtype)


def fixup_scalars(count: int) -> tuple[list[str], list[str], str, str]:
    """The names of a branch's scalars: biases before layers, biases before activations, the multiplier, its bias."""
    before_layers = [f"layer_bias_{i}" for i in range(count)]
    before_activations = [f"activation_bias_{i}" for i in range(count - 1)]
    return before_layers, before_activations, "multiplier", "branch_bias"


def check_fixup(layers: Sequence[Function], activation: Function) -> None:
    """Check that `layers` is a sequence of at least two callables, and that the activation is callable.

    Raises:
      TypeError: a layer or the activation is not callable.
      ValueError: there are fewer than two layers.
    """
    if not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a sequence of at least two layers, got {type(layers).__name__}")
    if len(layers) < 2:
        raise ValueError(
            f"FixupResidual needs at least two layers, since its last one starts at zero, got {len(layers)}; "
            "for a branch of one layer use ScaledResidual"
        )
    for name, function in (("activation", activation), *((f"layers[{i}]", layer) for i, layer in enumerate(layers))):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")


def fixup_residual(
    x: Any,
    layers: Sequence[Function],
    activation: Function,
    shortcut: Function | None,
    activate_sum: bool,
    scalar: Callable[[str], Function],
) -> Array:
    """A residual branch with the scalars of Fixup; `scalar(name)` returns the module of that name."""
    before_layers, before_activations, multiplier, bias = fixup_scalars(len(layers))
    shifted = scalar(before_layers[0])(x)
    h = layers[0](shifted)
    for before_activation, before_layer, layer in zip(before_activations, before_layers[1:], layers[1:], strict=True):
        h = layer(scalar(before_layer)(activation(scalar(before_activation)(h))))
    h = scalar(bias)(scalar(multiplier)(h))
    total = add_branch(x if shortcut is None else shortcut(shifted), h)
    return activation(total) if activate_sum else total


def add_branch(skip: Any, branch: Any) -> Array:
    """The sum of a skip connection and its branch, whose shapes must agree.

    Raises:
      ValueError: the shapes differ.
    """
    if jnp.shape(skip) != jnp.shape(branch):
        raise ValueError(
            f"the branch must have the shape of its skip connection, {jnp.shape(skip)}, got {jnp.shape(branch)}; "
            "pass a shortcut that maps one to the other, such as a 1×1 convolution"
        )
    return skip + branch


def _floating(x: Any, scalar: Any) -> Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(scalar))
