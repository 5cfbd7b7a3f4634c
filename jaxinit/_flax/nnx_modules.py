"""NNX modules for residual networks without normalization: scalars, and branches with scalars as in Fixup."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxinit._flax._residual import (
    add_branch,
    add_scalar,
    check_fixup,
    fixup_residual,
    fixup_scalars,
    multiply_scalar,
)
from jaxinit._typing import Array


class ScalarBias(nnx.Module):
    """Adds one learned scalar, initially 0, to its input.

    Arguments and reference are those of `jaxinit.linen.ScalarBias`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> jaxinit.nnx.ScalarBias()(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, *, param_dtype: Any = jnp.float32) -> None:
        self.bias = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(self, x: Any) -> Array:
        """The input plus the scalar."""
        return add_scalar(x, self.bias[...])


class ScalarMultiplier(nnx.Module):
    """Multiplies its input by one learned scalar.

    Arguments and reference are those of `jaxinit.linen.ScalarMultiplier`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> jaxinit.nnx.ScalarMultiplier()(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, initial: float = 1.0, *, param_dtype: Any = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.asarray(initial, param_dtype))

    def __call__(self, x: Any) -> Array:
        """The input times the scalar."""
        return multiply_scalar(x, self.scale[...])


class FixupResidual(nnx.Module):
    """A residual branch with scalar biases and a scalar multiplier in place of normalization.

    Formula, arguments, errors and reference are those of `jaxinit.linen.FixupResidual`; `layers` are NNX modules here.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> layers = (nnx.Linear(8, 32, use_bias=False, rngs=rngs), nnx.Linear(32, 8, use_bias=False, rngs=rngs))
      >>> block = jaxinit.nnx.FixupResidual(layers, nnx.relu)
      >>> graphdef, params = nnx.split(block)
      >>> x = jnp.ones((2, 8))
      >>> params = jaxinit.initialize(
      ...     jax.random.key(0), params, lambda params, x: nnx.merge(graphdef, params)(x), x, "fixup"
      ... )
      >>> nnx.update(block, params)
      >>> bool(jnp.all(block(x) == x))      # the last layer of the branch is zero
      True
    """

    def __init__(
        self,
        layers: Sequence[Callable[..., Any]],
        activation: Callable[..., Any],
        shortcut: Callable[..., Any] | None = None,
        *,
        activate_sum: bool = False,
        param_dtype: Any = jnp.float32,
    ) -> None:
        check_fixup(layers, activation)
        self.layers = nnx.List(layers)
        self.activation = activation
        self.shortcut = shortcut
        self.activate_sum = activate_sum
        before_layers, before_activations, multiplier, bias = fixup_scalars(len(layers))
        for name in (*before_layers, *before_activations, bias):
            setattr(self, name, ScalarBias(param_dtype=param_dtype))
        setattr(self, multiplier, ScalarMultiplier(param_dtype=param_dtype))

    def __call__(self, x: Any) -> Array:
        """The skip connection plus the branch."""
        return fixup_residual(
            x, self.layers, self.activation, self.shortcut, self.activate_sum, lambda name: getattr(self, name)
        )


class ScaledResidual(nnx.Module):
    """A residual branch multiplied by one learned scalar: SkipInit, ReZero.

    Formula, arguments, errors and reference are those of `jaxinit.linen.ScaledResidual`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> block = jaxinit.nnx.ScaledResidual(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
      >>> block(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        branch: Callable[..., Any],
        alpha: float = 0.0,
        shortcut: Callable[..., Any] | None = None,
        *,
        param_dtype: Any = jnp.float32,
    ) -> None:
        self.branch = branch
        self.multiplier = ScalarMultiplier(alpha, param_dtype=param_dtype)
        self.shortcut = shortcut

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Array:
        """The skip connection plus the scaled branch, to which further arguments are passed unchanged."""
        branch = self.multiplier(self.branch(x, *args, **kwargs))
        return add_branch(x if self.shortcut is None else self.shortcut(x), branch)
