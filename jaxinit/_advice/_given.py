"""Which start a model was given, as far as its weights and what they do show it: no remedy names that one.

Orthogonal weights show in their Gram matrix, and a scheme in what every layer gives.
"""

import functools

import numpy as np

from jaxinit._measuring import Measurements, counted, gains
from jaxinit._numbers import NAMES, critical

_ORTHOGONAL = 0.05
"""Units whose products are up to this share of their squares are orthogonal, in half precision too."""
_NEAR = 1.25
"""Gains and scales by up to this factor off those of a start are its."""
_MOST = 0.8
"""The share of layers that must agree with a start for it to be the one: draws vary."""


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
