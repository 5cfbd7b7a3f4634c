"""What is wrong with a start, in words: which fault, from which layer on, and what would mend it."""

from typing import TYPE_CHECKING

import numpy as np

from jaxinit._diagnose._finding import Finding
from jaxinit._diagnose._remedies import LOST, LSUV, for_likeness, for_size
from jaxinit._diagnose._unit_faults import unit_faults

if TYPE_CHECKING:
    from jaxinit._diagnose._report import DiagnoseReport

TOTAL = LOST
"""A change of scale by so much over all layers vanishes or explodes."""
JUMP = 20.0
"""A layer whose scale is so many times that of its neighbours stands out."""
CUT_OFF = 0.95
"""A share of dead units behind which nothing passes."""
LARGEST = 1e3
"""Outputs of layers that are usually larger than this, or smaller than one over it, are of the wrong size."""
ALIKE = 0.995
STEEP = 1e4
"""A root mean square of the Jacobian's singular values that no start is meant to have."""
TINY = 1e-30


def growth(scales: object, chosen: np.ndarray) -> np.ndarray:
    """exp of the slope of log scale over depth, by least squares over the chosen rows but the ends."""
    values = np.asarray(scales, float)[..., chosen]
    if values.shape[-1] > 4:
        values = values[..., 1:-1]  # the read-in and the readout have fans of their own
    count = values.shape[-1]
    if count < 2:
        return np.ones(values.shape[:-1])
    logs = np.log(np.clip(np.nan_to_num(values, nan=TINY, posinf=1e38), TINY, 1e38))
    depth = np.arange(count) - (count - 1) / 2
    return np.exp((logs * depth).sum(-1) / (depth**2).sum())


def gradient_scale(report: "DiagnoseReport") -> np.ndarray | None:
    """The norm of the gradient at a unit over all samples, positions and uses; None if there are no gradients.

    Pooling spreads a gradient over more positions and a recurrent cell over more uses: its norm stays what it was.
    """
    if report.gradient_std is None or report.gradient_samples is None:
        return None
    return np.asarray(report.gradient_std, float) * np.sqrt(np.asarray(report.gradient_samples, float))


def findings(report: "DiagnoseReport") -> list[Finding]:
    """What is wrong with one start."""
    names = np.array([row.name for row in report.rows], object)
    # Weights that are zero are meant to be: readouts and last layers of branches. Nothing is to be learned of them.
    chain = report._chain() & (np.asarray(report.weight_norm) > 0)
    found = _broken(report, names)
    if found:
        return found
    found = list(unit_faults(report))
    if np.max(report.dead, initial=0) > CUT_OFF:
        return found  # nothing passes: all else follows from it
    found += _signal(report, names, chain) + _gradient(report, names, chain) + _alike(report, names, chain)
    if not any("gradient" in finding.fault for finding in found):
        found += _jacobian(report, names)
    return found


def _broken(report: "DiagnoseReport", names: np.ndarray) -> list[Finding]:
    bad = ~np.isfinite(np.asarray(report.pre_std, float))
    if bad.any():
        first = names[np.argmax(bad)]
        return [Finding("overflow", first, f"The output of {first} is not finite.", for_size(report.rows))]
    if len(names) and not report.finite_output:
        what = f"All layers have finite outputs, but what the model makes of them is not: look after {names[-1]}."
        return [Finding("not finite", names[-1], what, "logarithms, roots and divisions of numbers kept off zero")]
    return []


def _signal(report: "DiagnoseReport", names: np.ndarray, chain: np.ndarray) -> list[Finding]:
    scale, layers = np.asarray(report.pre_std, float)[chain], names[chain]
    if len(scale) == 0:
        return []
    found = _outliers(scale, layers)
    if found:
        return found
    reference = max(scale[0], TINY)
    # What a branch adds to its skip connection may be as little as one likes.
    through = ~np.array([row.residual for row in report.rows], bool)[chain]
    for fault, beyond, word in (
        ("vanishing signal", (scale < reference / TOTAL) & through, "shrink"),
        ("exploding signal", scale > reference * TOTAL, "grow"),
    ):
        beyond[0] = False  # it is what the others are compared with
        if beyond.any():
            first = layers[np.argmax(beyond)]
            factor = float(growth(scale, np.ones(len(scale), bool)))
            share = f"less than 1/{TOTAL:g} of" if fault.startswith("vanishing") else f"more than {TOTAL:g} times"
            what = f"Signals {word}{_by(factor, word)}; from {first} on they are {share} the first layer's."
            found.append(Finding(fault, str(first), what, for_size(report.rows)))
    several = np.ones(len(names)) if report.gradient_samples is None else np.asarray(report.gradient_samples)
    still = (scale < 1e-6) & through & (several[chain] != 1)
    if not found and still.any():
        first = layers[np.argmax(still)]
        what = f"The output of {first} hardly varies (std {scale[np.argmax(still)]:.1g})."
        found.append(Finding("vanishing signal", str(first), what, for_size(report.rows)))
    return found or _absolute(report, names, chain, through)


def _absolute(report: "DiagnoseReport", names: np.ndarray, chain: np.ndarray, through: np.ndarray) -> list[Finding]:
    """Outputs that keep their size from layer to layer, but a wrong one."""
    size = np.hypot(np.asarray(report.pre_mean, float), np.asarray(report.pre_std, float))[chain][through]
    usual = float(np.median(size)) if len(size) else 1.0
    if 1 / LARGEST <= usual <= LARGEST:
        return []
    wrong = size > LARGEST if usual > 1 else size < 1 / LARGEST
    first = str(names[chain][through][np.argmax(wrong)])
    what = f"The outputs of layers have a size of {usual:.1g}, from {first} on, though they neither grow nor shrink."
    return [Finding("scale", first, what, LSUV)]


def _by(factor: float, word: str) -> str:
    """The fitted rate, if the change is spread over the layers."""
    return f" by {factor:.3g} a layer" if (factor > 1) == (word == "grow") else ""


def _outliers(scale: np.ndarray, layers: np.ndarray) -> list[Finding]:
    """Layers that stand out from the trend of their neighbours."""
    logs = np.log(np.clip(scale, TINY, 1e38))
    if len(logs) < 3:
        return []
    steps = np.diff(logs)
    usual = np.median(steps)
    odd = (np.abs(steps - usual) > np.log(JUMP)) & (np.abs(steps) > np.log(JUMP))
    if not odd.any() or odd.mean() > 0.3:
        return []
    first = int(np.argmax(odd)) + 1
    ratio = float(np.exp(logs[first] - logs[first - 1]))
    if ratio < 1 and scale[first] == 0:
        return []
    what = f"The output of {layers[first]} has {ratio:.3g} times the scale of the layer before it."
    return [Finding("outlier", str(layers[first]), what, LSUV)]


def _gradient(report: "DiagnoseReport", names: np.ndarray, chain: np.ndarray) -> list[Finding]:
    spread = gradient_scale(report)
    if spread is None or report.gradient_norm is None:
        return []
    if len(names) and not np.asarray(report.gradient_norm).any():
        remedy = "a loss that depends on the parameters, and a start whose weights are not all zero"
        return [Finding("no gradient", names[0], "The gradients of all weights are zero.", remedy)]
    scale, layers = spread[chain], names[chain]
    if len(scale) < 2:
        return []
    if not np.isfinite(scale).all():
        last = layers[len(scale) - 1 - np.argmax(~np.isfinite(scale[::-1]))]
        return [Finding("exploding gradient", last, f"The gradient at {last} is not finite.", for_size(report.rows))]
    factor = float(growth(scale[::-1], np.ones(len(scale), bool)))
    if len(scale) > 4:
        scale, layers = scale[:-1], layers[:-1]  # the readout's fans are its own
    back = scale[::-1]
    if back[0] == 0:
        return []
    ratio = back / back[0]
    for fault, beyond, word, share in (
        ("exploding gradient", ratio > TOTAL, "grow", f"more than {TOTAL:g} times"),
        ("vanishing gradient", ratio < 1 / TOTAL, "shrink", f"less than 1/{TOTAL:g} of"),
    ):
        if beyond[-1]:
            first = layers[::-1][np.argmax(beyond)]
            what = (
                f"Gradients {word}{_by(factor, word)} on their way back; at {first} they are {share} those of the "
                "last layer."
            )
            return [Finding(fault, str(first), what, for_size(report.rows))]
    return []


def _jacobian(report: "DiagnoseReport", names: np.ndarray) -> list[Finding]:
    """What layers by themselves do not show, such as a recurrent cell that runs away from step to step."""
    if report.jacobian_mean_square is None or len(names) == 0:
        return []
    size = float(np.sqrt(np.asarray(report.jacobian_mean_square, float)))
    if size < STEEP:
        return []
    what = f"Small changes of the input come out {size:.1g} times as large, though no layer alone stands out."
    return [Finding("exploding gradient", str(names[0]), what, for_size(report.rows))]


def _alike(report: "DiagnoseReport", names: np.ndarray, chain: np.ndarray) -> list[Finding]:
    similarity, layers = np.asarray(report.similarity, float)[chain], names[chain]
    scale = np.asarray(report.pre_std, float)[chain]
    alike = (similarity > ALIKE) & (scale > 0)
    # Averages over an image are alike for all images, too: it takes several layers to make a phase.
    if len(alike) < 3 or not alike[-3:].all() or similarity[0] > ALIKE:
        return []
    first = layers[len(alike) - np.argmin(alike[::-1])] if not alike.all() else layers[0]
    what = f"From {first} on all samples look alike (mean cosine {similarity[-1]:.4f}): the ordered phase."
    return [Finding("ordered", str(first), what, for_likeness(report.rows))]
