"""What is known of an activation without data: its largest slope, where it is flat, its effect on gradients.

Let z be standard normal and let weights keep signals, with variance 1 / E[f(z)²] over the fan-in. Then gradients change
by sqrt(E[f'(z)²] / E[f(z)²]) per layer: 1 for ReLU, 1.09 for tanh, 0.39 for the logistic sigmoid.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import outside_traces
from jaxinit._caches import forgotten_by_clear
from jaxinit._reading import TracedActivation
from jaxinit._stages import evaluated

FLAT = 0.05
"""A slope below this share of the largest one counts as zero."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """An activation.

    Attributes:
      activation: the function.
      steepest: its largest slope.
      flat: the share of standard normal numbers at which its slope is nearly zero.
      gradient_factor: by how much gradients grow in the backward pass through a layer that keeps signals.
      straight: whether it only multiplies by a constant, as attention divides its queries.
      positive: whether all its values are positive, as those of gates are.
      factor: whether its values are positive and unbounded, as those of step sizes: a change of z acts as a factor.
    """

    activation: TracedActivation
    steepest: float
    flat: float
    gradient_factor: float
    straight: bool
    positive: bool
    factor: bool


@forgotten_by_clear
@functools.lru_cache(maxsize=256)
def curve(activation: TracedActivation | None) -> Curve | None:
    """The facts of an activation; None if it has no slope, or not a finite one."""
    if activation is None:
        return None
    points = np.linspace(-6, 6, 2401, dtype=np.float32)

    def along(x: Any) -> Any:
        return jax.jvp(activation, (x,), (jnp.ones_like(x),))

    values, slopes = outside_traces(lambda: evaluated(along, points))
    values, slopes = np.asarray(values, np.float64), np.abs(np.asarray(slopes, np.float64))
    steepest = float(slopes.max())
    if not (np.isfinite(steepest) and steepest > 0):
        return None
    weights = np.exp(-(points.astype(np.float64) ** 2) / 2)
    flat = float((weights * (slopes < FLAT * steepest)).sum() / weights.sum())
    size, slope = ((weights * x**2).sum() for x in (values, slopes))
    factor = float(np.sqrt(slope / size)) if size > 0 else 1.0
    straight = bool(slopes.min() > 0.999 * steepest)
    ends = sorted((float(slopes[0]), float(slopes[-1])))
    positive = bool(values.min() >= 0 and values[len(values) // 2] > 0)  # values far out may underflow to zero
    grows = positive and ends[0] < FLAT * steepest and ends[1] > steepest / 2
    return Curve(activation, steepest, flat, factor, straight, positive, grows)


def is_factor(activation: TracedActivation | None) -> bool:
    """Whether an activation has positive, unbounded values, as softplus and exp do."""
    known = curve(activation)
    return known is not None and known.factor
