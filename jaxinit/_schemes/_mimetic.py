"""Mimetic initialization: attention that initially looks like trained attention."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxinit._arrays import drawing_dtype, random
from jaxinit._schemes._auto import auto
from jaxinit._schemes._requirements import MisfitError, check_attention
from jaxinit._schemes._roles import Matrix, Model
from jaxinit._schemes._scheme import Rule, register
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class mimetic_factor:
    r"""One factor of a product of two projections that is noise plus a multiple of the identity, head by head.

    .. math:: \alpha Z + \beta I = U \Sigma V^\top, \quad Z_{ij} \sim N(0, 1/d), \qquad
        L = U_{:k} \Sigma_{:k}^{1/2}, \quad R = V_{:k} \Sigma_{:k}^{1/2}

    The factor L has the shape (d, heads · k), and so has R; drawn with the same key they belong together. `transposed`
    is for the output projection, which has the shape (heads · k, d).

    Args:
      noise: α.
      identity: β.
      heads: the number of heads, each with a product of its own.
      right: whether to return R instead of L.
      transposed: whether the features of the model are the second axis.
    """

    noise: float
    identity: float
    heads: int = 1
    right: bool = False
    transposed: bool = False

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        d, width = shape[::-1] if self.transposed else shape
        size, wide = width // self.heads, drawing_dtype(dtype)
        z = random.normal(key, (self.heads, d, d), wide) * wide.type(d**-0.5)
        product = wide.type(self.noise) * z + wide.type(self.identity) * jnp.eye(d, dtype=wide)[None]
        u, s, vt = jnp.linalg.svd(product)
        side = jnp.swapaxes(vt, -1, -2) if self.right else u
        factor = side[..., :size] * jnp.sqrt(s)[..., None, :size]
        kernel = jnp.moveaxis(factor, 0, 1).reshape(d, width).astype(dtype)
        return kernel.T if self.transposed else kernel


@register
@dataclasses.dataclass(frozen=True)
class mimetic(auto):
    r"""Mimetic initialization: products of query and key near the identity, of value and output near minus it.

    .. math:: W_Q W_K^\top \approx \alpha_1 Z + \beta_1 I, \qquad W_V W_O \approx \alpha_2 Z - \beta_2 I

    the first head by head, from truncated singular value decompositions, where Z has entries of variance 1 / d. All
    other weights are those of `auto`.

    Args:
      alpha1, beta1: noise and identity in the product of query and key.
      alpha2, beta2: noise and identity in the product of value and output.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.mimetic()
      mimetic(alpha1=0.7, beta1=0.7, alpha2=0.4, beta2=0.4)

    Reference: Trockman & Kolter, 2023 (arXiv:2305.09828).
    """

    alpha1: float = 0.7
    beta1: float = 0.7
    alpha2: float = 0.4
    beta2: float = 0.4

    def check(self, model: Model) -> None:
        check_attention(self, model)
        widths: dict[int, dict[str, tuple[float, float]]] = {}
        for matrix in model.all_matrices:
            if matrix.role in _ROLES:
                layer = matrix.layer
                fans = (layer.fan_out, layer.fan_in) if matrix.role == "output" else (layer.fan_in, layer.fan_out)
                widths.setdefault(model.attention(matrix)[0], {})[matrix.role] = fans
        for found in widths.values():
            for one, other in (("query", "key"), ("value", "output")):
                if found.get(one) != found.get(other) or found.get(one, (0, 1))[0] < found.get(one, (1, 0))[1]:
                    names = [matrix.layer.name for matrix in model.all_matrices if matrix.role in (one, other)]
                    raise MisfitError(
                        f"{self!r} makes {one} and {other} from one square matrix, so both must map between the same "
                        f"number of features, and all heads together must not have more, but of {names} one pair has "
                        f"(features, heads · size) {found.get(one)} and {found.get(other)}"
                    )

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.role not in _ROLES:
            return super().weight(matrix, model)
        number, size = model.attention(matrix)
        if matrix.role in ("query", "key"):
            heads = int(matrix.layer.fan_out) // size
            init = mimetic_factor(self.alpha1, self.beta1, heads, right=matrix.role == "key")
            return Rule(init, f"{matrix.role}, {heads} heads", f"mimetic query and key of attention {number}")
        init = mimetic_factor(
            self.alpha2, -self.beta2, right=matrix.role == "output", transposed=matrix.role == "output"
        )
        return Rule(init, matrix.role, f"mimetic value and output of attention {number}")


_ROLES = ("query", "key", "value", "output")
