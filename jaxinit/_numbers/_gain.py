"""The gain of an activation: the factor on the weights that compensates for what the activation removes.

With z standard normal, gain = 1/sqrt(E[f(z)²]), computed by quadrature for any elementwise function.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._numbers._activations import Activation, activation_function, cached, canonical_activation
from jaxinit._numbers._quadrature import evaluate, gaussian_means
from jaxinit._typing import Array, Scalar

_TORCH_LINEAR = {"linear", "identity", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}
_TORCH_GAINS = {"sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def gain(
    activation: Activation,
    param: Scalar | None = None,
    *,
    convention: Literal["variance", "torch"] = "variance",
) -> float | Array:
    r"""Computes the factor on weights of variance 1/fan_in that keeps pre-activations at unit variance.

    .. math:: g = \mathrm{E}_{z \sim N(0,1)}[f(z)^2]^{-1/2}

    In a wide network standard normal pre-activations z become f(z), and W f(z) is standard normal again if W comes
    from variance scaling with `scale = gain(f)**2` and mode "fan_in". Kinks and steps are resolved; the value is
    exact to 1e-6 and better.

    Args:
      activation: a name ("relu", "tanh", "gelu", ...) or any elementwise function of an array.
      param: the activation's second argument, such as the slope of "leaky_relu" (there it may be traced).
      convention: "variance" for the formula above; "torch" for PyTorch's table, which differs: tanh 5/3
        instead of 1.5925, sigmoid 1 instead of 1.8462, selu 3/4 instead of 1.0000.

    Returns:
      A float, or a JAX scalar if `param` is one.

    Raises:
      ValueError: an unknown name; a function that is not elementwise, is zero, or has no finite second
        moment; or a function that is not in PyTorch's table, with that convention.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> round(jaxinit.gain("relu"), 6)
      1.414214
      >>> round(jaxinit.gain("leaky_relu", 0.2), 6)
      1.38675
      >>> round(jaxinit.gain(jax.nn.gelu), 4)
      1.5336
      >>> round(jaxinit.gain("tanh", convention="torch"), 4)
      1.6667

    Reference: He et al., 2015 (arXiv:1502.01852); Klambauer et al., 2017 (arXiv:1706.02515).
    """
    if convention == "torch":
        return _torch_gain(activation, param)
    if convention != "variance":
        raise ValueError(f"convention must be 'variance' or 'torch', got {convention!r}")
    activation = canonical_activation(activation)
    if isinstance(param, jax.Array):
        if activation != "leaky_relu":
            raise TypeError(
                f"the gain of {activation!r} is integrated numerically, so param must be a number, "
                "not a JAX array; only the slope of 'leaky_relu' may be one"
            )
        return jnp.sqrt(2 / (1 + param**2))
    return _quadrature_gain(activation, None if param is None else float(param))


def _torch_gain(activation: Activation, param: Scalar | None) -> float | Array:
    name = activation if activation in _TORCH_LINEAR else canonical_activation(activation)
    if name in _TORCH_LINEAR:
        return 1.0
    if name == "leaky_relu":
        slope = 0.01 if param is None else param
        return jnp.sqrt(2 / (1 + slope**2)) if isinstance(slope, jax.Array) else math.sqrt(2 / (1 + slope**2))
    if isinstance(name, str) and name in _TORCH_GAINS:
        return _TORCH_GAINS[name]
    known = sorted({"leaky_relu", *_TORCH_GAINS, *_TORCH_LINEAR})
    raise ValueError(
        f"PyTorch's table has no gain for {activation!r}, only for {', '.join(known)}; "
        "convention='variance' integrates any function"
    )


@cached
def _quadrature_gain(activation: Activation, param: float | None) -> float:
    function = elementwise(activation, param)
    # For a function with random factors, such as dropout, the mean square is not the square of the mean.
    square = getattr(activation, "second_moment", lambda z: function(z) ** 2)
    with np.errstate(all="ignore"):  # what overflows is reported below
        second_moment = float(gaussian_means(lambda z: (square(z),))[0])
    if not 0 < second_moment < math.inf:
        raise ValueError(
            f"{activation!r} has no gain: its second moment over standard normal inputs is {second_moment}, "
            "expected a positive finite number"
        )
    return 1 / math.sqrt(second_moment)


def elementwise(activation: Activation, param: float | None = None) -> Callable[[Array], Array]:
    """The activation as a function of one array, checked to act on each entry separately.

    Raises:
      ValueError: an output depends on other inputs, or the shape changes.
    """
    function = activation_function(activation)
    applied = function if param is None else lambda x: function(x, param)
    points = np.linspace(-2.0, 2.0, 16)[_SHUFFLED]
    try:
        values = _values(applied, points)
        probes = (np.where(_FIRST_HALF, points, 0.0), np.where(_FIRST_HALF, 0.0, points))
        first, second = (_values(applied, probe) for probe in probes)
        changed = np.where(_FIRST_HALF, first, second) if first.shape == points.shape else first
        backwards = _values(applied, points[::-1])
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{activation!r} cannot be evaluated as a real function of one array, got {type(error).__name__}: {error}"
        ) from error
    if not all(
        other.shape == values.shape == points.shape and np.allclose(values, other, rtol=1e-5, equal_nan=True)
        for other in (changed, backwards[::-1] if backwards.ndim else backwards)
    ):
        raise ValueError(
            f"{activation!r} is not elementwise: expected a function that maps an array to one of the same "
            "shape, entry by entry"
        )
    return applied


_SHUFFLED = np.array([7, 12, 2, 15, 4, 9, 0, 13, 10, 5, 1, 14, 8, 3, 11, 6])
_FIRST_HALF = np.arange(16) < 8


def _values(function: Callable[[Array], Array], points: np.ndarray) -> np.ndarray:
    (values,) = evaluate(lambda x: (function(x),), points)
    return np.asarray(values)
