"""What is watched beside the layers themselves: what they take, the inputs of activations, attention, and branches."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._diagnose._activity import activity
from jaxinit._diagnose._curves import is_factor
from jaxinit._diagnose._probe import ProbeState
from jaxinit._diagnose._sizes import real, size_of
from jaxinit._evaluate import Watch
from jaxinit._reading import Attention, Meeting, Onwards, Traced, Unit
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array


def watches(traced: Traced) -> dict[ir.Atom, Watch]:
    """Value → what its evaluation adds to the states of units."""
    met: dict[ir.Atom, list[Meeting]] = {}
    for meetings in traced.meetings.values():
        for meeting in meetings:
            met.setdefault(meeting.value, []).append(meeting)
    found: dict[ir.Atom, list[Watch]] = {
        value: [_at_activation(meetings, traced.onwards)] for value, meetings in met.items()
    }

    def add(value: ir.Atom, watch: Watch) -> None:
        found.setdefault(value, []).append(watch)

    for attention in traced.structure.attentions:
        if attention.in_parts:
            continue  # which has no probabilities of all keys, or not of all queries
        keys = 1
        for dimension in attention.summed:
            keys *= attention.probabilities.shape[dimension]
        if keys > 1:
            add(attention.probabilities, _at_attention(attention, traced.analysis.units))
    taken: dict[ir.Atom, list[Unit]] = {}
    for site in traced.analysis.sites.values():
        if site.geometry.kind != "embed" and ir.is_floating(site.data):
            taken.setdefault(site.data, []).extend(part.unit for part in site.parts)
    for value, units in taken.items():
        add(value, _at_input(units))
    for skip in traced.skips:
        concerned = [part.unit for site in skip.layers for part in site.parts]
        for value, place in (*((term, 0) for term in skip.added), (skip.stream, 1)):
            add(value, _at_branch(concerned, place))
    return {value: several[0] if len(several) == 1 else _together(several) for value, several in found.items()}


def _together(several: Sequence[Watch]) -> Watch:
    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        known, found = dict(states), dict[Unit, ProbeState]()
        for one in several:
            found |= one(value, known)
            known |= found
        return found

    return watch


def _at_input(units: Sequence[Unit]) -> Watch:
    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        entry = jnp.stack([size_of(value), jnp.ones((), jnp.float32)])
        return {unit: states[unit]._replace(taken=states[unit].taken + entry) for unit in dict.fromkeys(units)}

    return watch


def _at_branch(units: Sequence[Unit], place: int) -> Watch:
    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        entry = jnp.zeros(2, jnp.float32).at[place].set(size_of(value) ** 2)
        return {unit: states[unit]._replace(branch=states[unit].branch + entry) for unit in dict.fromkeys(units)}

    return watch


def _at_activation(meetings: Sequence[Meeting], onwards: Onwards) -> Watch:
    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        known: dict[Any, Any] = {}  # layers that meet their activation together have it measured once
        found = {}
        for meeting in meetings:
            what = meeting.samples, meeting.segment
            if what not in known:
                weighs = is_factor(meeting.activation) and onwards.weighs(meeting.value)
                known[what] = with_automatic_axes(functools.partial(activity, meeting, weighs), value)
            state = states[meeting.unit]
            found[meeting.unit] = state._replace(activity=state.activity.plus(known[what]))
        return found

    return watch


def _at_attention(attention: Attention, units: Sequence[Unit]) -> Watch:
    sites = {block.site for block in (*attention.query, *attention.key)}
    concerned = [unit for unit in units if not sites.isdisjoint(unit.sites)]

    def largest(probabilities: Array) -> Array:
        return jnp.mean(jnp.max(real(probabilities), attention.summed)).astype(jnp.float32)

    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        peak = with_automatic_axes(largest, lax.stop_gradient(value))
        entry = jnp.stack([peak, jnp.ones((), jnp.float32)])
        return {unit: states[unit]._replace(attention=states[unit].attention + entry) for unit in concerned}

    return watch
