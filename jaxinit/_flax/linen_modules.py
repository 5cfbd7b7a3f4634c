"""Linen modules for residual networks without normalization: scalars, and branches with scalars as in Fixup."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxinit._flax._residual import add_branch, add_scalar, check_fixup, fixup_residual, multiply_scalar
from jaxinit._initializers import constant, zeros
from jaxinit._typing import Array


class ScalarBias(nn.Module):
    """Adds one learned scalar, initially 0, to its input.

    Args:
      param_dtype: dtype in which the scalar is stored; the output has the dtype of the input.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> jaxinit.linen.ScalarBias().init(jax.random.key(0), jnp.ones((2, 3)))
      {'params': {'bias': Array(0., dtype=float32)}}

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """The input plus the scalar."""
        return add_scalar(x, self.param("bias", zeros, (), self.param_dtype))


class ScalarMultiplier(nn.Module):
    """Multiplies its input by one learned scalar.

    Args:
      initial: the initial value of the scalar.
      param_dtype: dtype in which the scalar is stored; the output has the dtype of the input.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> jaxinit.linen.ScalarMultiplier().init(jax.random.key(0), jnp.ones((2, 3)))
      {'params': {'scale': Array(1., dtype=float32)}}

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    initial: float = 1.0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """The input times the scalar."""
        return multiply_scalar(x, self.param("scale", constant(self.initial), (), self.param_dtype))


class FixupResidual(nn.Module):
    r"""A residual branch with scalar biases and a scalar multiplier in place of normalization.

    .. math:: y = s(x) + \alpha \, W_m(f(\cdots f(W_1(x + a_1) + b_1) + a_2 \cdots) + a_m) + c

    for layers W and an activation f: a scalar bias (initially 0) before every layer and every activation, one
    multiplier α (initially 1) after the last layer, and one bias after that. A shortcut s reads x + a_1, as the first
    layer does. `jaxinit.initialize` with `jaxinit.schemes.fixup()` gives the layers the initial weights of Fixup, and
    `jaxinit.scalar_labels` finds the scalars, which learn at a tenth of the rate.

    Args:
      layers: at least two layers, without biases of their own.
      activation: the function between them.
      shortcut: a module for the skip connection where the branch changes the shape; by default the identity.
      activate_sum: whether an activation also follows the addition, as in the networks of the paper.
      param_dtype: dtype in which the scalars are stored.

    Raises:
      TypeError: a layer or the activation is not callable.
      ValueError: there are fewer than two layers, or the shape of the branch is not that of its skip connection.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> layers = (nn.Conv(8, (3, 3), use_bias=False), nn.Conv(8, (3, 3), use_bias=False))
      >>> block = jaxinit.linen.FixupResidual(layers, nn.relu)
      >>> x = jnp.ones((1, 4, 4, 8))
      >>> params = jaxinit.initialize(
      ...     jax.random.key(0),
      ...     jax.eval_shape(block.init, jax.random.key(0), x),
      ...     block.apply,
      ...     x,
      ...     jaxinit.schemes.fixup(),
      ... )
      >>> bool(jnp.all(block.apply(params, x) == x))      # the last layer of the branch is zero
      True
      >>> sorted(params["params"])
      ['activation_bias_0', 'branch_bias', 'layer_bias_0', 'layer_bias_1', 'layers_0', 'layers_1', 'multiplier']

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    layers: Sequence[Callable[..., Any]]
    activation: Callable[..., Any]
    shortcut: Callable[..., Any] | None = None
    activate_sum: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Array:
        """The skip connection plus the branch."""
        check_fixup(self.layers, self.activation)

        def scalar(name: str) -> nn.Module:
            module = ScalarMultiplier if name == "multiplier" else ScalarBias
            return module(param_dtype=self.param_dtype, name=name)

        return fixup_residual(x, self.layers, self.activation, self.shortcut, self.activate_sum, scalar)


class ScaledResidual(nn.Module):
    r"""A residual branch multiplied by one learned scalar: SkipInit, ReZero.

    .. math:: y = s(x) + \alpha F(x), \qquad \alpha = 0 \text{ initially}

    where s is the identity by default. De and Smith call it SkipInit, Bachlechner et al. ReZero. The scalar is
    `multiplier/scale`. `jaxinit.initialize` treats it as a scalar that multiplies data and sets it to 1, unless
    `overrides={"*multiplier/scale*": jaxinit.zeros}` says otherwise.

    Args:
      branch: F.
      alpha: the initial value of α.
      shortcut: s, a module for the skip connection where the branch changes the shape.
      param_dtype: dtype in which the scalar is stored.

    Raises:
      ValueError: the shape of the branch is not that of its skip connection.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import jaxinit.linen
      >>> block = jaxinit.linen.ScaledResidual(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)]))
      >>> x = jnp.ones((2, 3))
      >>> params = block.init(jax.random.key(0), x)
      >>> bool(jnp.all(block.apply(params, x) == x))
      True

    Reference: De & Smith, 2020 (arXiv:2002.10444); Bachlechner et al., 2020 (arXiv:2003.04887).
    """

    branch: Callable[..., Any]
    alpha: float = 0.0
    shortcut: Callable[..., Any] | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Array:
        """The skip connection plus the scaled branch, to which further arguments are passed unchanged."""
        multiplier = ScalarMultiplier(self.alpha, self.param_dtype, name="multiplier")
        return add_branch(x if self.shortcut is None else self.shortcut(x), multiplier(self.branch(x, *args, **kwargs)))
