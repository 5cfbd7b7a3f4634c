"""What is wrong with a start, in words: which fault, from which layer on, and what would mend it."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxinit._diagnose._finding import Finding
from jaxinit._diagnose._growth import TINY, growth, inner, towers
from jaxinit._diagnose._measurements import Measurements
from jaxinit._diagnose._remedies import LOST, LSUV, for_likeness, for_size, start
from jaxinit._diagnose._rows import Row
from jaxinit._diagnose._unit_faults import unit_faults

TOTAL = LOST
"""A change of scale by so much over all layers vanishes or explodes."""
JUMP = 20.0
"""A layer whose scale is so many times that of its neighbours stands out."""
CUT_OFF = 0.95
"""A share of dead units behind which nothing passes."""
LARGEST = 1e3
"""Outputs of layers that are usually larger than this, or smaller than one over it, are of the wrong size."""
UNUSUAL = 30.0
"""A last output that is larger than this is worth a word; many a scheme makes it small."""
ALIKE = 0.995
"""A mean cosine between samples at which a layer hardly tells them apart."""
EQUAL = 1 - 1e-6
"""A mean cosine of samples that are the same."""
STEEP = 1e4
"""A root mean square of the Jacobian's singular values that no start is meant to have."""
KEPT = 3.0
"""A change of scale by less over all layers is none to speak of."""
_BATCH = "a batch of data as the model will see them"


def gradient_scale(report: Measurements) -> np.ndarray | None:
    """The norm of the gradient at a unit over all samples, positions and uses; None if there are no gradients.

    Pooling spreads a gradient over more positions and a recurrent cell over more uses: its norm stays what it was.
    """
    if report.gradient_std is None or report.gradient_samples is None:
        return None
    return np.asarray(report.gradient_std, float) * np.sqrt(np.asarray(report.gradient_samples, float))


def chain(report: Measurements) -> np.ndarray:
    """The rows that count for growth over depth: no lookups, no queries and keys.

    Weights that are zero are meant to be: readouts and last layers of branches. Nothing is to be learned of them.
    """
    counts = [row.kind != "embed" and row.role not in ("query", "key") for row in report.rows]
    norms = np.asarray(report.weight_norm, float)
    return np.array(counts, bool) & (norms > 0).any(axis=tuple(range(norms.ndim - 1)))


def findings(report: Measurements) -> list[Finding]:
    """What is wrong with one start."""
    found = _broken(report) or _blank(report)
    if found:
        return found
    found = list(unit_faults(report))
    if not any(finding.fault == "equal units" for finding in found):  # samples are alike for them, too
        found = _equal_samples(report) or found
    if np.max(report.dead, initial=0) > CUT_OFF:
        return found  # nothing passes: all else follows from it
    alike = _alike(report)
    found += _signal(report) + _gradient(report, for_likeness if alike else for_size) + alike
    if not any("gradient" in finding.fault for finding in found):
        found += _jacobian(report)
    return found


def praise(report: Measurements) -> str:
    """What to say where nothing is wrong: by how much scales change over all layers, and how large the outputs are."""
    changes = {"signals": (np.asarray(report.pre_std, float), 1)}
    gradient = gradient_scale(report)
    if gradient is not None:
        changes["gradients"] = gradient, -1
    said = {}
    members = next(iter(towers(report.rows, chain(report))), np.zeros(0, int))
    for name, (scale, direction) in changes.items():
        factor = _change(scale, report.rows, inner(members)) ** direction
        said[name] = "" if 1 / KEPT <= factor <= KEPT else f"{name} are multiplied by {factor:.2g}"
    if not any(said.values()):
        words = f"{' and '.join(said).capitalize()} keep their size through all layers"
    else:
        changed = ", ".join(words or f"{name} keep their size" for name, words in said.items())
        words = f"No fault was found; from one end of the model to the other {changed}"
    size = float(np.hypot(report.pre_mean, report.pre_std)[members[-1]]) if len(members) else 1.0
    if not size > UNUSUAL:
        return f"{words}."
    last = report.rows[members[-1]].name
    return f"{words}. Yet the output of {last} has a size of {size:.1g}: look at the scale of the data, or at {LSUV}."


def _change(scale: np.ndarray, rows: Sequence[Row], members: Sequence[int] | np.ndarray) -> float:
    """By what factor a scale changes from the first of these rows to the last, as rows that are alike tell."""
    alike: dict[object, list[int]] = {}
    for i in members:
        row = rows[i]
        alike.setdefault((row.kind, row.activation, row.residual, row.role, row.normalized), []).append(i)
    pairs = [(same[0], same[-1]) for same in (*alike.values(), members) if len(same)]
    told = [(i, j) for i, j in pairs if rows[i].depth < rows[j].depth and min(scale[i], scale[j]) > 0]
    if not told or told[-1] != pairs[-1]:
        return 1.0
    *told, (first, last) = told
    rise = sum(np.log(scale[j] / scale[i]) for i, j in told or [(first, last)])
    run = sum(rows[j].depth - rows[i].depth for i, j in told or [(first, last)])
    return float(np.exp(rise / run * (rows[last].depth - rows[first].depth)))


def _broken(report: Measurements) -> list[Finding]:
    names = [row.name for row in report.rows]
    bad = ~np.isfinite(np.asarray(report.pre_std, float))
    if bad.any():
        first = min(np.flatnonzero(bad), key=lambda i: report.rows[i].depth)
        what = f"The output of {names[first]} is not finite."
        return [Finding("overflow", names[first], what, for_size(report.rows))]
    if len(names) and not report.finite_output:
        what = f"All layers have finite outputs, but what the model makes of them is not: look after {names[-1]}."
        return [Finding("not finite", names[-1], what, "logarithms, roots and divisions of numbers kept off zero")]
    return []


def _blank(report: Measurements) -> list[Finding]:
    """What is wrong with the batch, or with all weights, so that nothing can be said of the start."""
    dense = [i for i, row in enumerate(report.rows) if row.kind != "embed"]
    norms = np.asarray(report.weight_norm, float)[dense]
    if len(dense) > 1 and not norms.any():
        name = report.rows[dense[0]].name
        what = (
            f"The weights of all layers are zero, from {name} on, so that no signal passes and no gradient comes back."
        )
        return [Finding("zero weights", name, what, start("auto"))]
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))[dense]
    if len(dense) and not size.any() and norms[0] > 0:
        name = report.rows[dense[0]].name
        what = f"The output of {name} is zero though its weights are not: what comes in is zero."
        return [Finding("blank batch", name, what, _BATCH)]
    return []


def _equal_samples(report: Measurements) -> list[Finding]:
    counts = chain(report)
    if not counts.any() or not (np.asarray(report.similarity, float)[counts] > EQUAL).all():
        return []
    what = "All samples of the batch are equal, so that nothing can be said of how units tell them apart."
    return [Finding("equal samples", report.rows[int(np.argmax(counts))].name, what, _BATCH)]


def _signal(report: Measurements) -> list[Finding]:
    rows, counts = report.rows, chain(report)
    scale = np.asarray(report.pre_std, float)
    found = _outliers(report)
    if found or not counts.any():
        return found
    # What a branch adds to its skip connection may be as little as one likes.
    through = np.array([not row.residual for row in rows], bool)
    for members in towers(rows, counts):
        reference = max(scale[members[0]], TINY)
        for fault, beyond, word in (
            ("vanishing signal", (scale < reference / TOTAL) & through, "shrink"),
            ("exploding signal", scale > reference * TOTAL, "grow"),
        ):
            reached = [i for i in members[1:] if beyond[i]]
            if reached and not any(finding.fault == fault for finding in found):
                name = rows[reached[0]].name
                factor = float(growth(scale, rows, counts))
                share = f"less than 1/{TOTAL:g} of" if word == "shrink" else f"more than {TOTAL:g} times"
                what = f"Signals {word}{_by(factor, word)}; from {name} on they are {share} the first layer's."
                found.append(Finding(fault, name, what, for_size(rows)))
    several = np.ones(len(rows)) if report.gradient_samples is None else np.asarray(report.gradient_samples)
    still = np.flatnonzero((scale < 1e-6) & counts & through & (several != 1))
    if not found and len(still):
        first = min(still, key=lambda i: rows[i].depth)
        what = f"The output of {rows[first].name} hardly varies (std {scale[first]:.1g})."
        found.append(Finding("vanishing signal", rows[first].name, what, for_size(rows)))
    return found or _absolute(report, counts & through)


def _absolute(report: Measurements, chosen: np.ndarray) -> list[Finding]:
    """Outputs that keep their size from layer to layer, but a wrong one."""
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))
    usual = float(np.median(size[chosen])) if chosen.any() else 1.0
    if 1 / LARGEST <= usual <= LARGEST:
        return []
    wrong = np.flatnonzero(chosen & (size > LARGEST if usual > 1 else size < 1 / LARGEST))
    first = report.rows[min(wrong, key=lambda i: report.rows[i].depth)].name
    what = f"The outputs of layers have a size of {usual:.1g}, from {first} on, though they neither grow nor shrink."
    return [Finding("scale", first, what, LSUV)]


def _by(factor: float, word: str) -> str:
    """The fitted rate, if the change is spread over the layers."""
    return f" (×{factor:.3g} a layer)" if (factor > 1) == (word == "grow") else ""


def _outliers(report: Measurements) -> list[Finding]:
    """Layers that stand out from the trend of their neighbours; where signals are lost there is no trend.

    A layer's neighbours are those that its data come from. Of several it is compared with the one it is most like: a
    residual stream is as large as the largest of all that was added to it.
    """
    scale, counts = np.asarray(report.pre_std, float), chain(report)
    held = counts & (scale > TINY)
    steps: dict[int, float] = {}
    for i in sorted(np.flatnonzero(held).tolist(), key=lambda i: report.rows[i].depth):
        before = report.rows[i].before
        if any(counts[j] and not held[j] for j in before):
            held[i] = False  # what comes after a lost signal has no trend either
        known = [float(np.log(scale[i] / scale[j])) for j in before if held[j]]
        if held[i] and known:
            steps[i] = min(known, key=abs)
    if len(steps) < 2:
        return []
    rows, sizes = list(steps), np.array(list(steps.values()))
    usual = np.median(sizes)
    odd = (np.abs(sizes - usual) > np.log(JUMP)) & (np.abs(sizes) > np.log(JUMP))
    if not odd.any() or odd.mean() > 0.3:
        return []
    first = int(np.argmax(odd))
    name, ratio = report.rows[rows[first]].name, float(np.exp(sizes[first]))
    what = f"The output of {name} has {ratio:.3g} times the scale of the layer before it."
    return [Finding("outlier", name, what, LSUV)]


def _gradient(report: Measurements, remedy: Callable[[Sequence[Row]], str]) -> list[Finding]:
    rows, counts, scale = report.rows, chain(report), gradient_scale(report)
    if scale is None or report.gradient_norm is None or not counts.any():
        return []
    if not scale.any():
        loss = "a loss that depends on the output of the model"
        return [Finding("no gradient", rows[0].name, "No gradient reaches any layer.", loss)]
    factor = float(growth(scale, rows, counts, backwards=True))
    for members in towers(rows, counts):
        # Nothing comes back through an argmax, or to a branch that ends in zeros, while it does to layers beside it.
        alive = min((rows[i].depth for i in members if scale[i] != 0), default=0)
        back = np.array([i for i in members[::-1] if scale[i] != 0 or rows[i].depth < alive], int)
        lost = [i for i in back if not np.isfinite(scale[i])]
        if lost:
            name = rows[lost[0]].name
            return [Finding("exploding gradient", name, f"The gradient at {name} is not finite.", remedy(rows))]
        back = back[1:] if len(back) > 4 else back  # the readout's fans are its own
        if len(back) < 2 or scale[back[0]] == 0:
            continue
        ratio = scale[back] / scale[back[0]]
        for fault, beyond, word, share in (
            ("exploding gradient", ratio > TOTAL, "grow", f"more than {TOTAL:g} times"),
            ("vanishing gradient", ratio < 1 / TOTAL, "shrink", f"less than 1/{TOTAL:g} of"),
        ):
            if beyond[-1]:
                name = rows[back[np.argmax(beyond)]].name
                what = (
                    f"Gradients {word}{_by(factor, word)} on their way back; at {name} they are {share} those of the "
                    "last layer."
                )
                return [Finding(fault, name, what, remedy(rows))]
    return []


def _jacobian(report: Measurements) -> list[Finding]:
    """What layers by themselves do not show, such as a recurrent cell that runs away from step to step."""
    if report.jacobian_mean_square is None or not report.rows:
        return []
    size = float(np.sqrt(np.asarray(report.jacobian_mean_square, float)))
    if size < STEEP:
        return []
    what = f"Small changes of the input come out {size:.1g} times as large, though no layer alone stands out."
    return [Finding("exploding gradient", report.rows[0].name, what, for_size(report.rows))]


def _alike(report: Measurements) -> list[Finding]:
    members = sorted(np.flatnonzero(chain(report)), key=lambda i: report.rows[i].depth)
    similarity = np.asarray(report.similarity, float)[members]
    alike = (similarity > ALIKE) & (np.asarray(report.pre_std, float)[members] > 0)
    # Averages over an image are alike for all images, too: it takes several layers to make a phase.
    if len(alike) < 3 or not alike[-3:].all() or similarity[0] > ALIKE:
        return []
    first = report.rows[members[0 if alike.all() else len(alike) - np.argmin(alike[::-1])]].name
    what = f"From {first} on all samples look alike (mean cosine {similarity[-1]:.4f}): the ordered phase."
    return [Finding("ordered", first, what, for_likeness(report.rows))]
