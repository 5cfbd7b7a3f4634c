"""What is measured at each layer: its output in the forward pass, the gradient there in the backward pass.

The gradient is measured by an identity function with a custom derivative: in the backward pass it returns the gradient
unchanged, and its root mean square as the "gradient" of a number that nothing depends on. So both passes measure all
layers, even inside loops, and nothing is stored.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinit._arrays import with_automatic_axes
from jaxinit._evaluate import WeightUse
from jaxinit._measuring._activity import Activity, no_activity
from jaxinit._measuring._overflow_safe import mean_and_std, real, rms, size_of
from jaxinit._stages import are_made
from jaxinit._typing import Array


class Measured(NamedTuple):
    """Sums over the uses of a layer in one call, of means over the elements of its output.

    Attributes:
      uses: how many uses there were.
      mean, std: of the output.
      size: the root mean square of the output without its bias.
    """

    uses: Array
    mean: Array
    std: Array
    size: Array


class ProbeState(NamedTuple):
    """What is known of a weight.

    Attributes:
      probe: numbers whose gradients are sums over uses: of root mean squares, of ones, of samples.
      measured: sums over its outputs.
      activity: sums over the outputs of activations.
      attention: for queries and keys, the sum over uses of the mean largest probability, and the number of uses.
      taken: the sum over uses of the root mean square of the layer's input, and the number of uses.
      branch: the sums over uses of the mean squares of what its branch adds to a skip connection, and of the skip.
    """

    probe: Array
    measured: Measured
    activity: Activity
    attention: Array
    taken: Array
    branch: Array


def empty() -> ProbeState:
    """Nothing measured yet."""
    pair = jnp.zeros(2, jnp.float32)
    return ProbeState(
        jnp.zeros(3, jnp.float32), Measured(*[jnp.zeros((), jnp.float32)] * 4), no_activity(), pair, pair, pair
    )


@functools.partial(jax.jit, static_argnums=(2,))
def _jitted_probed(x: Array, probe: Array, samples: int) -> Array:
    return _probed(x, probe, samples)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _probed(x: Array, probe: Array, samples: int) -> Array:
    return x


def _probed_forward(x: Array, probe: Array, samples: int) -> tuple[Array, None]:
    return x, None


def _probed_backward(samples: int, _: None, gradient: Array) -> tuple[Array, Array]:
    size = with_automatic_axes(lambda x: rms(x, tuple(range(x.ndim))), gradient)
    return gradient, jnp.stack([size, jnp.ones((), jnp.float32), jnp.full((), samples, jnp.float32)])


_probed.defvjp(_probed_forward, _probed_backward)


def probe(used: WeightUse, state: ProbeState, output: Array, product: Array) -> tuple[ProbeState, Array]:
    """Measures a layer's output, and returns it unchanged."""
    mean, std = with_automatic_axes(lambda x: mean_and_std(real(x)), lax.stop_gradient(output))
    size = jnp.hypot(mean, std) if product is output else size_of(product)
    found = Measured(jnp.ones((), jnp.float32), mean, std, size)
    measured = Measured(*map(lax.add, state.measured, found))
    features = used.use.placed.values()
    samples = math.prod(n for d, n in enumerate(output.shape) if d not in features)
    probed = _probed if are_made() else _jitted_probed
    return state._replace(measured=measured), probed(output, state.probe, samples)
