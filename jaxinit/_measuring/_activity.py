"""What activations do to the outputs of layers: how many units are dead or saturated, how alike samples are.

Measured at the input of the activation itself, whatever is between it and the layer.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from scipy.special import stdtrit

from jaxinit._measuring._activation_facts import FLAT, Curve, curve
from jaxinit._measuring._overflow_safe import divisor, real, spread, totals
from jaxinit._reading import ActivationInput, TracedActivation
from jaxinit._stages import hosted
from jaxinit._typing import Array

SURE = 0.99
"""The confidence with which a unit that is dead at all samples must be dead at others, to count as surely dead."""
VECTORS = 64
"""How many samples are compared with one another."""


class Activity(NamedTuple):
    """Sums over the activations of a weight's outputs, each weighted by the number of its elements.

    Attributes:
      weight: the number of elements.
      mean, std: of the outputs of the activations.
      dead: share of units whose activation has no slope at any sample.
      surely: share of units that have none at other samples either, judging by the spread of their inputs.
      saturated: share of elements where the slope is nearly zero.
      similarity: mean cosine between pairs of samples.
      rank: participation ratio of the samples.
    """

    weight: Array
    mean: Array
    std: Array
    dead: Array
    surely: Array
    saturated: Array
    similarity: Array
    rank: Array

    def plus(self, other: "Activity") -> "Activity":
        """The sum of both."""
        return Activity(*map(lax.add, self, other))

    def means(self) -> dict[str, Array]:
        """The weighted means, by name."""
        weight = jnp.where(self.weight > 0, self.weight, 1)
        return {name: value / weight for name, value in self._asdict().items() if name != "weight"}


def no_activity() -> Activity:
    """The sums before any activation."""
    return Activity(*[jnp.zeros((), jnp.float32)] * 8)


def activity(activation_input: ActivationInput, weighs: bool, value: Array) -> Activity:
    """The measurements at one activation; if it weighs other data, changes of its values count as factors."""
    z = lax.stop_gradient(activation_input.of(value))
    known = curve(activation_input.activation)
    return _measured(z, known, weighs, activation_input.samples, activation_input.features)


@hosted(static_argnums=(1, 2, 3, 4))
def _measured(
    value: Array, known: Curve | None, weighs: bool, samples: tuple[int, ...], features: tuple[int, ...]
) -> Activity:
    z = real(value)
    dead, surely, saturated = [jnp.zeros((), jnp.float32)] * 3
    if known is None:
        post = z
        mean, size = totals([z / z.size, jnp.abs(z) / z.size], samples)
    else:
        # Without the barrier the compiler would repeat the activation in each of the statistics.
        post, slope = lax.optimization_barrier(jax.jvp(known.activation, (z,), (jnp.ones_like(z),)))  # type: ignore[no-untyped-call]
        slope = jnp.abs(slope)
        idle = (jnp.sum(slope, samples, keepdims=True) == 0).astype(z.dtype)
        sure = idle * _is_idle_beside(known.activation, z, samples)
        flat = slope < FLAT * known.steepest
        if weighs:
            flat &= slope < FLAT * jnp.abs(post)
        of_units = (jnp.broadcast_to(x, z.shape) for x in (idle, sure))
        shares = (x / z.size for x in (post, jnp.abs(post), *of_units, flat.astype(z.dtype)))
        mean, size, dead, surely, saturated = totals(list(shares), samples)
    std = spread(post, mean, size, samples)
    values = (
        mean,
        std,
        dead,
        surely,
        saturated,
        *_between_samples(post, divisor(size), samples, features),
    )
    weight = float(z.size)
    return Activity(jnp.float32(weight), *(weight * x.astype(jnp.float32) for x in values))


def _is_idle_beside(activation: TracedActivation, z: Array, samples: tuple[int, ...]) -> Array:
    """Whether an activation also has no slope as far out as one more sample of a unit may be (Student's t)."""
    count = math.prod(z.shape[d] for d in samples)
    if count < 2:
        return jnp.zeros((), z.dtype)
    reach = float(stdtrit(count - 1, SURE)) * math.sqrt((1 + 1 / count) * count / (count - 1))
    mean = jnp.mean(z, samples, keepdims=True)
    off = reach * jnp.sqrt(jnp.mean((z - mean) ** 2, samples, keepdims=True))
    beside = jnp.concatenate([mean - off, mean + off])
    _, slope = jax.jvp(activation, (beside,), (jnp.ones_like(beside),))
    below, above = jnp.split(slope == 0, 2)
    return (below & above).astype(z.dtype)


def _between_samples(x: Array, size: Array, samples: tuple[int, ...], features: tuple[int, ...]) -> tuple[Array, Array]:
    """The mean cosine between pairs of some of the samples, and the participation ratio of their Gram matrix."""
    vectors = jnp.transpose(x, samples + features)
    vectors = vectors.reshape(math.prod(x.shape[d] for d in samples), math.prod(x.shape[d] for d in features))
    step = max(len(vectors) // VECTORS, 1)
    some = vectors[::step][:VECTORS] / size
    gram = some @ some.T
    squares = jnp.sum(some * some, 1)
    norms = jnp.sqrt(squares)
    cosines = gram / jnp.maximum(norms[:, None] * norms[None], 1e-30)
    by_sample = [jnp.sum(cosines, 0), jnp.sum(gram**2, 0), squares, (squares > 0).astype(squares.dtype)]
    all_cosines, square_sum, trace, own = totals(by_sample, ())
    pairs = max(len(some) * (len(some) - 1), 1)
    return (all_cosines - own) / pairs, trace**2 / jnp.maximum(square_sum, 1e-30)
