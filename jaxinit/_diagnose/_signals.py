"""Signals that change at one layer, that vanish or explode over many, or that have the wrong size throughout."""

import numpy as np

from jaxinit._advice import LOST, LSUV, for_size
from jaxinit._diagnose._finding import Finding, growth
from jaxinit._measuring import TINY, Measurements, counted, ends_branch, form, gains, reads_out

TOTAL = LOST
"""A signal whose scale changes by this factor over all layers vanishes or explodes."""
JUMP = 20.0
"""A layer stands out if its gain is this many times that of its peers."""
LARGE = 3.0
"""A gain between the inverse of this and this never stands out."""
LARGEST = 1e3
"""Outputs of layers that are typically larger than this, or smaller than one over it, are of the wrong size."""
STILL = 1e-6
"""Outputs with a smaller standard deviation hardly vary."""
PEERS = 2
"""How many layers of the same form are needed to judge another one by."""
WIDE = 80.0
"""A layer whose input is the data itself, which has any size, stands out if its output is larger than this."""


def signals(report: Measurements) -> list[Finding]:
    """What is wrong with the sizes of signals."""
    if not counted(report).any():
        return []
    return outliers(report) or _lost(report) or _still(report) or _absolute(report)


def outliers(report: Measurements) -> list[Finding]:
    """The layer that stands out most by its gain, the size of its output over that of its input.

    Some layers may start as small as they like: a readout, a layer that weighs other data or is multiplied by step
    sizes, one of two layers of the same data whose sum goes on, and the last layer of a branch, unless the other
    branches are different.
    """
    found, scale = gains(report), np.asarray(report.product_size, float)
    some = np.flatnonzero(np.isfinite(found))
    if len(some) < 2:
        return []
    by_form: dict[object, list[int]] = {}
    inner = [i for i in some.tolist() if not reads_out(report.rows[i])]
    for i in inner:
        by_form.setdefault(form(report.rows[i]), []).append(i)
    odd: dict[int, float] = {}
    for i in some.tolist():
        row = report.rows[i]
        own = [j for j in by_form.get(form(row), []) if j != i and not reads_out(row)]
        peers = own if len(own) >= PEERS else [j for j in inner if j != i] or [j for j in some.tolist() if j != i]
        ratio = found[i] / float(np.exp(np.median(np.log(found[peers]))))
        apart = row.weighs or row.beside or row.paced
        on_purpose = reads_out(row) or apart or (ends_branch(row) and len(own) < PEERS)
        first = not row.before and row.kind != "embed"
        large = ratio > JUMP and found[i] > LARGE and not (first and scale[i] < WIDE)
        small = ratio < 1 / JUMP and found[i] < 1 / LARGE and not on_purpose and not (first and scale[i] > 1 / WIDE)
        if large or small:
            odd[i] = ratio
    if not odd:
        return []
    i = max(odd, key=lambda i: (round(abs(np.log(odd[i])), 3), abs(np.log(found[i]))))
    name = report.rows[i].name
    what = f"{name} multiplies the scale of its input by {found[i]:.3g}, which is {odd[i]:.3g} times the usual factor."
    return [Finding("outlier", name, what, LSUV)]


def _lost(report: Measurements) -> list[Finding]:
    """Signals that vanish or explode along the path of the data.

    Each layer is compared with the first one of its own path. Where several paths meet, that is the path whose last
    layer it resembles most, since a residual stream is as large as the largest of all that was added to it. A
    normalization begins a new path.
    """
    rows, counts = report.rows, counted(report)
    scale, taken = np.asarray(report.pre_std, float), np.asarray(report.input_size, float)
    start: dict[int, tuple[float, int]] = {}
    found: list[Finding] = []
    for i in sorted(np.flatnonzero(counts).tolist(), key=lambda i: rows[i].depth):
        size = max(scale[i], TINY)
        ways = [] if rows[i].fresh else [j for j in rows[i].before if j in start]
        if not ways:
            start[i] = size, 0
            continue
        first, steps = start[min(ways, key=lambda j: abs(np.log(size / max(scale[j], TINY))))]
        if steps == 0:  # what a bounded activation removes from data of any size was not signal
            first = min(first, max(taken[i], TINY))
        start[i] = first, steps + 1
        if steps + 1 < 2:
            continue
        # A readout may be of any size: what counts is its input.
        size = taken[i] if reads_out(rows[i]) else scale[i]
        # What a branch adds to its skip connection may be as small as one likes.
        for fault, beyond, word in (
            ("vanishing signal", size * TOTAL < first and not rows[i].residual, "shrink"),
            ("exploding signal", size > first * TOTAL, "grow"),
        ):
            if beyond and not any(finding.fault == fault for finding in found):
                factor = float(growth(scale, rows, counts))
                share = f"less than 1/{TOTAL:g} of" if word == "shrink" else f"more than {TOTAL:g} times"
                where = f"what reaches {rows[i].name} is" if reads_out(rows[i]) else f"from {rows[i].name} on they are"
                what = f"Signals {word}{by(factor, word)}; {where} {share} the first layer's."
                found.append(Finding(fault, rows[i].name, what, for_size(report)))
    return found


def _still(report: Measurements) -> list[Finding]:
    rows, scale = report.rows, np.asarray(report.pre_std, float)
    chosen = [not (row.residual or row.last) and row.numbers > 1 for row in rows]
    still = np.flatnonzero((scale < STILL) & counted(report) & np.array(chosen, bool))
    if not len(still):
        return []
    first = min(still, key=lambda i: rows[i].depth)
    what = f"The output of {rows[first].name} hardly varies (std {scale[first]:.1g})."
    return [Finding("vanishing signal", rows[first].name, what, for_size(report))]


def _absolute(report: Measurements) -> list[Finding]:
    """Outputs that keep their size from layer to layer, but a wrong one."""
    chosen = counted(report) & np.array([not row.residual for row in report.rows], bool)
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))
    usual = float(np.median(size[chosen])) if chosen.any() else 1.0
    if 1 / LARGEST <= usual <= LARGEST:
        return []
    wrong = np.flatnonzero(chosen & (size > LARGEST if usual > 1 else size < 1 / LARGEST))
    first = report.rows[min(wrong, key=lambda i: report.rows[i].depth)].name
    what = f"Layers have outputs of size {usual:.1g}, from {first} on, though they neither grow nor shrink."
    return [Finding("scale", first, what, LSUV)]


def by(factor: float, word: str) -> str:
    """The fitted rate, if the change is spread over the layers."""
    return f" (×{factor:.3g} per layer)" if (factor > 1) == (word == "grow") else ""
