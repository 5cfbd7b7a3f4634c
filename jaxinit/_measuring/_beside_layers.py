"""What is measured beside the layers themselves: their inputs, the inputs of activations, attention, and branches."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._arrays import with_automatic_axes
from jaxinit._evaluate import Watch
from jaxinit._measuring._activation_facts import is_factor
from jaxinit._measuring._activity import activity
from jaxinit._measuring._overflow_safe import real, size_of
from jaxinit._measuring._probe import ProbeState
from jaxinit._reading import ActivationInput, Attention, Onwards, Traced, Weight
from jaxinit._stages import hosted
from jaxinit._typing import Array


def watches(traced: Traced) -> dict[ir.Atom, Watch]:
    """Value → what its evaluation adds to the states of weights."""
    met: dict[ir.Atom, list[ActivationInput]] = {}
    for activation_inputs in traced.activation_inputs.values():
        for activation_input in activation_inputs:
            met.setdefault(activation_input.value, []).append(activation_input)
    found: dict[ir.Atom, list[Watch]] = {
        value: [_at_activation(activation_inputs, traced.onwards)] for value, activation_inputs in met.items()
    }

    def add(value: ir.Atom, watch: Watch) -> None:
        found.setdefault(value, []).append(watch)

    for attention in traced.structure.attentions:
        if attention.in_parts:
            continue  # because it does not hold the probabilities of all keys, or of all queries
        keys = 1
        for dimension in attention.summed:
            keys *= attention.probabilities.shape[dimension]
        if keys > 1:
            add(attention.probabilities, _at_attention(attention, traced.analysis.weights))
    taken: dict[ir.Atom, list[Weight]] = {}
    for use in traced.analysis.uses.values():
        if use.geometry.kind != "embed" and ir.is_floating(use.data):
            taken.setdefault(use.data, []).extend(component.weight for component in use.components)
    for value, weights in taken.items():
        add(value, _at_input(weights))
    for skip in traced.skips:
        concerned = [component.weight for use in skip.layers for component in use.components]
        for value, column in (*((term, 0) for term in skip.added), (skip.stream, 1)):
            add(value, _at_branch(concerned, column))
    return {value: several[0] if len(several) == 1 else _together(several) for value, several in found.items()}


def _together(several: Sequence[Watch]) -> Watch:
    def watch(value: Array, states: Mapping[Weight, Any]) -> dict[Weight, ProbeState]:
        known, found = dict(states), dict[Weight, ProbeState]()
        for one in several:
            found |= one(value, known)
            known |= found
        return found

    return watch


def _at_input(weights: Sequence[Weight]) -> Watch:
    def watch(value: Array, states: Mapping[Weight, Any]) -> dict[Weight, ProbeState]:
        entry = jnp.stack([size_of(value), jnp.ones((), jnp.float32)])
        return {
            weight: states[weight]._replace(taken=lax.add(states[weight].taken, entry))
            for weight in dict.fromkeys(weights)
        }

    return watch


def _at_branch(weights: Sequence[Weight], column: int) -> Watch:
    def watch(value: Array, states: Mapping[Weight, Any]) -> dict[Weight, ProbeState]:
        size, nothing = size_of(value) ** 2, jnp.zeros((), jnp.float32)
        entry = jnp.stack([nothing, size] if column else [size, nothing])
        return {
            weight: states[weight]._replace(branch=lax.add(states[weight].branch, entry))
            for weight in dict.fromkeys(weights)
        }

    return watch


def _at_activation(activation_inputs: Sequence[ActivationInput], onwards: Onwards) -> Watch:
    def watch(value: Array, states: Mapping[Weight, Any]) -> dict[Weight, ProbeState]:
        known: dict[Any, Any] = {}  # an activation that several layers share is measured once
        found = {}
        for activation_input in activation_inputs:
            what = activation_input.samples, activation_input.segment
            if what not in known:
                weighs = is_factor(activation_input.activation) and onwards.weighs(activation_input.value)
                known[what] = with_automatic_axes(functools.partial(activity, activation_input, weighs), value)
            state = states[activation_input.weight]
            found[activation_input.weight] = state._replace(activity=state.activity.plus(known[what]))
        return found

    return watch


@hosted(static_argnums=(1,))
def _largest(probabilities: Array, over: tuple[int, ...]) -> Array:
    return jnp.mean(jnp.max(real(probabilities), over)).astype(jnp.float32)


def _at_attention(attention: Attention, weights: Sequence[Weight]) -> Watch:
    uses = {block.use for block in (*attention.query, *attention.key)}
    concerned = [weight for weight in weights if not uses.isdisjoint(weight.uses)]

    def watch(value: Array, states: Mapping[Weight, Any]) -> dict[Weight, ProbeState]:
        peak = with_automatic_axes(lambda x: _largest(x, tuple(attention.summed)), lax.stop_gradient(value))
        entry = jnp.stack([peak, jnp.ones((), jnp.float32)])
        return {
            weight: states[weight]._replace(attention=lax.add(states[weight].attention, entry)) for weight in concerned
        }

    return watch
