"""Signals and gradients over depth: of one initialization, or of several on the same axes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinit._diagnose import DiagnoseReport
from jaxinit._plots._style import COLORS, GREY, axes_or_new, name_layers

_MARKERS = "os^DvPX"
_OUTPUTS, _GRADIENTS = "std of layers' outputs", "root mean square of gradients"
_MANY = 40
"""Up to this number of layers each has a marker; with more layers, only evenly spaced ones do."""


def signals(report: DiagnoseReport | Mapping[str, DiagnoseReport] | Sequence[DiagnoseReport], ax: Any = None) -> Any:
    """Draws the scale of signals and of gradients over depth, on a logarithmic axis, with the verdict.

    A report over seeds is drawn as its median, and a band from the smallest to the largest. If there are several
    reports, each has its own colour and marker, and the legend beside the axes says what is wrong with it.

    Args:
      report: what `jaxinit.diagnose` returned; or several reports, as a mapping name → report or a sequence.
      ax: axes to draw on; new ones by default.

    Returns:
      The axes.

    Raises:
      TypeError: something is not a report.
      ValueError: there is no report.

    Example:
      >>> import jax, jaxinit.plot
      >>> def report(w):
      ...     return jaxinit.diagnose([w, w], lambda p, x: (x @ p[0]) @ p[1], jax.numpy.ones((4, 8)))
      >>> ax = jaxinit.plot.signals({"identity": report(jax.numpy.eye(8)), "ones": report(jax.numpy.ones((8, 8)))})
      >>> ax.get_yscale()
      'log'
    """
    named = _named(report)
    ax = axes_or_new(ax)
    known = np.concatenate([_draw(ax, i, name, one, len(named)) for i, (name, one) in enumerate(named.items())])
    ax.set_yscale("log")
    known = known[np.isfinite(known)]
    if known.size and known.max() / known.min() < 100:  # a healthy net should look healthy
        middle = np.sqrt(known.max() * known.min())
        ax.set_ylim(middle / 100, middle * 100)
    rows = [[row.name for row in one.rows] for one in named.values()]
    longest = max(rows, key=len)
    name_layers(ax, longest if all(names == longest for names in rows) else [str(i + 1) for i in range(len(longest))])
    ax.grid(axis="y", color=GREY, alpha=0.25)
    if len(named) == 1:
        ax.legend(frameon=False, fontsize=8, loc="best")
        (only,) = named.values()
        ax.set_title(textwrap.fill(only.verdict.splitlines()[0], 64), fontsize=8, loc="left")
        return ax
    for label, style in ((_OUTPUTS, "-"), (_GRADIENTS, "--")):
        ax.plot([], [], color=GREY, linestyle=style, label=textwrap.fill(label, 24))
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _named(report: Any) -> dict[str, DiagnoseReport]:
    """The reports by name."""
    if isinstance(report, DiagnoseReport):
        return {"": report}
    if isinstance(report, Mapping):
        named = {str(name): one for name, one in report.items()}
    else:
        listed = isinstance(report, Sequence) and not isinstance(report, str)
        named = {str(i + 1): one for i, one in enumerate(report)} if listed else {"": report}
    for name, one in named.items():
        if not isinstance(one, DiagnoseReport):
            which = f" for {name!r}" if name else ""
            raise TypeError(
                "signals draws what jaxinit.diagnose(params, apply_fn, batch) returns, or several reports as "
                f"{{name: report}} or [report, ...], got {type(one).__name__}{which}"
            )
    if not named:
        raise ValueError("signals needs at least one report, got none; jaxinit.diagnose makes them")
    return named


def _draw(ax: Any, index: int, name: str, report: DiagnoseReport, count: int) -> np.ndarray:
    """Draws one of several reports; returns the numbers that were drawn."""
    depth = np.arange(len(report.rows))
    series = [(_OUTPUTS, report.pre_std, "-")]
    if report.gradient_std is not None:
        series.append((_GRADIENTS, report.gradient_std, "--"))
    drawn = [np.zeros(0)]
    for which, (label, values, style) in enumerate(series):
        place = which if count == 1 else index
        seeds = np.asarray(values, float).reshape(-1, len(depth)) if len(depth) else np.zeros((1, 0))
        seeds = np.where(np.isfinite(seeds) & (seeds > 0), seeds, np.nan)
        middle = np.full(len(depth), np.nan)
        some = ~np.isnan(seeds).all(axis=0)
        middle[some] = np.nanmedian(seeds[:, some], axis=0)
        drawn.append(middle)
        color = COLORS[place % len(COLORS)]
        few = len(depth) <= _MANY
        ax.plot(
            depth,
            middle,
            color=color,
            linestyle=style,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4 if few or count > 1 else 0,
            markevery=1 if few else (3 * index % 10, 10),
            linewidth=1.5 if count == 1 else 1.1,
            label=label if count == 1 else None if which else _label(name, report),
        )
        if len(seeds) > 1 and some.any():
            low, high = np.nanmin(seeds[:, some], axis=0), np.nanmax(seeds[:, some], axis=0)
            ax.fill_between(depth[some], low, high, color=color, alpha=0.2, linewidth=0)
    return np.concatenate(drawn)


def _label(name: str, report: DiagnoseReport) -> str:
    """The name of a report, and what is wrong with it."""
    faults = dict.fromkeys(finding.fault for finding in report.findings())
    return textwrap.fill(f"{name}: {', '.join(faults) or ('healthy' if report.rows else 'no layers')}", 24)
