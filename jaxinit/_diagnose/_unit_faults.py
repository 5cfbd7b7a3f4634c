"""Faults inside of single layers: units that are equal, dead or saturated, and attention that sees one key alone."""

from collections.abc import Iterator

import numpy as np

from jaxinit._diagnose._finding import Finding
from jaxinit._diagnose._measurements import Measurements
from jaxinit._diagnose._remedies import LSUV, for_dead, for_saturated, start

DEAD = 0.5
SATURATED = 0.35
"""More than expected for standard normal pre-activations."""
ONE_HOT = 0.95
"""A mean largest probability at which hardly any gradient passes the softmax."""


def unit_faults(report: Measurements) -> Iterator[Finding]:
    """What is wrong with the units of layers; of each fault the first layer that has it."""
    rows = report.rows
    if report.equal_units is not None and (equal := np.asarray(report.equal_units, float) > 0.5).any():
        i = int(np.argmax(equal))
        weights = "weights of zero" if float(np.asarray(report.weight_norm)[i]) == 0 else "equal weights"
        what = f"All units of {rows[i].name} have {weights} and equal gradients, so that they learn the same."
        yield Finding("equal units", rows[i].name, what, start("auto"))
    dead, saturated = np.asarray(report.dead, float), np.asarray(report.saturated, float)
    if (dead > DEAD).any():
        i = int(np.argmax(dead > DEAD))
        what = (
            f"{dead[i]:.0%} of the units of {rows[i].name} are dead: no sample reaches the slope of "
            f"{rows[i].activation}."
        )
        remedy = for_dead(rows, rows[i], float(np.asarray(report.similarity)[max(i - 1, 0)]))
        yield Finding("dead", rows[i].name, what, remedy)
    expected = np.array([row.expected_saturation for row in rows])
    excess = (saturated - expected > SATURATED) & (dead <= DEAD)
    if excess.any():
        i = int(np.argmax(excess))
        where = "after normalization" if rows[i].normalized else f"std {float(np.asarray(report.pre_std)[i]):.3g}"
        what = f"{saturated[i]:.0%} of the outputs of {rows[i].name} lie where {rows[i].activation} is flat ({where})."
        yield Finding("saturated", rows[i].name, what, for_saturated(rows, rows[i]))
    peak = np.asarray(report.attention_peak, float)
    if (peak > ONE_HOT).any():
        i = int(np.argmax(peak > ONE_HOT))
        what = (
            f"The attention of {rows[i].name} is one-hot (mean largest probability {peak[i]:.3f}): hardly any gradient "
            "passes its softmax."
        )
        remedy = f"{LSUV}; and scores divided by the root of the size of a head, if they are not"
        yield Finding("one-hot attention", rows[i].name, what, remedy)
