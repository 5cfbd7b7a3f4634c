"""Admin: the weight of each skip connection, from the variance of the branches before it, measured on the data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxinit._initializers import glorot_uniform
from jaxinit._lsuv import deviations
from jaxinit._reading import Weight
from jaxinit._schemes._requirements import MisfitError, check_shortcuts
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, Scheme, register
from jaxinit._typing import Array


@register
@dataclasses.dataclass(frozen=True)
class admin(Scheme):
    r"""Admin: transformers LN(ω ⊙ x + f(x)) whose output does not depend too much on any one branch.

    .. math:: \omega_1 = 1, \qquad \omega_{i+1}^2 = \omega_i^2 + \mathrm{Var}\, f_i

    with Glorot's weights, and the variances of the branches measured on the batch. In a model with cross attention
    the encoder and the decoder each begin anew. The batch must be arrays.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.admin()
      admin()

    Reference: Liu et al., 2020 (arXiv:2004.08249).
    """

    measures: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        check_shortcuts(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        return Rule(glorot_uniform(), "Glorot")

    def finish(self, leaves: Sequence[Array], batch: Any, model: Model) -> Mapping[int, tuple[Array, str]]:
        """The weights of the skip connections."""
        data = jax.tree.leaves(batch)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in data):
            raise MisfitError(f"{self!r} measures the branches on the batch, so the batch must be arrays, got shapes")
        measured = deviations(model.traced.analysis, [*leaves, *data])
        encoder = model.traced.structure.encoder
        found: dict[int, tuple[Array, str]] = {}
        for inside in (True, False):
            weights = [
                (skip.shortcut, _weight(model, skip.layers[-1]))
                for skip in model.traced.skips
                if (skip.layers[-1] in encoder) == inside and skip.shortcut is not None
            ]
            before: Array = jnp.ones((), jnp.float32)
            while weights:
                # The skip connections of one scan alternate, step by step.
                steps = max(measured[weights[0][1]].size, 1)
                group = [u for u in weights if max(measured[u[1]].size, 1) == steps] if steps > 1 else weights[:1]
                weights = weights[len(group) :]
                variance = jnp.stack([measured[weight].reshape(-1) ** 2 for _, weight in group], axis=1).reshape(-1)
                totals = before + jnp.cumsum(variance) - variance
                before = totals[-1] + variance[-1]
                for i, (leaf, _) in enumerate(group):
                    factors = jnp.sqrt(totals[i :: len(group)]).astype(leaves[leaf].dtype)
                    shape = (steps,) + (1,) * (leaves[leaf].ndim - 1) if steps > 1 else ()
                    new = jnp.broadcast_to(factors.reshape(shape), leaves[leaf].shape)
                    found[leaf] = new, "the measured variance of the branches before it"
        return found


def _weight(model: Model, use: Any) -> Weight:
    return next(weight for _, weight in model.layers if use in weight.uses)
