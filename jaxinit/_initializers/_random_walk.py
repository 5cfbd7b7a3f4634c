"""Random-walk initialization: the logarithm of the gradient's norm takes an unbiased walk through the layers.

He's variance keeps the *mean* square of a signal, but a typical signal in a deep narrow net still shrinks, since
E log is below log E. A gain slightly above He's, which depends on the width, centres the logarithm instead.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import random
from jaxinit._caches import kept_with_functions, weakly
from jaxinit._checks import check_integer
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._numbers import (
    Activation,
    activation_function,
    canonical_activation,
    elementwise,
    evaluate,
    fans,
    gaussian_means,
)
from jaxinit._typing import Array, Axis, DTypeLike

Moments = Callable[[float], np.ndarray]
"""Maps a variance q to E[f(√q z)²], E[f'(√q z)²] and E[f'(√q z)⁴]."""

# They are interpolated over log q by polynomials of degree 7 through points an eighth apart: gains are right to
# some 1e-9.
_STEP = 1 / 8
_DEGREE = 7
# Here f is practically linear.
_SMALL_VARIANCE = 1e-9


@initializer
class random_walk(Initializer):
    r"""Normal weights whose gain keeps the log-norm of gradients from drifting over depth.

    .. math::
        w \sim N(0, g^2 / N), \qquad g_\text{linear} = e^{1/(2N)}, \qquad
        g_\text{ReLU} = \sqrt2 \exp\frac{1.2}{\max(N, 6) - 2.4}

    with N the fan-in. For other activations g solves

    .. math::
        \sum_{l=1}^{\text{depth}} \log(g^2 m_2(q_l)) = \frac1{2N} \sum_{l=1}^{\text{depth}}
        \left(\frac{3 m_4(q_l)}{m_2(q_l)^2} - 1\right), \qquad m_k(q) = \mathrm{E}[f'(\sqrt q z)^k]

    along the mean-field variances q of the pre-activations, for inputs of mean square one. The right side is the
    bias of a logarithm, to first order in 1/N, and matches the two closed forms.

    Args:
      activation: a name or a differentiable elementwise function.
      depth: number of layers. Required unless the activation is linear, ReLU or another function with
        f(cx) = c f(x), for which every layer has the same drift.
      in_axis, out_axis, batch_axis: as in `variance_scaling`.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: an unknown activation, a missing or bad depth, a network with no such gain; when
        called, on axes that do not fit the shape.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.random_walk("relu")(jax.random.key(0), (128, 64)).shape
      (128, 64)
      >>> jaxinit.random_walk("tanh", depth=50)
      random_walk(activation='tanh', depth=50)

    Reference: Sussillo & Abbott, 2014 (arXiv:1412.6558).
    """

    activation: Activation = "relu"
    depth: int | None = None
    in_axis: Axis = -2
    out_axis: Axis = -1
    batch_axis: Axis = ()
    dtype: DTypeLike = None

    def _check(self) -> None:
        object.__setattr__(self, "activation", canonical_activation(self.activation))
        if self.depth is not None:
            check_integer("depth", self.depth, 1)
        elif self.activation not in ("linear", "relu") and not _is_homogeneous(self.activation):
            raise ValueError(
                f"random_walk({self.activation!r}) needs depth, the number of layers: the drift of its "
                "gradients differs from layer to layer"
            )

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        fan_in, _ = fans(shape, self.in_axis, self.out_axis, self.batch_axis)
        stddev = random_walk_gain(self.activation, fan_in, self.depth or 1) / math.sqrt(fan_in)
        return random.normal(key, shape, dtype) * dtype.type(stddev)


@kept_with_functions(1024)
def random_walk_gain(activation: Activation, fan_in: int | float, depth: int) -> float:
    """g for this width and depth.

    Raises:
      ValueError: no gain between 0.2 and 20 leaves the gradient without drift.
    """
    if activation == "linear":
        return math.exp(1 / (2 * fan_in))
    if activation == "relu":
        return math.sqrt(2) * math.exp(1.2 / (max(fan_in, 6) - 2.4))
    from scipy.optimize import brentq  # here, so that importing the package stays light

    moments = _moments(activation)

    def drift(log_gain: float) -> float:
        return _drift(moments, math.exp(2 * log_gain), fan_in, depth)

    # From below: far beyond the root the expansion in 1/fan_in breaks down for activations that saturate.
    for low, high in itertools.pairwise(np.linspace(math.log(0.2), math.log(20.0), 49)):
        if drift(high) >= 0:
            return math.exp(brentq(drift, low, high, xtol=1e-10))
    raise ValueError(
        f"{activation!r} over {depth} layers of {fan_in} inputs has no gain that keeps its gradients "
        "from drifting; use variance_scaling(gain(activation)**2, 'fan_in', 'normal')"
    )


def _drift(moments: Moments, gain_squared: float, fan_in: float, depth: int) -> float:
    """The expected change of the log-norm of a gradient over the layers."""
    total, mean_square = 0.0, 1.0
    for layer in range(depth):
        variance = gain_squared * mean_square
        if not math.isfinite(variance):
            return math.nan
        following, slope_2, slope_4 = map(float, moments(variance))
        if slope_2 <= 0:
            return -math.inf
        change = math.log(gain_squared * slope_2) - (3 * slope_4 / slope_2**2 - 1) / (2 * fan_in)
        total += change
        if abs(following - mean_square) <= 1e-12 * following:
            return total + (depth - 1 - layer) * change  # the variance has settled, and so has the drift
        mean_square = following
    return total


@kept_with_functions(64)
def _moments(activation: Activation) -> Moments:
    """Cached integrals; one set serves every width, depth and gain."""
    elementwise(activation)  # raises if it is not
    function = weakly(activation)

    @jax.jit
    def powers(x: Array) -> tuple[Array, ...]:
        value, slope = jax.jvp(activation_function(function()), (x,), (jnp.ones_like(x),))
        return value**2, slope**2, slope**4

    @functools.cache
    def at(index: int) -> np.ndarray:
        return gaussian_means(powers, math.exp(index * _STEP))

    @functools.cache
    def at_zero() -> float:
        return float(gaussian_means(powers, 0.0)[0])

    def moments(variance: float) -> np.ndarray:
        place = math.log(max(variance, _SMALL_VARIANCE)) / _STEP
        first = math.floor(place) - _DEGREE // 2
        indices = np.arange(first, first + _DEGREE + 1)
        found = _lagrange_weights(place - indices) @ np.stack([at(int(index)) for index in indices])
        if variance < _SMALL_VARIANCE:
            found[0] = at_zero() + (found[0] - at_zero()) * (variance / _SMALL_VARIANCE)
        return found

    return moments


def _lagrange_weights(offsets: np.ndarray) -> np.ndarray:
    """The share of each value at unit distances in the polynomial through them, at `offsets` from each."""
    distances = offsets[None, :] - offsets[:, None]  # of node i from node j, for the row i
    ratios = np.divide(offsets[None, :], distances, out=np.ones_like(distances), where=distances != 0)
    return ratios.prod(axis=1)


@kept_with_functions(64)
def _is_homogeneous(activation: Activation) -> bool:
    """Whether f(cx) = c f(x) for c > 0."""
    function = elementwise(activation)
    points = np.linspace(-3.0, 3.0, 12)
    once, doubled = (evaluate(lambda x: (function(x),), scale * points) for scale in (1.0, 2.0))
    return bool(np.allclose(2 * once, doubled, rtol=1e-9, atol=0))
