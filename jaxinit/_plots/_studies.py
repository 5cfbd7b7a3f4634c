"""Plots of studies: learning curves, metrics over depth, and the outcome of every seed."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinit._plots._style import COLORS, GREY, STYLES, axes_or_new
from jaxinit._study import LOSS, interval

if TYPE_CHECKING:
    from jaxinit._study import StudyResult

_POINTS = 50
_EXTREME = 1e12


def learning_curves(result: "StudyResult", ax: Any = None, *, legend: bool = True) -> Any:
    """Draws the training loss over steps: mean over seeds and bootstrap interval, at each start's learning rate.

    Steps are averaged to fifty points. The curves are cut at one and a half times the lowest initial loss of any
    start: losses that are larger, or not finite, are drawn at that height.

    Args:
      result: of `jaxinit.study`.
      ax: Matplotlib axes; by default new ones.
      legend: whether to name the starts beside the axes.

    Returns:
      The axes.

    Example:
      >>> import jax.numpy as jnp, matplotlib, optax
      >>> import jaxinit, jaxinit.plot
      >>> matplotlib.use("Agg")
      >>> result = jaxinit.study(
      ...     ["flax_default", "torch_default"], {"w": jnp.zeros((4, 1))}, lambda p, x: jnp.mean((x @ p["w"] - 1) ** 2),
      ...     jnp.ones((32, 4)), optimizer=optax.sgd, learning_rates=[0.01], steps=10, seeds=3, batch_size=8,
      ...     progress=False,
      ... )
      >>> jaxinit.plot.learning_curves(result).get_xlabel()
      'step'
    """
    ax = axes_or_new(ax)
    curves = result.curves().astype(np.float64)
    steps = curves.shape[-1]
    edges = np.unique(np.linspace(0, steps, min(steps, _POINTS) + 1).astype(int))
    centres, widths = (edges[:-1] + edges[1:] - 1) / 2, np.diff(edges)
    curves = np.where(np.isfinite(curves), curves, np.inf)
    smooth = np.add.reduceat(curves, edges[:-1], axis=-1) / widths
    top = 1.5 * abs(min(_EXTREME, float(np.median(smooth[..., 0], axis=1).min()))) or 1.0
    smooth = np.minimum(smooth, top)
    for i, (start, values) in enumerate(zip(result.starts, smooth, strict=True)):
        line(ax, i, centres, values.mean(axis=0), interval(values, resamples=999), label=start)
    low, high = float(smooth.min()), float(smooth.max())
    margin = 0.03 * (high - min(low, 0.0))
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, steps))
    ax.set_ylim(0 if low >= 0 else low - margin, high + (margin or 1.0))
    return finished(ax, legend)


def over_depth(result: "StudyResult", metric: str, ax: Any = None, *, legend: bool = True) -> Any:
    """Draws a metric with one number per layer, before training: the median over seeds, on a logarithmic scale.

    Values that overflow or are not finite are drawn at 1e12, and values that vanish at 1e-12.

    Args:
      result: of `jaxinit.study`.
      metric: name of an entry of `result.initial` of shape starts × seeds × layers.
      ax: Matplotlib axes; by default new ones.
      legend: whether to name the starts beside the axes.

    Returns:
      The axes.

    Raises:
      ValueError: there is no such metric.
    """
    fitting = [name for name, values in result.initial.items() if values.ndim == 3]
    if metric not in fitting:
        raise ValueError(
            f"metric must be one that metrics_fn returns as an array over layers, {fitting}, got {metric!r}"
        )
    ax = axes_or_new(ax)
    values = np.abs(result.initial[metric].astype(np.float64))
    values = np.median(np.clip(np.nan_to_num(values, nan=np.inf, posinf=np.inf), 1 / _EXTREME, _EXTREME), axis=1)
    for i, (start, row) in enumerate(zip(result.starts, values, strict=True)):
        line(ax, i, np.arange(1, len(row) + 1), row, label=start)
    ax.set(xlabel="layer", ylabel=metric, yscale="log", xlim=(1, max(2, values.shape[-1])))
    return finished(ax, legend)


def outcomes(result: "StudyResult", ax: Any = None) -> Any:
    """Draws the metric of every seed as a dot, one row per start, with the mean and its bootstrap interval.

    Args:
      result: of `jaxinit.study`.
      ax: Matplotlib axes; by default new ones.

    Returns:
      The axes.
    """
    ax = axes_or_new(ax)
    height = len(result.starts)
    for i, (row, values) in enumerate(zip(result.summary(), result.values(), strict=True)):
        y, color = height - 1 - i, COLORS[i % len(COLORS)]
        finite = np.sort(values[np.isfinite(values)])
        spread = 0.3 * np.resize([0, 1, -1, 0.5, -0.5], len(finite))
        ax.scatter(finite, y + spread, s=12, color=color, alpha=0.5, linewidths=0)
        ax.plot([row.low, row.high], [y, y], color=color, linewidth=2)
        ax.plot([row.mean], [y], "o", color=color, markersize=7)
        if len(finite) < len(values):
            lost = f"{len(values) - len(finite)} not finite"
            ax.annotate(lost, (1.01, y), xycoords=("axes fraction", "data"), color=GREY, va="center", fontsize="small")
    name = "training loss, mean of the last tenth of the steps" if result.metric == LOSS else result.metric
    ax.set(xlabel=name, yticks=range(height), yticklabels=result.starts[::-1], ylim=(-0.6, height - 0.4))
    return finished(ax, legend=False)


def line(ax: Any, index: int, x: Any, y: Any, band: tuple[Any, Any] | None = None, **options: Any) -> None:
    """Draws the line for one entry of a list, given its index, with a band around it if it has one."""
    color, style = COLORS[index % len(COLORS)], STYLES[(index + index // len(COLORS)) % len(STYLES)]
    ax.plot(x, y, color=color, linestyle=style, linewidth=1.6, **options)
    if band is not None and np.isfinite(band).all():
        ax.fill_between(x, *band, color=color, alpha=0.15, linewidth=0)


def finished(ax: Any, legend: bool) -> Any:
    """The axes with a light grid, and a legend beside them that covers nothing."""
    ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        entries = len(ax.get_legend_handles_labels()[0])
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=math.ceil(entries / 12))
    return ax
