"""What is measured at each layer: on the way forward from its output, on the way back from the gradient there.

The gradient is measured by the identity with a derivative of its own: backwards it hands the gradient on, and gives its
root mean square as the "gradient" of a number that nothing depends on. So both passes measure all layers, inside
loops too, and nothing is stored.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._dtypes import drawing_dtype
from jaxinit._layers._following import TracedActivation
from jaxinit._layers._place import Place
from jaxinit._layers._units import Unit
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array

VECTORS = 64
"""So many samples are compared with one another."""

FLAT = 0.05
"""A slope below so much of the largest one counts as none."""


class Measured(NamedTuple):
    """Sums over the uses of a layer in one call, of means over the elements of its output.

    Attributes:
      uses: how many uses.
      pre_mean, pre_std, post_mean, post_std: of the output and of what its activation makes of it.
      dead: share of units whose activation has no slope at any sample.
      saturated: share of elements where it has next to none.
      similarity: mean cosine between pairs of samples.
      rank: participation ratio of the samples.
    """

    uses: Array
    pre_mean: Array
    pre_std: Array
    post_mean: Array
    post_std: Array
    dead: Array
    saturated: Array
    similarity: Array
    rank: Array


class ProbeState(NamedTuple):
    """Numbers whose gradients are sums over uses: of root mean squares, of ones, of samples; and what was measured."""

    probe: Array
    measured: Measured


def empty() -> ProbeState:
    """Nothing measured yet."""
    return ProbeState(jnp.zeros(3), Measured(*[jnp.zeros(())] * 9))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _probed(x: Array, probe: Array, samples: int) -> Array:
    return x


def _probed_forward(x: Array, probe: Array, samples: int) -> tuple[Array, None]:
    return x, None


def _probed_backward(samples: int, _: None, gradient: Array) -> tuple[Array, Array]:
    size = with_automatic_axes(lambda x: rms(x, tuple(range(x.ndim))), gradient)
    return gradient, jnp.stack([size, jnp.ones(()), jnp.full((), samples, jnp.float32)])


_probed.defvjp(_probed_forward, _probed_backward)


@dataclasses.dataclass(frozen=True)
class Probe:
    """The visitor of `diagnose`.

    Attributes:
      activations: the activation that follows each layer, and its largest slope.
    """

    activations: Mapping[Unit, tuple[TracedActivation, float] | None]

    def initial(self, unit: Unit) -> ProbeState:
        """A unit that no layer has used yet."""
        return empty()

    def is_final(self, state: ProbeState) -> bool:
        """Every use counts."""
        return False

    def scale(self, state: ProbeState) -> Array:
        """Weights stay as they are."""
        return jnp.ones(())

    def use(self, place: Place, state: ProbeState | None, u: Array, bias: Array | None) -> tuple[ProbeState, Array]:
        """Measures a layer's output, and lets it pass."""
        state = empty() if state is None else state
        output = u if bias is None else u + bias
        found = with_automatic_axes(functools.partial(self._measured, place), jax.lax.stop_gradient(output))
        measured = Measured(*(a + b for a, b in zip(state.measured, found, strict=True)))
        samples = math.prod(output.shape[d] for d in self._axes(place, output)[0])
        return ProbeState(state.probe, measured), _probed(output, state.probe, samples)

    @staticmethod
    def _axes(place: Place, z: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The dimensions of an output along which samples and positions lie, and those of its units."""
        features = tuple(sorted(set(place.site.placed.values()) & set(range(z.ndim))))
        return tuple(d for d in range(z.ndim) if d not in features), features

    def _measured(self, place: Place, z: Array) -> Measured:
        z = jnp.abs(z) if jnp.iscomplexobj(z) else z
        z = z.astype(drawing_dtype(z.dtype))
        samples, features = self._axes(place, z)
        known = self.activations.get(place.unit)
        if known is None:
            post, dead, saturated = z, jnp.zeros(()), jnp.zeros(())
        else:
            activation, steepest = known
            # Without the barrier the compiler repeats the activation in each of the statistics.
            post, slope = lax.optimization_barrier(jax.jvp(activation, (z,), (jnp.ones_like(z),)))  # type: ignore[no-untyped-call]
            slope = jnp.abs(slope)
            dead = jnp.mean(jnp.sum(slope, samples) == 0, dtype=jnp.float32)
            saturated = jnp.mean(slope < FLAT * steepest, dtype=jnp.float32)
        similarity, rank = _between_samples(post, samples, features)
        values = (*_mean_and_std(z), *_mean_and_std(post), dead, saturated, similarity, rank)
        return Measured(jnp.ones(()), *(x.astype(jnp.float32) for x in values))


def rms(x: Array, axes: tuple[int, ...]) -> Array:
    """The root mean square along some axes, of numbers whose squares float32 may not hold."""
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    x = x.astype(drawing_dtype(x.dtype))
    scale = _scale(_some(x, axes), axes)
    return (jnp.squeeze(scale, axes) * jnp.sqrt(jnp.mean((x * (1 / scale)) ** 2, axes))).astype(jnp.float32)


def _scale(x: Array, axes: tuple[int, ...]) -> Array:
    """Something of the size of x to divide by, also where x is zero, infinite, or its reciprocal is."""
    peak = jnp.max(jnp.abs(x), axes, initial=0, keepdims=True)
    return jnp.where((peak > 0) & jnp.isfinite(peak), jnp.maximum(peak, 1e-37), 1)


def _some(x: Array, axes: tuple[int, ...]) -> Array:
    """At least every sixteenth slice: the size of some tells that of all to far less than a factor of 10^19."""
    if not axes:
        return x
    longest = max(axes, key=lambda axis: x.shape[axis])
    length = x.shape[longest]
    return lax.slice_in_dim(x, 0, length, stride=min(16, max(length // 16, 1)), axis=longest)


def _mean_and_std(x: Array) -> tuple[Array, Array]:
    mean = jnp.mean(x)
    return mean, rms(x - mean, tuple(range(x.ndim)))


def _between_samples(x: Array, samples: tuple[int, ...], features: tuple[int, ...]) -> tuple[Array, Array]:
    """The mean cosine between pairs of some of the samples, and the participation ratio of their Gram matrix."""
    vectors = jnp.transpose(x, samples + features)
    vectors = vectors.reshape(math.prod(x.shape[d] for d in samples), math.prod(x.shape[d] for d in features))
    step = max(len(vectors) // VECTORS, 1)
    some = vectors[::step][:VECTORS]
    some = some / _scale(some, (0, 1))
    gram = some @ some.T
    norms = jnp.sqrt(jnp.diag(gram))
    cosines = gram / jnp.maximum(norms[:, None] * norms, 1e-30)
    pairs = max(len(some) * (len(some) - 1), 1)
    similarity = (jnp.sum(cosines) - jnp.sum(jnp.diag(cosines))) / pairs
    rank = jnp.trace(gram) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-30)
    return similarity, rank
