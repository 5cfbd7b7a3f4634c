"""What is watched beside the layers themselves: the inputs of activations, and the probabilities of attention."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxinit import _program as ir
from jaxinit._diagnose._activity import activity
from jaxinit._diagnose._probe import ProbeState
from jaxinit._diagnose._sizes import real
from jaxinit._evaluate import Watch
from jaxinit._reading import Attention, Meeting, Traced, Unit
from jaxinit._sharding import with_automatic_axes
from jaxinit._typing import Array


def watches(traced: Traced) -> dict[ir.Atom, Watch]:
    """Value → what its evaluation adds to the states of units."""
    met: dict[ir.Atom, list[Meeting]] = {}
    for meetings in traced.meetings.values():
        for meeting in meetings:
            met.setdefault(meeting.value, []).append(meeting)
    watched: dict[ir.Atom, Watch] = {value: _at_activation(meetings) for value, meetings in met.items()}
    for attention in traced.structure.attentions:
        keys = 1
        for dimension in attention.summed:
            keys *= attention.probabilities.shape[dimension]
        if keys > 1:
            watched[attention.probabilities] = _at_attention(attention, traced.analysis.units)
    return watched


def _at_activation(meetings: Sequence[Meeting]) -> Watch:
    def watch(value: Array, states: Mapping[Unit, Any]) -> dict[Unit, ProbeState]:
        known: dict[Any, Any] = {}  # layers that meet their activation together have it measured once
        found = {}
        for meeting in meetings:
            what = meeting.samples, meeting.segment
            if what not in known:
                known[what] = with_automatic_axes(functools.partial(activity, meeting), value)
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
