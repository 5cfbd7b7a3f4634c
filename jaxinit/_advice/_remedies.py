"""What would fix a fault: the call that does, or, where no initialization can, what else would.

An initialization can give each layer any scale, so it can fix signals. But where an activation f keeps them, at
E[f(z)²] times the variance of the weights = 1, gradients change by the factor sqrt(E[f'(z)²] / E[f(z)²]) per layer.
Where that is below 1, an initialization can only trade vanishing gradients for saturation, and no call is named.

A remedy never names the initialization that a model was given, as far as its weights and their effects reveal it:
orthogonal weights show in their Gram matrix, and a scheme in the outputs of all layers.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxinit._measuring import Measurements, Row, counted, gains
from jaxinit._numbers import NAMES, critical

DEEP = 30
"""With at least this many layers, random kernels of any scale lose the signal, and only some schemes keep it."""
LOST = 30.0
"""A change of scale by this factor over all layers loses signals or gradients."""
MARGIN = 3.0
"""How far from lost gradients must be with the best initialization for it to be named: draws vary."""
_ORTHOGONAL = 0.05
"""Units whose products are at most this share of their squares are orthogonal, in half precision too."""
_NEAR = 1.25
"""Gains and scales within this factor of those of an initialization agree with it."""
_MOST = 0.8
"""The share of layers that must agree with an initialization for it to be the given one: draws vary."""
LSUV = "jaxinit.lsuv(params, apply_fn, batch)"


def start(scheme: str) -> str:
    """The call for a scheme."""
    return f'jaxinit.initialize(key, params, apply_fn, batch, "{scheme}")'


def for_size(report: Measurements) -> str:
    """What fixes signals or gradients that change their size from layer to layer."""
    rows = report.rows
    if any(row.residual for row in rows):
        return f'{start("auto")}, or "fixup" without normalization'
    if any(row.recurrent for row in rows):
        return start("recurrent")
    chain = _dense(rows)
    if any(row.normalized for row in chain):
        return _new(report, "auto", "lsuv") or _NORMALIZE
    factor = _factor(chain)
    if factor < MARGIN / LOST:
        return _another_activation(chain)
    if _length(chain) <= DEEP and factor < LOST:
        return _new(report, "auto", "lsuv") or _another_activation(chain)
    if _looks_linear(chain) and "looks_linear" in report.fitting:
        return start("looks_linear")
    grows = all(row.gradient_factor > 1.01 for row in chain if row.activation)
    critical = ["orthogonal_critical"] if (factor > LOST or grows) and _is_critical(chain) else []
    lsuv = ["lsuv"] if factor < LOST else []
    return _new(report, *critical[:1]) or _new(report, *lsuv) or _NORMALIZE


def for_likeness(report: Measurements) -> str:
    """What fixes samples that become too similar."""
    chain = _dense(report.rows)
    if not any(row.residual or row.recurrent for row in chain) and _factor(chain) < 1 / LOST:
        return _another_activation(chain)
    plain = not any(row.residual or row.recurrent or row.normalized for row in chain)
    kept = all(row.gradient_factor <= 1.01 for row in chain)
    linear = _looks_linear(chain) and "looks_linear" in report.fitting
    if plain and kept and _length(chain) > DEEP and not linear:
        return f"{_NORMALIZE}: no initialization fixes this, because ReLU layers draw samples together at any scale"
    return for_size(report)


def for_dead(report: Measurements, row: Row, similarity: float) -> str:
    """What fixes units that no sample reaches."""
    if row.normalized:
        return f"{start('auto')}, which has gains of one and offsets of zero"
    if row.recurrent:
        return start("recurrent")
    if similarity > 0.9:  # a bias does not help: all samples look the same to a unit
        return for_likeness(report)
    return f"{start('auto')}, which has biases of zero"


def for_saturated(report: Measurements, row: Row) -> str:
    """What fixes activations that are flat where the signal is."""
    if row.normalized:
        return f"{start('auto')}, which has gains of one and offsets of zero"
    if row.recurrent:
        return start("recurrent")
    chain = _dense(report.rows)
    plain = not any(other.residual or other.normalized for other in report.rows)
    if plain and _factor(chain) < 1 / LOST:
        return _another_activation(chain)
    return _new(report, "lsuv") or _another_activation(chain)


def _new(report: Measurements, *names: str) -> str:
    """The calls for these schemes; empty if any of them was given.

    A remedy that was given did not fix the fault; of two that do about the same, neither would.
    """
    known = given(report)
    if not known.isdisjoint(names):
        return ""
    return " or ".join(LSUV if name == "lsuv" else start(name) for name in names)


_NORMALIZE = "normalization or skip connections"


def _dense(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind != "embed"]


def _length(chain: Sequence[Row]) -> int:
    """How many layers follow one another."""
    return max((row.depth + 1 for row in chain), default=0)


def _factor(chain: Sequence[Row]) -> float:
    """By how much gradients change through all activations if the weights keep signals."""
    by_depth: dict[int, list[float]] = {}
    for row in chain:
        by_depth.setdefault(row.depth, []).append(float(np.log(max(row.gradient_factor, 1e-9))))
    return float(np.exp(sum(map(np.mean, by_depth.values()))))


def _another_activation(chain: Sequence[Row]) -> str:
    worst = min(chain, key=lambda row: row.gradient_factor)
    batch = "batch " if any(row.normalized for row in chain) else ""
    return (
        f"another activation, such as jax.nn.tanh, or {batch}{_NORMALIZE}: no initialization fixes this at unit "
        f"variance, where {worst.activation} multiplies gradients by {worst.gradient_factor:.2g} per layer. Training "
        "may still succeed: jaxinit.recommend(params, apply_fn, batch) says from which initialization"
    )


def _looks_linear(chain: Sequence[Row]) -> bool:
    *hidden, last = chain
    return bool(hidden) and last.activation is None and all(row.activation == "relu" for row in hidden)


def _is_critical(chain: Sequence[Row]) -> bool:
    """Whether every activation is known to have a critical point."""
    try:
        for name in {row.activation for row in chain if row.activation}:
            if name not in NAMES:
                return False
            critical(name)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _critical_gain(activation: str) -> float | None:
    try:
        return float(critical(activation)[0]) if activation in NAMES else None
    except ValueError:
        return None


def given(report: Measurements) -> frozenset[str]:
    """The names of the schemes that most layers agree with."""
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
