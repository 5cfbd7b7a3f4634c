"""Which start a model was given, as far as its weights and what they do show it: no remedy names that one.

Orthogonal weights show in their Gram matrix, and a scheme in what every layer gives.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np

from jaxinit._diagnose._alike import counted, gains
from jaxinit._diagnose._measurements import Measurements
from jaxinit._numbers import NAMES, critical
from jaxinit._reading import Weight, in_order_of_leaf, part_of, view
from jaxinit._typing import Array

_LOOKED_AT = 32
"""So many units are compared with one another."""
_ORTHOGONAL = 0.05
"""Units whose products are up to this share of their squares are orthogonal, in half precision too."""
_NEAR = 1.25
"""Gains and scales by up to this factor off those of a start are its."""
_MOST = 0.8
"""If so many layers agree with a start, it is the one: draws vary."""


def leaning(leaf: Array, weight: Weight) -> Array | None:
    """How far the units of a weight, or its inputs if these are fewer, are from orthogonal, slice by slice.

    The largest product of two of them, as a share of their mean square; None where the roles of axes are not known.
    """
    axes = view(weight)
    if axes is None or axes.batch_axes:
        return None
    x = part_of(leaf, weight).reshape(axes.shape)
    inside = [d for d in range(x.ndim) if d not in axes.stack_axes and d not in axes.out_axes]
    sizes = [math.prod(x.shape[d] for d in along) for along in (inside, axes.out_axes)]
    x = jnp.transpose(x, (*axes.stack_axes, *inside, *axes.out_axes)).reshape(-1, *sizes).astype(jnp.float32)
    x = x[:, :, :_LOOKED_AT] if sizes[0] >= sizes[1] else jnp.swapaxes(x[:, :_LOOKED_AT], 1, 2)
    x = x / jnp.maximum(jnp.max(jnp.abs(x), (1, 2), keepdims=True), 1e-37)
    gram = jnp.abs(jnp.swapaxes(x, 1, 2) @ x)
    square = jnp.mean(jnp.diagonal(gram, axis1=1, axis2=2), -1)
    off = jnp.max(jnp.where(jnp.eye(gram.shape[-1], dtype=bool), 0, gram), (1, 2))
    share = off / jnp.where(square > 0, square, 1)
    order = sorted(weight.stack, key=lambda f: (f.axis, -f.stride))
    share = jnp.transpose(share.reshape([f.size for f in order]), [order.index(f) for f in weight.stack])
    return in_order_of_leaf(share, weight.stack).reshape(-1)


@functools.lru_cache(maxsize=256)
def _critical_gain(activation: str) -> float | None:
    try:
        return float(critical(activation)[0]) if activation in NAMES else None
    except ValueError:
        return None


def given(report: Measurements) -> frozenset[str]:
    """The names of the starts that most layers agree with."""
    rows, found = report.rows, gains(report)
    some = [i for i in np.flatnonzero(counted(report)).tolist() if np.isfinite(found[i]) and not rows[i].last]
    if len(some) < 2:
        return frozenset()

    def near(wanted: list[float | None], seen: list[float]) -> bool:
        agree = [w is not None and 1 / _NEAR < s / w < _NEAR for w, s in zip(wanted, seen, strict=True)]
        return float(np.mean(agree)) >= _MOST

    names = set()
    seen = [float(found[i]) for i in some]
    orthogonal = all(float(np.asarray(report.leaning)[i]) < _ORTHOGONAL for i in some)
    if orthogonal and near([_critical_gain(rows[i].activation or "linear") for i in some], seen):
        names.add("orthogonal_critical")
    if near([1.0] * len(some), [float(np.asarray(report.pre_std)[i]) for i in some]):
        names.update(("auto", "lsuv"))  # each brings all outputs to unit variance, and neither would change them
    return frozenset(names)
