"""The edge of chaos: where a deep plain network neither forgets nor scrambles its input.

Mean-field theory follows the pre-activation variance q of a wide network with weights of variance
sigma_w²/fan_in and biases of variance sigma_b²: q ← sigma_w² E[f(√q z)²] + sigma_b². Two inputs converge
or diverge at the rate chi = sigma_w² E[f'(√q z)²]; at chi = 1 signals travel to any depth.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_number
from jaxinit._numbers._activations import Activation, cached, canonical_activation
from jaxinit._numbers._gain import elementwise
from jaxinit._numbers._quadrature import Integrand, gaussian_means

_GRID = np.logspace(-8, 4, 49)
# A value for the limit q → 0, at which an activation with a kink at zero still shows both of its slopes.
_VANISHING = 1e-24


class CriticalPoint(NamedTuple):
    """A point on the critical line: standard deviations, chi = 1, and the depth scale -1/ln(chi)."""

    sigma_w: float
    sigma_b: float
    chi: float
    depth_scale: float

    @property
    def weight_variance(self) -> float:
        """sigma_w²: the `scale` of variance scaling in mode "fan_in"."""
        return self.sigma_w**2

    @property
    def bias_variance(self) -> float:
        """sigma_b²."""
        return self.sigma_b**2


def critical(activation: Activation, bias_variance: float = 0.0) -> CriticalPoint:
    r"""Computes the weight and bias scale at the edge of chaos.

    Solves, for q and :math:`\sigma_w`,

    .. math::
        q = \sigma_w^2 \mathrm{E}[f(\sqrt q z)^2] + \sigma_b^2, \qquad
        \chi = \sigma_w^2 \mathrm{E}[f'(\sqrt q z)^2] = 1,

    and returns the smallest q that is a stable fixed point. At :math:`\chi = 1` the depth scale
    :math:`-1/\ln\chi` is infinite.

    Args:
      activation: a name or a differentiable elementwise function.
      bias_variance: sigma_b², not negative.

    Returns:
      `CriticalPoint(sigma_w, sigma_b, chi, depth_scale)`, with the variances as properties.

    Raises:
      ValueError: a negative or non-finite bias variance, or no stable critical point at this bias variance
        (ReLU and similar activations have one only without bias).

    Examples:
      >>> import jaxinit
      >>> point = jaxinit.critical("tanh", bias_variance=0.05)
      >>> round(point.weight_variance, 3)
      1.761
      >>> round(jaxinit.critical("relu").weight_variance, 3)
      2.0

    Reference: Poole et al., 2016 (arXiv:1606.05340); Schoenholz et al., 2017 (arXiv:1611.01232).
    """
    check_number("bias_variance", bias_variance, nonnegative=True)
    return _critical(canonical_activation(activation), float(bias_variance))


@cached
def _critical(activation: Activation, bias_variance: float) -> CriticalPoint:
    function = elementwise(activation)

    @jax.jit
    def moments(x: jax.Array) -> tuple[jax.Array, ...]:
        try:
            value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                f"{activation!r} must be written with jax.numpy, so that JAX can differentiate it"
            ) from error
        return value**2, slope**2

    roots = _fixed_points(moments, bias_variance)
    stable = [q for q in roots if _is_stable(moments, q, bias_variance)]
    if not stable:
        raise ValueError(
            f"{activation!r} has no stable critical point at bias_variance={bias_variance}: no weight variance has "
            "a stable fixed point with chi = 1. Try another bias variance: ReLU and similar activations have their "
            "critical point only at 0, GELU and SiLU only from about 0.2 on"
        )
    q = min(stable)
    slope_moment = gaussian_means(moments, q)[1]
    weight_variance = 1 / slope_moment
    return CriticalPoint(math.sqrt(weight_variance), math.sqrt(bias_variance), 1.0, math.inf)


def _gap(moments: Integrand, q: float, bias_variance: float) -> float:
    """By how much q would grow in a layer whose weight variance makes chi = 1."""
    value_moment, slope_moment = gaussian_means(moments, q)
    return float(value_moment / slope_moment + bias_variance - q) if slope_moment > 0 else math.nan


def _fixed_points(moments: Integrand, bias_variance: float) -> list[float]:
    """All q in the range of the grid where the gap is zero, and the limit q → 0 if the gap is zero there."""
    from scipy.optimize import brentq  # here, so that importing the package stays light

    # Every fixed point is above the bias variance, and for bounded activations close to it.
    grid = np.unique([*_GRID, *(bias_variance * np.array([1.0, 1.01, 1.1, 2.0, 10.0, 100.0]))])
    grid = grid[grid > 0]
    gaps = np.array([_gap(moments, q, bias_variance) for q in grid])
    if np.all(np.abs(gaps) <= 1e-9 * grid):
        return [1.0]  # positively homogeneous: every q is a fixed point
    value_at_zero = gaussian_means(moments, 0.0)[0]
    roots = [_VANISHING] if value_at_zero == 0 and bias_variance == 0 else []
    # Near q = 0 rounding decides the sign; a root closer to it than this is q = 0 itself.
    signs = np.where(np.abs(gaps) <= 1e-12 * grid, 0.0, np.sign(gaps))
    for left, right, before, after in zip(grid[:-1], grid[1:], signs[:-1], signs[1:], strict=True):
        if before * after < 0:
            roots.append(brentq(lambda q: _gap(moments, q, bias_variance), left, right, rtol=1e-14))
    return roots


def _is_stable(moments: Integrand, q: float, bias_variance: float) -> bool:
    """Whether the variance map at this weight variance moves a slightly larger q back."""
    weight_variance = 1 / gaussian_means(moments, q)[1]
    larger = max(q * 1.01, 1e-3)
    mapped = weight_variance * gaussian_means(moments, larger)[0] + bias_variance
    return bool(mapped <= larger * (1 + 1e-9))
