"""What LSUV does at each layer: measure, decide the scale at the first use, and keep it afterwards."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import with_automatic_axes
from jaxinit._evaluate import WeightUse
from jaxinit._lsuv._limits import Limits
from jaxinit._lsuv._moments import (
    DEAD,
    NOT_HELD,
    NOT_REACHED,
    ZERO,
    Moments,
    mean_dtype,
    merged,
    moments,
    scaled,
    solve,
    std,
    wide,
)
from jaxinit._reading import Factor, Weight
from jaxinit._typing import Array


class ScaleState(NamedTuple):
    """The state of a weight.

    Attributes:
      known: whether the scale is decided: a Python bool if tracing decides it, else an array.
      scale: the factor of the weight.
      shift: what is added to its bias, along the channels; None if biases are not moved.
      before, after: std of the pre-activation before and after scaling, at the first use.
      flags: see `_moments`.
      pooled: moments of the scaled output over all uses; None for a weight whose first use decides alone.
      limits: the scales that the weight's dtype can hold; None if it holds all.
    """

    known: bool | Array
    scale: Array
    shift: Array | None
    before: Array
    after: Array
    flags: Array
    pooled: Moments | None
    limits: Limits | None = None


@dataclasses.dataclass(frozen=True)
class ScaleVisitor:
    """The visitor of LSUV.

    Attributes:
      factors: along which factors the scale of each weight varies.
      channels: along which factors the output of each weight is centred, for weights that are used once; empty if
        biases are not moved.
      targets: the target standard deviation.
      selected: the weights to scale; the others are only measured.
      refined: the weights whose uses are pooled.
      reused: the weights with more than one use.
    """

    factors: Mapping[Weight, tuple[Factor, ...]]
    channels: Mapping[Weight, tuple[Factor, ...]]
    targets: Mapping[Weight, Array]
    selected: frozenset[Weight]
    refined: frozenset[Weight]
    reused: frozenset[Weight]

    def initial(self, weight: Weight) -> ScaleState:
        """A weight that no layer has used yet."""
        shape = tuple(f.size for f in self.factors[weight])
        # In NumPy, because most of it is replaced at once, and each JAX array would be an operation to trace.
        ones: Any = np.ones(shape, np.float32)
        zeros: Any = np.zeros(shape, np.float32)
        not_reached: Any = np.full(shape, NOT_REACHED, np.int32)
        shift: Any = None
        if weight in self.channels:
            shift = np.zeros(tuple(f.size for f in self.channels[weight]), np.float32)
        pooled = None
        if weight in self.refined:
            mean: Any = np.zeros(shape, mean_dtype(weight.uses[0].finish.outputs[0].dtype))
            pooled = Moments(jnp.float32(0), mean, mean, zeros, zeros, zeros)
        return ScaleState(False, ones, shift, zeros, zeros, not_reached, pooled)

    def is_final(self, state: ScaleState) -> bool:
        """Whether further uses leave the state unchanged."""
        return state.known is True and state.pooled is None

    def scale(self, state: ScaleState) -> Array:
        """The factor of the weight."""
        return state.scale

    def use(self, used: WeightUse, state: ScaleState | None, u: Array, bias: Array | None) -> tuple[ScaleState, Array]:
        """Decides the scale if it is not yet decided, and applies it."""
        weight = used.weight
        if state is None:
            state = self.initial(weight)
        if weight in self.channels:
            state, shift = self._centred(used, state, u, bias)
        elif not self.is_final(state):
            state, shift = self._scaled(used, state, u, bias), None
        else:
            shift = None
        output = wide(u)
        output = output * used.spread(state.scale).astype(output.dtype)
        if bias is not None:
            output = output + wide(bias)
        if shift is not None:
            output = output + shift.astype(output.dtype)
        return state, output.astype(u.dtype)

    def _scaled(self, used: WeightUse, state: ScaleState, u: Array, bias: Array | None) -> ScaleState:
        found = _measured(used, u, bias)
        scale, flags = _held(state.limits, *solve(found, self.targets[used.weight]))
        if used.weight not in self.selected:
            scale = jnp.ones_like(scale)
        return self._decided(used.weight, state, found, scale, None, std(found), flags)

    def _decided(
        self,
        weight: Weight,
        state: ScaleState,
        found: Moments,
        scale: Array,
        shift: Array | None,
        before: Array,
        flags: Array,
    ) -> ScaleState:
        """The state after a use that suggests this scale."""
        # If an output is all zero, as that of a recurrent kernel in the first step, the next use decides.
        known = jnp.any((found.var_u != 0) | (found.mean_u != 0)) if weight in self.reused else True
        new = ScaleState(known, scale, shift, before, std(scaled(found, scale)), flags, state.pooled, state.limits)
        if state.known is not False:
            new = _where(state.known, state, new)
        if state.pooled is not None:
            new = new._replace(pooled=merged(state.pooled, scaled(found, new.scale)))
        return new

    def _centred(
        self, used: WeightUse, state: ScaleState, u: Array, bias: Array | None
    ) -> tuple[ScaleState, Array | None]:
        channels = dataclasses.replace(used, factors=self.channels[used.weight])
        per_channel = _measured(channels, u, bias)
        # Within a channel the bias is constant: once centred, it contributes nothing.
        pooled_axes = tuple(i for i, f in enumerate(channels.factors) if f not in used.factors)
        pooled_var = jnp.mean(per_channel.var_u, pooled_axes)
        zero = jnp.zeros_like(pooled_var)
        spread_of_means = jnp.var(per_channel.mean_u + per_channel.mean_b, pooled_axes)
        found = Moments(per_channel.size, zero, zero, pooled_var, zero, zero)
        scale, flags = _held(state.limits, *solve(found, self.targets[used.weight]))
        constant = jnp.any(per_channel.mean_u != 0, pooled_axes)
        flags = jnp.where(constant & (flags == ZERO), DEAD, flags)
        if used.weight not in self.selected:
            scale = jnp.ones_like(scale)
        if state.known is not False:
            scale = jnp.where(state.known, state.scale, scale)
        sizes = [f.size if f in used.factors else 1 for f in channels.factors]
        shift = -(scale.reshape(sizes) * per_channel.mean_u) - per_channel.mean_b
        # If there is no finite mean, the bias is not moved.
        finite = jnp.isfinite(pooled_var).reshape(sizes) & jnp.isfinite(shift)
        shift = jnp.where(finite, shift, 0)
        if used.weight not in self.selected:
            shift = jnp.zeros_like(shift)
        before = jnp.sqrt(pooled_var + spread_of_means)
        new = self._decided(used.weight, state, found, scale, shift, before, flags)._replace(shift=shift)
        return new, channels.spread(shift)


def _held(limits: Limits | None, scale: Array, flags: Array) -> tuple[Array, Array]:
    """The scale without a flag; or one with a flag, if the weight's dtype cannot hold the scale."""
    if limits is None:
        return scale, flags
    held = limits.hold(scale)
    return jnp.where(held, scale, 1), jnp.where(held | (flags != 0), flags, NOT_HELD)


def _measured(used: WeightUse, u: Array, bias: Array | None) -> Moments:
    """Moments for each scale of the weight, in the order of its factors."""
    found: Moments = with_automatic_axes(functools.partial(_arranged_moments, used), u, bias)
    if used.is_rounding is not None:
        # No scale turns rounding into a signal, so the output counts as constant.
        var_u, cov = (jnp.where(used.is_rounding, 0, x) for x in (found.var_u, found.cov))
        found = found._replace(var_u=var_u, cov=cov)
    return found


def _arranged_moments(used: WeightUse, u: Array, bias: Array | None) -> Moments:
    found = moments(used.split(u), None if bias is None else used.split(bias), used.pooled_axes())
    order = [f for dim in used.dims for f in dim if f in used.factors]
    back = [order.index(f) for f in used.factors]

    if back == sorted(back):
        return found
    return jax.tree.map(lambda x: jnp.transpose(x, back) if x.ndim == len(back) else x, found)


def _where(known: bool | Array, old: ScaleState, new: ScaleState) -> ScaleState:
    if known is True:
        return old
    chosen = jax.tree.map(lambda a, b: jnp.where(known, a, b), old._replace(pooled=None), new._replace(pooled=None))
    return chosen._replace(pooled=new.pooled)
