"""Remarks beside the faults of initial weights: what starts closed, and what the verdict does not cover."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxinit._diagnose._gradients import gradient_scale
from jaxinit._diagnose._signals import JUMP
from jaxinit._diagnose._unit_faults import DEAD
from jaxinit._measuring import Measurements, counted, ends_branch, gains, reads_out

CLOSED = 1e-3
"""A branch that adds less than this share of what it is added to is closed."""
_NAMED = 3
"""How many names are listed before the rest are counted."""


def remarks(report: Measurements) -> Iterator[str]:
    """What deserves a remark, in one or two sentences each."""
    yield from _closed_branches(report)
    yield from _readouts(report)
    yield from _doubtful(report)
    yield from _uncovered(report)


def names(found: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    some = list(dict.fromkeys(found))
    if len(some) <= _NAMED + 1:
        return ", ".join(some)
    return f"{', '.join(some[:_NAMED])} and {len(some) - _NAMED} more"


def closed(report: Measurements) -> np.ndarray:
    """The rows in branches that start closed."""
    inside = np.array([row.residual for row in report.rows], bool)
    return inside & (np.asarray(report.branch_share, float) < CLOSED)


def _closed_branches(report: Measurements) -> Iterator[str]:
    shares = np.asarray(report.branch_share, float)
    found: dict[tuple[int | None, int], int] = {}
    inside = np.flatnonzero(closed(report)).tolist()
    ending = {report.rows[i].skip for i in inside if ends_branch(report.rows[i])}
    for i in inside:
        row = report.rows[i]
        if ends_branch(row) or row.skip not in ending:
            found.setdefault((row.skip, row.depth), i)
    if not found:
        return
    ends = [report.rows[i].name for i in found.values()]
    largest = max(float(shares[i]) for i in found.values())
    size = "nothing" if largest == 0 else f"at most {largest:.1g} of what they are added to"
    many = f"{len(ends)} branches start closed" if len(ends) > 1 else "One branch starts closed"
    yield f"{many}, which is often intended: they add {size} ({names(ends)}). Gradients inside them are as small."


def _readouts(report: Measurements) -> Iterator[str]:
    scale = gradient_scale(report)
    zero = np.asarray(report.weight_norm, float) == 0
    last = np.array([reads_out(row) and not row.weighs for row in report.rows], bool)
    if scale is not None:
        silent = counted(report) & ~last
        if silent.any() and not scale[silent].any() and scale[zero].any():
            loud = np.flatnonzero(zero & (scale > 0) & last)
            if not len(loud):
                loud = np.flatnonzero(zero & (scale > 0))
            which = names([report.rows[i].name for i in loud])
            verb = "is" if len(loud) == 1 else "are"
            yield (
                f"{which} {verb} zero, so no gradient reaches the layers before until the first step has been taken: "
                "gradients were not judged."
            )
    found = gains(report)
    others = found[np.isfinite(found) & ~last]
    if len(others):
        usual = float(np.exp(np.median(np.log(others))))
        small = [i for i in np.flatnonzero(last & np.isfinite(found)) if found[i] * JUMP < usual]
        if small:
            which = names([report.rows[i].name for i in small])
            verb, it = ("starts", "its output is") if len(small) == 1 else ("start", "their outputs are")
            yield (
                f"{which} {verb} small, as readouts often do: {it} {min(found[small]):.1g} of the input, and so "
                "are the gradients that come back through."
            )


def _doubtful(report: Measurements) -> Iterator[str]:
    dead, surely = np.asarray(report.dead, float), np.asarray(report.surely_dead, float)
    unsure = np.flatnonzero((dead > DEAD) & (surely <= DEAD))
    if len(unsure):
        i = unsure[0]
        yield (
            f"{dead[i]:.0%} of the units of {report.rows[i].name} are flat at all samples of this batch, which is too "
            "small, or too uniform, to say that they are dead: use more samples."
        )


def _uncovered(report: Measurements) -> Iterator[str]:
    if not report.unread:
        return
    reasons: dict[str, list[str]] = {}
    for leaf in report.unread:
        reasons.setdefault(leaf.reason, []).append(leaf.path)
    told = "; ".join(f"{names(paths)} ({reason})" for reason, paths in reasons.items())
    count = len(report.unread)
    yield f"The verdict does not cover {count} {'leaf' if count == 1 else 'leaves'} that could not be read: {told}."
