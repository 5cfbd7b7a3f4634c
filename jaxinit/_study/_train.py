"""Training of one seed: parameters at several learning rates, trained side by side on the same samples.

A seed's randomness comes from its own key, `fold_in(key, seed)`, with a stream for each purpose. Two starts with the
same seed therefore see the same samples in the same order, which is what makes comparisons of starts paired; and
nothing depends on the seeds that run beside it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._study._convolutions import with_fast_convolutions
from jaxinit._typing import Array

START, BATCH, ORDER, NOISE = range(4)
"""Streams of a seed: the draw of parameters, the samples that a start may look at, their order, a loss's own noise."""


SEED = jax.ShapeDtypeStruct((), np.uint32)
"""The type of the number of a seed."""


class State(NamedTuple):
    """A seed in training.

    Attributes:
      params: the floating-point leaves, with a leading axis of learning rates.
      fixed: the other leaves, with None for those of `params`.
      optimizer: states of the optimizer, with a leading axis of learning rates.
      order: the samples in the order of the current epoch.
    """

    params: Any
    fixed: Any
    optimizer: Any
    order: Array


def own_key(key: Array, seed: Array, stream: int) -> Array:
    """The key of one stream of a seed."""
    return jax.random.fold_in(jax.random.fold_in(key, seed), stream)


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Loss, optimizer and measurements; its methods handle one seed, to be mapped over seeds.

    Attributes:
      loss_fn: function of (params, batch, key) that returns a scalar.
      optimizer: function of a learning rate that returns an optax transformation.
      metrics_fn: function of (params, data) that returns a dictionary of arrays.
      samples: number of samples.
      batch_size: samples of a step.
      looked_at: how many samples a start may use.
      on_cpu: whether it runs on CPUs.
    """

    loss_fn: Callable[[Any, Any, Array], Array]
    optimizer: Callable[[Any], Any]
    metrics_fn: Callable[[Any, Any], Mapping[str, Array]]
    samples: int
    batch_size: int
    looked_at: int
    on_cpu: bool = False

    def draw(self, draw: Callable[[Array, Any], Any], seed: Array, key: Array, data: Any) -> Any:
        """The parameters of a start."""
        rows = jax.random.permutation(own_key(key, seed, BATCH), self.samples)[: self.looked_at]
        return draw(own_key(key, seed, START), jax.tree.map(lambda x: x[rows], data))

    def batch_loss(self, params: Any, key: Array, data: Any) -> Array:
        """The loss of some batch."""
        return self.loss_fn(params, jax.tree.map(lambda x: x[: self.batch_size], data), key)

    def begin(self, params: Any, rates: Array) -> State:
        """The state before the first step."""
        floating, fixed = _split(params)
        with jax.numpy_dtype_promotion("standard"):
            optimizer = jax.vmap(lambda rate: self.optimizer(rate).init(floating))(rates)
        return State(
            params=jax.tree.map(lambda x: jnp.broadcast_to(x, (*rates.shape, *x.shape)), floating),
            fixed=fixed,
            optimizer=optimizer,
            order=jnp.arange(self.samples, dtype=jnp.int32),
        )

    def advance(
        self, state: State, seed: Array, key: Array, rates: Array, data: Any, first: Array, length: int
    ) -> tuple[State, Array]:
        """Takes some steps; returns the state after them, and the losses before each, steps × learning rates."""
        batches = self.samples // self.batch_size
        order_key, noise_key = own_key(key, seed, ORDER), own_key(key, seed, NOISE)

        def loss_fn(floating: Any, fixed: Any, batch: Any, noise: Array) -> Array:
            return self.loss_fn(_merged(floating, fixed), batch, noise)

        in_loop = with_fast_convolutions if self.on_cpu else lambda function: function

        def shuffled(step: Array) -> Array:
            epoch = jax.random.fold_in(order_key, step // batches)
            return jax.random.permutation(epoch, self.samples).astype(jnp.int32)

        def one(state: State, step: Array) -> tuple[State, Array]:
            # The step is the same for all seeds, so even when mapped over seeds this is a branch, not a select.
            order = jax.lax.cond(step % batches == 0, shuffled, lambda step: state.order, step)
            rows = jax.lax.dynamic_slice_in_dim(order, (step % batches) * self.batch_size, self.batch_size)
            batch = jax.tree.map(lambda x: x[rows], data)
            noise = jax.random.fold_in(noise_key, step)

            def update(params: Any, optimizer: Any, rate: Array) -> tuple[Any, Any, Array]:
                loss, gradients = in_loop(jax.value_and_grad(loss_fn))(params, state.fixed, batch, noise)
                params, optimizer = self._updated(params, optimizer, gradients, rate)
                return params, optimizer, loss

            params, optimizer, losses = jax.vmap(update)(state.params, state.optimizer, rates)
            return State(params, state.fixed, optimizer, order), losses

        return jax.lax.scan(one, state, first + jnp.arange(length, dtype=jnp.int32))

    def _updated(self, params: Any, optimizer: Any, gradients: Any, rate: Array) -> tuple[Any, Any]:
        """One step of the optimizer, and its updates applied as `optax.apply_updates` does."""
        # Optax mixes dtypes, whatever promotion rules the user's own functions follow.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = self.optimizer(rate).update(gradients, optimizer, params)
            return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), optimizer

    def measure(self, params: Any, data: Any) -> dict[str, Array]:
        """The metrics of one set of parameters."""
        measured = with_fast_convolutions(self.metrics_fn) if self.on_cpu else self.metrics_fn
        return dict(measured(params, data))

    def finish(self, state: State, data: Any) -> dict[str, Array]:
        """The metrics at each learning rate."""
        # One after the other: all test samples at all rates at once may be more than memory can hold.
        return jax.lax.map(lambda params: self.measure(_merged(params, state.fixed), data), state.params)


def _split(params: Any) -> tuple[Any, Any]:
    """The leaves that are trained, and the others; each with None in place of the other's."""
    trained = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), params)
    return (
        jax.tree.map(lambda x, yes: x if yes else None, params, trained),
        jax.tree.map(lambda x, yes: None if yes else x, params, trained),
    )


def _merged(floating: Any, fixed: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, floating, fixed, is_leaf=lambda x: x is None)
