"""What is wrong with initial weights, in words: which fault, from which layer on, and what would fix it."""

import numpy as np

from jaxinit._advice import LSUV, for_likeness, for_size, start
from jaxinit._diagnose._finding import Finding, change
from jaxinit._diagnose._gradients import gradient_scale, gradients, jacobian, judged
from jaxinit._diagnose._signals import signals
from jaxinit._diagnose._unit_faults import unit_faults
from jaxinit._measuring import Measurements, counted, reads_out

CUT_OFF = 0.95
"""A share of dead units behind which nothing passes."""
UNUSUAL = 30.0
"""A last output that is larger than this deserves a remark; many schemes make it small."""
ALIKE = 0.995
"""A mean cosine between samples at which a layer hardly distinguishes them."""
EQUAL = 1 - 1e-6
"""A mean cosine of samples that are the same."""
KEPT = 3.0
"""A change of scale by less than this over all layers is not worth reporting."""
_BATCH = "a batch of data as the model will see them"


def findings(report: Measurements) -> list[Finding]:
    """What is wrong with one set of initial weights."""
    found = _broken(report) or _blank(report)
    if found:
        return found
    found = list(unit_faults(report))
    if not any(finding.fault == "equal units" for finding in found):  # equal units make samples look alike, too
        found = _equal_samples(report) or found
    if np.max(report.surely_dead, initial=0) > CUT_OFF:
        return found  # nothing passes: all else follows from it
    alike = _alike(report)
    found += signals(report) + gradients(report, for_likeness if alike else for_size) + alike
    if not any("gradient" in finding.fault for finding in found):
        found += jacobian(report)
    return found


def all_clear(report: Measurements) -> str:
    """What to say where nothing is wrong: by how much scales change over all layers, and how large the outputs are.

    Says nothing about what was not compared or not read.
    """
    counts = counted(report)
    inside = counts & ~np.array([reads_out(row) for row in report.rows], bool)
    signals = np.asarray(report.pre_std, float)
    changes = {"signals": change(signals, report.rows, inside) or change(signals, report.rows, counts)}
    gradient = gradient_scale(report)
    if gradient is not None:
        back = change(gradient, report.rows, judged(report))
        changes["gradients"] = None if back is None else 1 / back
    kept = [name for name, factor in changes.items() if factor is not None and 1 / KEPT <= factor <= KEPT]
    told = [
        f"{name} are multiplied by {factor:.2g}" if name not in kept else f"{name} keep their size"
        for name, factor in changes.items()
        if factor is not None
    ]
    where = f"in the {int(counts.sum())} layers that were read" if report.unread else "through all layers"
    if not told:
        words = "No fault was found, but there were no two layers to compare"
    elif len(kept) == len(told):
        words = f"{' and '.join(kept).capitalize()} keep their size {where}"
    else:
        words = f"No fault was found; from one end of the model to the other {', '.join(told)}"
    members = np.flatnonzero(counts)
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))
    last = max(members, key=lambda i: report.rows[i].depth, default=None)
    if last is None or not size[last] > UNUSUAL:
        return f"{words}."
    name = report.rows[last].name
    words = f"{words}. Yet the output of {name} has a size of {size[last]:.1g}"
    return f"{words}: look at the scale of the data, or at {LSUV}."


def _broken(report: Measurements) -> list[Finding]:
    names = [row.name for row in report.rows]
    bad = ~np.isfinite(np.asarray(report.pre_std, float))
    if bad.any():
        first = min(np.flatnonzero(bad), key=lambda i: report.rows[i].depth)
        what = f"The output of {names[first]} is not finite."
        return [Finding("overflow", names[first], what, for_size(report))]
    if len(names) and not report.finite_output:
        what = f"All layers have finite outputs, but the output of the model is not finite: look after {names[-1]}."
        return [Finding("not finite", names[-1], what, "keeping logarithms, roots and divisors away from zero")]
    return []


def _blank(report: Measurements) -> list[Finding]:
    """What is wrong with the batch, or with all weights, so that the initialization cannot be judged."""
    dense = [i for i, row in enumerate(report.rows) if row.kind != "embed"]
    norms = np.asarray(report.weight_norm, float)[dense]
    if len(dense) > 1 and not norms.any():
        name = report.rows[dense[0]].name
        what = f"The weights of all layers are zero, from {name} on, so no signal passes and no gradient comes back."
        return [Finding("zero weights", name, what, start("auto"))]
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))[dense]
    if len(dense) and not size.any() and norms[0] > 0:
        name = report.rows[dense[0]].name
        what = f"The output of {name} is zero though its weights are not: its input is zero."
        return [Finding("blank batch", name, what, _BATCH)]
    return []


def _equal_samples(report: Measurements) -> list[Finding]:
    counts = counted(report)
    if not counts.any() or not (np.asarray(report.similarity, float)[counts] > EQUAL).all():
        return []
    what = "All samples of the batch are equal, so how units distinguish them cannot be judged."
    return [Finding("equal samples", report.rows[int(np.argmax(counts))].name, what, _BATCH)]


def _alike(report: Measurements) -> list[Finding]:
    members = sorted(np.flatnonzero(counted(report)), key=lambda i: report.rows[i].depth)
    similarity = np.asarray(report.similarity, float)[members]
    alike = (similarity > ALIKE) & (np.asarray(report.pre_std, float)[members] > 0)
    # Averages over an image are alike for all images, too: one layer alone is not yet the ordered phase.
    if len(alike) < 3 or not alike[-3:].all() or similarity[0] > ALIKE:
        return []
    first = report.rows[members[0 if alike.all() else len(alike) - np.argmin(alike[::-1])]].name
    what = f"From {first} on all samples look alike (mean cosine {similarity[-1]:.4f}): the ordered phase."
    return [Finding("ordered", first, what, for_likeness(report))]
