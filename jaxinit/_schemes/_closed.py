"""A scheme that closes every residual branch through the last thing in it that can be zero."""

import dataclasses

import jax.numpy as jnp

from jaxinit._checks import check_flag
from jaxinit._initializers import zeros
from jaxinit._reading import FROZEN, Skip, closings
from jaxinit._schemes._auto import auto
from jaxinit._schemes._requirements import MisfitError, check_branches
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._scheme import Rule, register

_REASON = "closes its branch: the model starts without it"


@register
@dataclasses.dataclass(frozen=True)
class closed(auto):
    r"""Residual branches that initially add nothing, whatever is at their end; all else as `auto`.

    .. math:: x + f(x), \qquad f(x) = 0 \text{ initially}

    The last thing in a branch that can be zero is zero: a scalar or a scale for each channel that multiplies the branch
    (SkipInit, ReZero, LayerScale), the gain of its last norm, the layer that gates it in adaptive normalization, weight
    and bias, or else its last layer. It has a gradient, so it learns first and opens the branch: what a ReLU or a norm
    without a gain follows is not taken. Initially the model does not depend on
    its branches, so depth changes neither signals nor gradients.

    Args:
      readout: whether the model's last layer is zero, too, so that its first outputs are zero.

    Raises:
      MisfitError: the model has no branches, or nothing at the end of one can be zero; the error names the layers of
        that branch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> def block(p, x):
      ...     return x + p["scale"][None] * (jax.nn.relu(x @ p["up"]) @ p["down"])
      >>> params = {"scale": jnp.ones(8), "up": jnp.ones((8, 32)), "down": jnp.ones((32, 8))}
      >>> x = jnp.arange(8.0)[None]
      >>> params = jaxinit.initialize(jax.random.key(0), params, block, x, "closed")
      >>> bool((block(params, x) == x).all())
      True

    Reference: Goyal et al., 2017 (arXiv:1706.02677) for norms; Bachlechner et al., 2020 (arXiv:2003.04887); Touvron et
      al., 2021 (arXiv:2103.17239); Peebles & Xie, 2022 (arXiv:2212.09748) for adaptive normalization.
    """

    readout: bool = False

    def _check_fields(self) -> None:
        check_flag("readout", self.readout)

    def check(self, model: Model) -> None:
        check_branches(self, model)

    def prepared(self, model: Model) -> Model:
        traced = model.traced
        vectors, kept, slices = dict(model.vectors), dict(model.kept), dict(model.slices)
        layers: set[tuple[str, tuple[tuple[int, int], ...]]] = set()
        weight_of = {use: (layer.path, layer.region) for layer, weight in model.layers for use in weight.uses}
        fixed = frozenset(leaf for leaf, role in kept.items() if role.name in FROZEN)
        for skip, found in zip(traced.skips, closings(traced.flow, traced.skips, fixed), strict=True):
            if found is None:
                raise MisfitError(
                    f"{self!r} finds nothing at the end of the branch of {_names(model, skip)} that could be zero, is "
                    "used nowhere else, and would have a gradient; multiply the branch by a parameter, as "
                    "jaxinit.linen.ScaledResidual does, also for NNX"
                )
            layers.update(weight_of[use] for use in found.layers)
            for leaf, region in found.parameters:
                parts = slices.get(leaf, ())
                if parts:
                    slices[leaf] = tuple(_zero(part) if _within(part, region) else part for part in parts)
                    continue
                path, shape = traced.paths[leaf], tuple(jnp.shape(traced.leaves[leaf]))
                vectors[leaf] = _zero(vectors.get(leaf, Vector(path, shape, "scale")))
                kept.pop(leaf, None)
        if self.readout:
            layers.add((model.layers[-1][0].path, model.layers[-1][0].region))
        return dataclasses.replace(model, vectors=vectors, kept=kept, slices=slices, closed=frozenset(layers))

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        return Rule(zeros, _REASON) if model.is_closed(matrix.layer) else super().weight(matrix, model)


def _zero(vector: Vector) -> Vector:
    return dataclasses.replace(vector, start=0.0, reason=_REASON)


def _within(part: Vector, region: tuple[tuple[int, int], ...] | None) -> bool:
    """Whether a slice of a leaf is inside this region."""
    if region is None or part.region is None:
        return True
    return all(low <= start and stop <= high for (start, stop), (low, high) in zip(part.region, region, strict=True))


def _names(model: Model, skip: Skip) -> str:
    uses = set(skip.layers)
    return ", ".join(layer.name for layer, weight in model.layers if not uses.isdisjoint(weight.uses))
