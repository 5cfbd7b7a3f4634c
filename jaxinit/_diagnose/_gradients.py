"""Gradients that vanish or explode in the backward pass over many layers, or that never arrive."""

from collections.abc import Callable

import numpy as np

from jaxinit._advice import for_size
from jaxinit._diagnose._finding import Finding, growth
from jaxinit._diagnose._signals import TOTAL, by
from jaxinit._measuring import TINY, Measurements, alike, counted, reads_out, spans

DEPTHS = 3
"""At how many depths similar rows must be found before their gradients count as vanishing or exploding."""
STEEP = 1e4
"""A root mean square of the Jacobian's singular values that no initialization has on purpose."""
_UNDERFLOW = 1e-20
"""Where gradients are this small, those that are zero count as underflow of float32."""


def gradient_scale(report: Measurements) -> np.ndarray | None:
    """The norm of the gradient at a weight over all samples, positions and uses; None if there are no gradients.

    Pooling spreads a gradient over more positions and a recurrent cell over more uses, but its norm stays the same.
    """
    if report.gradient_std is None or report.gradient_samples is None:
        return None
    return np.asarray(report.gradient_std, float) * np.sqrt(np.asarray(report.gradient_samples, float))


def relative_gradient(report: Measurements) -> np.ndarray | None:
    """The same, times the size of the output where a normalization follows: the size changes nothing there."""
    scale = gradient_scale(report)
    if scale is None:
        return None
    rows = report.rows
    after: dict[int, list[bool]] = {}
    for row in rows:
        for i in row.before:
            after.setdefault(i, []).append(row.fresh)
    normalized = [row.normalized or (not row.residual and all(after.get(i, [False]))) for i, row in enumerate(rows)]
    return scale * np.where(np.array(normalized, bool), np.asarray(report.pre_std, float), 1.0)


def judged(report: Measurements) -> np.ndarray:
    """The rows whose gradients are judged: not those of readouts or in closed branches, which depend on themselves."""
    own = [reads_out(row) for row in report.rows]
    return counted(report) & ~np.array(own, bool) & (np.asarray(report.branch_share, float) > 0)


def gradients(report: Measurements, remedy: Callable[[Measurements], str]) -> list[Finding]:
    """What is wrong with gradients."""
    rows, scale, relative = report.rows, gradient_scale(report), relative_gradient(report)
    if scale is None or relative is None or not counted(report).any():
        return []
    if not scale.any():
        loss = "a loss that depends on the output of the model"
        return [Finding("no gradient", rows[0].name, "No gradient reaches any layer.", loss)]
    lost = np.flatnonzero(counted(report) & ~np.isfinite(scale))
    if len(lost):
        name = rows[max(lost, key=lambda i: rows[i].depth)].name
        return [Finding("exploding gradient", name, f"The gradient at {name} is not finite.", remedy(report))]
    chosen = judged(report)
    factor = float(growth(scale, rows, chosen, backwards=True))
    for members in alike(rows, chosen):
        alive = relative[members] > 0
        if alive.any() and relative[members][alive].min() < _UNDERFLOW:
            alive[: int(np.argmax(alive))] = True
        back = members[alive][::-1]
        if spans(rows, back) < DEPTHS or relative[back[0]] <= TINY:
            continue
        ratio = relative[back] / relative[back[0]]
        for fault, beyond, word, share in (
            ("exploding gradient", ratio > TOTAL, "grow", f"more than {TOTAL:g} times"),
            ("vanishing gradient", ratio < 1 / TOTAL, "shrink", f"less than 1/{TOTAL:g} of"),
        ):
            if beyond[-1]:
                name = rows[back[np.argmax(beyond)]].name
                what = (
                    f"Gradients {word}{by(factor, word)} in the backward pass; at {name} they are {share} those at "
                    f"{rows[back[0]].name}."
                )
                return [Finding(fault, name, what, remedy(report))]
    return []


def jacobian(report: Measurements) -> list[Finding]:
    """Faults that single layers do not show, such as a recurrent cell that diverges from step to step."""
    if report.jacobian_mean_square is None or not report.rows:
        return []
    size = float(np.sqrt(np.asarray(report.jacobian_mean_square, float)))
    if size < STEEP:
        return []
    what = f"Small changes of the input come out {size:.1g} times as large, though no single layer stands out."
    return [Finding("exploding gradient", report.rows[0].name, what, for_size(report))]
