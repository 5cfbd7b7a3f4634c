"""What is measured at each layer: on the way forward from its output, on the way back from the gradient there.

The gradient is measured by the identity with a derivative of its own: backwards it hands the gradient on, and gives its
root mean square as the "gradient" of a number that nothing depends on. So both passes measure all layers, inside
loops too, and nothing is stored.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._diagnose._activity import Activity, no_activity
from jaxinit._diagnose._sizes import mean_and_std, real, rms
from jaxinit._evaluate import Place
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array


class Measured(NamedTuple):
    """Sums over the uses of a layer in one call, of means over the elements of its output."""

    uses: Array
    mean: Array
    std: Array


class ProbeState(NamedTuple):
    """What is known of a unit.

    Attributes:
      probe: numbers whose gradients are sums over uses: of root mean squares, of ones, of samples.
      measured: of its outputs.
      activity: of what activations make of them.
      attention: for queries and keys, the sum over uses of the mean largest probability, and how many there were.
    """

    probe: Array
    measured: Measured
    activity: Activity
    attention: Array


def empty() -> ProbeState:
    """Nothing measured yet."""
    return ProbeState(
        jnp.zeros(3, jnp.float32), Measured(*[jnp.zeros((), jnp.float32)] * 3), no_activity(), jnp.zeros(2, jnp.float32)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _probed(x: Array, probe: Array, samples: int) -> Array:
    return x


def _probed_forward(x: Array, probe: Array, samples: int) -> tuple[Array, None]:
    return x, None


def _probed_backward(samples: int, _: None, gradient: Array) -> tuple[Array, Array]:
    size = with_automatic_axes(lambda x: rms(x, tuple(range(x.ndim))), gradient)
    return gradient, jnp.stack([size, jnp.ones((), jnp.float32), jnp.full((), samples, jnp.float32)])


_probed.defvjp(_probed_forward, _probed_backward)


def probe(place: Place, state: ProbeState, output: Array) -> tuple[ProbeState, Array]:
    """Measures a layer's output, and lets it pass."""
    found = with_automatic_axes(lambda x: mean_and_std(real(x)), lax.stop_gradient(output))
    measured = Measured(*(a + b for a, b in zip(state.measured, (jnp.ones((), jnp.float32), *found), strict=True)))
    features = place.site.placed.values()
    samples = math.prod(n for d, n in enumerate(output.shape) if d not in features)
    return state._replace(measured=measured), _probed(output, state.probe, samples)
