"""Anderson acceleration: corrections of many scales that influence one another.

Each scale on its own asks for a correction g in log space. Where scales affect one another, as in the loops of
recurrent nets, applying all corrections at once overshoots or diverges. The changes of g in earlier steps show how to
do better: within the span of those steps, the correction that brings g to zero is known to first order, and the rest
of g is damped by how much larger than the last step its effect was.

Reference: Walker & Ni, 2011, "Anderson acceleration for fixed-point iterations".
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxinit._typing import Array

_MEMORY = 5
"""How many steps are kept."""

_LONGEST = 1.0
"""No scale changes by more than a factor of e to this power in one attempt."""

_NEW = 0.05
"""A step adds no information if later ones explain all but this share of the change that it caused."""


class Memory(NamedTuple):
    """The memory of earlier steps.

    Attributes:
      correction: the g of the last attempt.
      steps, changes: the last steps, latest first, and how each changed g; padded with zeros.
      attempts: how many attempts there have been.
    """

    correction: Array
    steps: Array
    changes: Array
    attempts: Array


def no_memory(size: int) -> Memory:
    """The memory before the first attempt, for this many scales; corrections are float32 whatever the weights are."""
    pairs = jnp.zeros((_MEMORY, size), jnp.float32)
    return Memory(pairs[0], pairs, pairs, jnp.zeros((), jnp.int32))


def accelerated(memory: Memory, correction: Array) -> tuple[Memory, Array]:
    """The step to take for this correction, and the updated memory."""
    change = jnp.where(memory.attempts > 0, correction - memory.correction, 0)
    changes = memory.changes.at[0].set(jnp.where(jnp.isfinite(change), change, 0))
    taken, left = jnp.zeros_like(correction), correction
    known: list[tuple[Array, Array]] = []
    for step, own in zip(memory.steps, changes, strict=True):
        length = jnp.linalg.norm(own)
        for other_step, other in known:
            share = jnp.vdot(other, own)
            step, own = step - share * other_step, own - share * other
        size = jnp.linalg.norm(own)
        teaches = size > _NEW * length
        divisor = jnp.where(teaches, size, 1)
        known.append((jnp.where(teaches, step, 0) / divisor, jnp.where(teaches, own, 0) / divisor))
        share = jnp.vdot(known[-1][1], left)
        taken, left = taken - share * known[-1][0], left - share * known[-1][1]
    # A weight that is used k times in a row changes its output by the k-th power of its scale.
    power = -jnp.vdot(memory.steps[0], changes[0]) / jnp.maximum(jnp.vdot(memory.steps[0], memory.steps[0]), 1e-12)
    new = jnp.clip(taken + left / jnp.clip(power, 1, 64), -_LONGEST, _LONGEST)
    return Memory(
        correction, _pushed(memory.steps, new), _pushed(changes, jnp.zeros_like(new)), memory.attempts + 1
    ), new


def _pushed(rows: Array, first: Array) -> Array:
    return jnp.concatenate([first[None], rows[:-1]])
