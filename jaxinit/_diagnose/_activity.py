"""What activations make of the outputs of layers: how many units are dead or saturated, how alike samples are.

Measured at the input of the activation itself, whatever stands between it and the layer.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._diagnose._curves import FLAT, curve
from jaxinit._diagnose._sizes import divisor, real, spread, totals
from jaxinit._reading import Meeting
from jaxinit._typing import Array

VECTORS = 64
"""So many samples are compared with one another."""


class Activity(NamedTuple):
    """Sums over the meetings of a unit with its activations, each weighted by how many elements meet there.

    Attributes:
      weight: the elements.
      mean, std: of what the activation makes of them.
      dead: share of units whose activation has no slope at any sample.
      saturated: share of elements where it has next to none.
      similarity: mean cosine between pairs of samples.
      rank: participation ratio of the samples.
    """

    weight: Array
    mean: Array
    std: Array
    dead: Array
    saturated: Array
    similarity: Array
    rank: Array

    def plus(self, other: "Activity") -> "Activity":
        """The sums over both."""
        return Activity(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self) -> dict[str, Array]:
        """The weighted means, by name."""
        weight = jnp.where(self.weight > 0, self.weight, 1)
        return {name: value / weight for name, value in self._asdict().items() if name != "weight"}


def no_activity() -> Activity:
    """Nothing met yet."""
    return Activity(*[jnp.zeros((), jnp.float32)] * 7)


def activity(meeting: Meeting, value: Array) -> Activity:
    """What is measured at one meeting."""
    z = real(lax.stop_gradient(meeting.of(value)))
    known, samples = curve(meeting.activation), meeting.samples
    dead, saturated = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    if known is None:
        post = z
        mean, size = totals([z / z.size, jnp.abs(z) / z.size], samples)
    else:
        # Without the barrier the compiler repeats the activation in each of the statistics.
        post, slope = lax.optimization_barrier(jax.jvp(known.activation, (z,), (jnp.ones_like(z),)))  # type: ignore[no-untyped-call]
        slope = jnp.abs(slope)
        idle = (jnp.sum(slope, samples, keepdims=True) == 0).astype(z.dtype)
        flat = (slope < FLAT * known.steepest).astype(z.dtype)
        shares = (x / z.size for x in (post, jnp.abs(post), jnp.broadcast_to(idle, z.shape), flat))
        mean, size, dead, saturated = totals(list(shares), samples)
    std = spread(post, mean, size, samples)
    values = (mean, std, dead, saturated, *_between_samples(post, divisor(size), samples, meeting.features))
    weight = float(z.size)
    return Activity(jnp.float32(weight), *(weight * x.astype(jnp.float32) for x in values))


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
