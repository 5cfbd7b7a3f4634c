"""Gaussian means E[f(z)], z ~ N(0, variance), of elementwise functions, to near machine precision.

Gauss-Hermite rules stall at 1e-3 on functions with a kink. Here Gauss-Legendre panels cover twelve
standard deviations. A panel is halved wherever two rules disagree, or where the interpolating polynomial of a rule
misses the function at an end of the panel, beyond the outermost nodes. So kinks and steps anywhere are resolved.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import outside_traces
from jaxinit._typing import Array

_REACH = 12.0
# Panels are evaluated in batches of one shape, so that JAX compiles an activation once.
_BATCH = 48
_ROUNDS = 50
_TOLERANCE = 1e-13
# The error of the integral that a step or a kink between an end of a panel and its outermost node may cause.
_HIDDEN = 1e-10
# A function with more unresolved panels than these is noise, or not a function of a single variable.
_MOST_PANELS = 2048
# If a panel that cannot be resolved, or the very end, holds this share of an integral, the integral diverges.
_DIVERGENT = 1e-6

Integrand = Callable[[Array], tuple[Array, ...]]


def gaussian_means(integrand: Integrand, variance: float = 1.0) -> np.ndarray:
    """E[f(z)] for each of the functions that `integrand` returns, z ~ N(0, variance).

    Args:
      integrand: maps points, a float64 vector, to a tuple of vectors of the same length.
      variance: of z.

    Returns:
      A float64 vector with one mean per function; infinite where the integral diverges, NaN where the function is NaN.

    Raises:
      ValueError: a function is too irregular to integrate.
    """
    pending = list(itertools.pairwise(np.linspace(-_REACH, _REACH, _BATCH // 2 + 1)))
    whole, _ = _integrate(integrand, pending, variance)
    ends = np.abs(whole[[0, -1]]).max(axis=0)
    total = np.zeros(whole.shape[1])
    for _ in range(_ROUNDS):
        halves = [half for left, right in pending for half in _halve(left, right)]
        parts, hidden = _integrate(integrand, halves, variance)
        refined = parts[0::2] + parts[1::2]
        scale = np.abs(total + refined.sum(axis=0)) + np.finfo(float).tiny
        # "not <=" excludes NaN from the unresolved panels: halving cannot fix it.
        unresolved = (np.abs(refined - whole) > _TOLERANCE * scale).any(axis=1)
        unresolved |= (np.maximum(hidden[0::2], hidden[1::2]) > _HIDDEN * scale).any(axis=1)
        total += refined[~unresolved].sum(axis=0)
        if not unresolved.any():
            return np.where(ends > _DIVERGENT * np.abs(total), np.inf, total)
        if unresolved.sum() > _MOST_PANELS:
            raise ValueError("the function is too irregular to integrate")
        kept = np.repeat(unresolved, 2)
        pending = [half for half, keep in zip(halves, kept, strict=True) if keep]
        whole = parts[kept]
    rest = whole.sum(axis=0)
    return np.where(np.abs(rest) > _DIVERGENT * np.abs(total), np.inf, total + rest)


def _halve(left: float, right: float) -> tuple[tuple[float, float], tuple[float, float]]:
    middle = (left + right) / 2
    return (left, middle), (middle, right)


def _integrate(
    integrand: Integrand, panels: list[tuple[float, float]], variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The integral over each panel, and a bound of the error at its ends: both of shape (panels, functions)."""
    rule = _legendre_rule()
    integrals, hidden = [], []
    for start in range(0, len(panels), _BATCH):
        batch = np.array(panels[start : start + _BATCH])
        padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), 2))])
        middle, half = padded.mean(axis=1), (padded[:, 1] - padded[:, 0]) / 2
        z = middle[:, None] + half[:, None] * rule.points
        density = half[:, None] * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        values = evaluate(integrand, np.sqrt(variance) * z.reshape(-1)).reshape(-1, *z.shape) * density
        integrals.append((values * rule.weights).sum(axis=-1).T[: len(batch)])
        hidden.append(np.abs(values @ rule.misses).max(axis=-1).T[: len(batch)])
    return np.concatenate(integrals), np.concatenate(hidden)


class _Rule(NamedTuple):
    """Points on [-1, 1], the weights of the integral, and the weights of what may be missed at either end.

    The points are the Gauss-Legendre nodes, and two practically at the ends. A step between an end and the outermost
    node contributes at most its height, which is the error of the polynomial through the nodes, times the distance.
    """

    points: np.ndarray
    weights: np.ndarray
    misses: np.ndarray


@functools.cache
def _legendre_rule() -> _Rule:
    """Computed on first use, which keeps the import of the package light."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    ends = np.array([-1.0, 1.0]) * (1 - 1e-9)
    powers, at_ends = (np.polynomial.legendre.legvander(x, 11) for x in (nodes, ends))
    through_nodes = np.linalg.solve(powers.T, at_ends.T)
    distance = 1 - nodes[-1]
    misses = distance * np.concatenate([through_nodes, -np.eye(2)])
    return _Rule(np.concatenate([nodes, ends]), np.concatenate([weights, np.zeros(2)]), misses)


def evaluate(functions: Integrand, points: np.ndarray) -> np.ndarray:
    """The functions at float64 points, shape (functions, points), even inside a trace or without x64 mode."""

    def compute() -> np.ndarray:
        # The caller checks for infinite or undefined values.
        quiet = jax.debug_nans(False), jax.debug_infs(False)
        with jax.enable_x64(True), jax.default_device(_host()), quiet[0], quiet[1]:
            results = [np.asarray(values) for values in functions(jnp.asarray(points))]
            if any(np.iscomplexobj(values) for values in results):
                raise ValueError("the function returns complex numbers, expected real ones")
            return np.stack([values.astype(np.float64) for values in results])

    return outside_traces(compute)


def _host() -> jax.Device | None:
    """A CPU device, whose float64 is exact; or the default device if JAX was started without one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
