"""What activations make of the outputs of layers: how many units are dead or saturated, how alike samples are.

Measured at the input of the activation itself, whatever stands between it and the layer.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._diagnose._curves import FLAT, curve
from jaxinit._diagnose._sizes import mean_and_std, real, size_of
from jaxinit._layers._activated import Meeting
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
    return Activity(*[jnp.zeros(())] * 7)


def activity(meeting: Meeting, value: Array) -> Activity:
    """What is measured at one meeting."""
    z = real(lax.stop_gradient(meeting.of(value)))
    known = curve(meeting.activation)
    if known is None:
        post, dead, saturated = z, jnp.zeros(()), jnp.zeros(())
    else:
        # Without the barrier the compiler repeats the activation in each of the statistics.
        post, slope = lax.optimization_barrier(jax.jvp(known.activation, (z,), (jnp.ones_like(z),)))  # type: ignore[no-untyped-call]
        slope = jnp.abs(slope)
        dead = jnp.mean(jnp.sum(slope, meeting.samples) == 0, dtype=jnp.float32)
        saturated = jnp.mean(slope < FLAT * known.steepest, dtype=jnp.float32)
    values = (*mean_and_std(post), dead, saturated, *_between_samples(post, meeting.samples, meeting.features))
    weight = float(z.size)
    return Activity(jnp.float32(weight), *(weight * x.astype(jnp.float32) for x in values))


def _between_samples(x: Array, samples: tuple[int, ...], features: tuple[int, ...]) -> tuple[Array, Array]:
    """The mean cosine between pairs of some of the samples, and the participation ratio of their Gram matrix."""
    vectors = jnp.transpose(x, samples + features)
    vectors = vectors.reshape(math.prod(x.shape[d] for d in samples), math.prod(x.shape[d] for d in features))
    step = max(len(vectors) // VECTORS, 1)
    some = vectors[::step][:VECTORS]
    some = some / size_of(some, (0, 1))
    gram = some @ some.T
    norms = jnp.sqrt(jnp.diag(gram))
    cosines = gram / jnp.maximum(norms[:, None] * norms, 1e-30)
    pairs = max(len(some) * (len(some) - 1), 1)
    similarity = (jnp.sum(cosines) - jnp.sum(jnp.diag(cosines))) / pairs
    rank = jnp.trace(gram) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-30)
    return similarity, rank
