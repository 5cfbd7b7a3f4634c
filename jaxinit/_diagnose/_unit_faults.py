"""Faults inside single layers: units that are equal, dead or saturated, and attention that sees only one key."""

from collections.abc import Iterator

import numpy as np

from jaxinit._advice import LSUV, for_dead, for_saturated, start
from jaxinit._diagnose._finding import Finding
from jaxinit._measuring import Measurements

DEAD = 0.5
SATURATED = 0.35
"""By how much the saturated share must exceed that of standard normal pre-activations."""
ONE_HOT = 0.95
"""A mean largest probability at which hardly any gradient passes through the softmax."""


def unit_faults(report: Measurements) -> Iterator[Finding]:
    """What is wrong with the units of layers: for each fault the first layer that has it."""
    rows = report.rows
    zero = np.asarray(report.weight_norm, float) == 0
    equal = np.zeros(len(rows), bool) if report.equal_units is None else np.asarray(report.equal_units, float) > 0.5
    equal &= zero | np.array([not row.last and row.kind != "depthwise" for row in rows], bool)
    if equal.any():
        i = int(np.argmax(equal))
        what = f"All units of {rows[i].name} have equal weights, so their outputs are equal and count as one unit."
        if zero[i]:
            what = f"All units of {rows[i].name} have weights of zero and equal gradients, so they learn the same."
        yield Finding("equal units", rows[i].name, what, start("auto"))
    dead, saturated = np.asarray(report.dead, float), np.asarray(report.saturated, float)
    surely = np.asarray(report.surely_dead, float)
    if (surely > DEAD).any():
        i = int(np.argmax(surely > DEAD))
        what = (
            f"{dead[i]:.0%} of the units of {rows[i].name} are dead: no sample reaches the slope of "
            f"{rows[i].activation}."
        )
        remedy = for_dead(report, rows[i], float(np.asarray(report.similarity)[max(i - 1, 0)]))
        yield Finding("dead", rows[i].name, what, remedy)
    expected = np.array([row.expected_saturation for row in rows])
    excess = (saturated - expected > SATURATED) & (dead <= DEAD)
    if excess.any():
        i = int(np.argmax(excess))
        where = "after normalization" if rows[i].normalized else f"std {float(np.asarray(report.pre_std)[i]):.3g}"
        what = f"{saturated[i]:.0%} of the outputs of {rows[i].name} lie where {rows[i].activation} is flat ({where})."
        yield Finding("saturated", rows[i].name, what, for_saturated(report, rows[i]))
    peak = np.asarray(report.attention_peak, float)
    if (peak > ONE_HOT).any():
        i = int(np.argmax(peak > ONE_HOT))
        what = (
            f"The attention of {rows[i].name} is one-hot (mean largest probability {peak[i]:.3f}): hardly any gradient "
            "passes through its softmax."
        )
        remedy = f"{LSUV}; and divide scores by the root of the head size, if the model does not"
        yield Finding("one-hot attention", rows[i].name, what, remedy)
