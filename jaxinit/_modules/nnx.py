"""NNX modules for residual networks without normalization: scalars, and branches that have them where Fixup does."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxinit._modules._residual import (
    add_branch,
    add_scalar,
    check_fixup,
    fixup_residual,
    fixup_scalars,
    multiply_scalar,
)
from jaxinit._typing import Array


class ScalarBias(nnx.Module):
    """Adds one learned scalar, which starts at 0, to all of its input.

    Args:
      param_dtype: dtype in which the scalar is stored; the output has the dtype of the input.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> jaxinit.nnx.ScalarBias()(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    def __init__(self, *, param_dtype: Any = jnp.float32) -> None:
        self.bias = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(self, x: Any) -> Array:
        """The input plus the scalar."""
        return add_scalar(x, self.bias[...])


class ScalarMultiplier(nnx.Module):
    """Multiplies all of its input by one learned scalar.

    Args:
      initial: where the scalar starts.
      param_dtype: dtype in which the scalar is stored; the output has the dtype of the input.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> jaxinit.nnx.ScalarMultiplier()(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
    """

    def __init__(self, initial: float = 1.0, *, param_dtype: Any = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.asarray(initial, param_dtype))

    def __call__(self, x: Any) -> Array:
        """The input times the scalar."""
        return multiply_scalar(x, self.scale[...])


class FixupResidual(nnx.Module):
    r"""A residual branch with scalar biases and a scalar multiplier in place of normalization.

    .. math:: y = s(x) + \alpha \, W_m(f(\cdots f(W_1(x + a_1) + b_1) + a_2 \cdots) + a_m) + c

    for layers W and an activation f: a scalar bias (0 at the start) before every layer and every activation, one
    multiplier α (1) after the last layer, and one bias after that. A shortcut s reads x + a_1, as the first layer does.
    `jaxinit.initialize` with `jaxinit.schemes.fixup()` gives the layers the start that belongs to it, and
    `jaxinit.scalar_labels` finds the scalars, which learn at a tenth of the rate.

    Args:
      layers: two layers or more, without biases of their own.
      activation: the function between them.
      shortcut: a module for the skip connection where the branch changes the shape; x itself by default.
      activate_sum: whether the activation follows the addition too, as in the networks of the paper.
      param_dtype: dtype in which the scalars are stored.

    Raises:
      TypeError: a layer or the activation is not callable.
      ValueError: fewer than two layers, or a branch whose shape is not that of its skip connection.

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

    Reference: Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321).
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
    r"""A residual branch multiplied by one learned scalar: SkipInit, ReZero.

    .. math:: y = s(x) + \alpha F(x), \qquad \alpha = 0 \text{ at the start}

    with the identity for s by default. De and Smith call it SkipInit, Bachlechner et al. ReZero. The scalar is
    `multiplier/scale`; to `jaxinit.initialize` it is one that multiplies data and becomes 1, unless
    `overrides={"*multiplier/scale*": jaxinit.zeros}` says otherwise.

    Args:
      branch: F.
      alpha: where α starts.
      shortcut: s, a module for the skip connection where the branch changes the shape.
      param_dtype: dtype in which the scalar is stored.

    Raises:
      ValueError: a branch whose shape is not that of its skip connection.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit.nnx
      >>> from flax import nnx
      >>> block = jaxinit.nnx.ScaledResidual(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
      >>> block(jnp.ones(3))
      Array([1., 1., 1.], dtype=float32)

    Reference: De & Smith, 2020 (arXiv:2002.10444); Bachlechner et al., 2020 (arXiv:2003.04887).
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
        """The skip connection plus the scaled branch, which takes further arguments as they are."""
        branch = self.multiplier(self.branch(x, *args, **kwargs))
        return add_branch(x if self.shortcut is None else self.shortcut(x), branch)
