"""The phase diagram of mean-field theory: where deep plain networks are ordered, critical and chaotic."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._numbers import Activation, canonical_activation, critical
from jaxinit._plots._style import COLORS, GREY, axes_or_new
from jaxinit._reading import layers_of, part_of, trace


def phase_diagram(
    activation: Activation,
    params: Any = None,
    apply_fn: Callable[[Any, Any], Any] | None = None,
    batch: Any = None,
    ax: Any = None,
) -> Any:
    """Draws the plane of (σ_w, σ_b) with the critical line of an activation, and a model's layers on it.

    Left of the line, samples become alike and gradients vanish; right of it, samples diverge and gradients explode.

    Args:
      activation: a name or an elementwise function.
      params, apply_fn, batch: a model, each of whose layers is drawn at the variances of its weights and biases.
      ax: axes to draw on; new ones by default.

    Returns:
      The axes.

    Raises:
      ValueError: the activation has no critical line.

    Example:
      >>> import jaxinit.plot
      >>> ax = jaxinit.plot.phase_diagram("tanh")
      >>> ax.get_xlabel()
      'σ_w'
    """
    points = []
    for variance in np.concatenate([[0.0], np.logspace(-4, 0, 9)]):
        try:
            points.append(critical(activation, bias_variance=float(variance)))
        except ValueError:
            continue
    if not points:
        raise ValueError(f"{activation!r} has no critical point for any bias variance up to 1, so no critical line")
    ax = axes_or_new(ax)
    line_w, line_b = np.array([p.sigma_w for p in points]), np.array([p.sigma_b for p in points])
    found = _layers(params, apply_fn, batch) if apply_fn is not None else []
    top_b = max([1.0, *(1.1 * b for _, b in found)])
    right = max([2.5, 1.2 * line_w.max(), *(1.1 * w for w, _ in found)])
    if len(points) == 1:  # ReLU and similar activations: a point
        ax.axvline(line_w[0], color=COLORS[1], linewidth=1, linestyle=":")
        ax.plot(line_w, line_b, "D", color=COLORS[1], label="critical point")
    else:
        ax.plot(line_w, line_b, color=COLORS[1], linewidth=2, label="critical line, χ = 1")
    for x, y, label in ((0.2, 0.9, "ordered"), (0.88, 0.35, "chaotic")):
        ax.text(x, y, label, transform=ax.transAxes, color=GREY, ha="center", fontsize=9)
    if found:
        ax.scatter(*zip(*found, strict=True), s=18, color=COLORS[0], alpha=0.7, linewidth=0, label="layers", zorder=3)
    ax.set(xlabel="σ_w", ylabel="σ_b", xlim=(0, right), ylim=(-0.03 * top_b, top_b))
    ax.legend(frameon=False, fontsize=8, loc="center left")
    name = canonical_activation(activation)
    ax.set_title(f"Phases of {name if isinstance(name, str) else 'the activation'}", fontsize=9, loc="left")
    return ax


def _layers(params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any) -> list[tuple[float, float]]:
    """(σ_w, σ_b) of each layer that an activation follows; a stack has one point per slice."""
    traced = trace(params, apply_fn, batch)
    points = []
    for layer, weight in zip(layers_of(traced), traced.analysis.weights, strict=True):
        if layer.activation is None:
            continue
        leaves: dict[int, None] = {}
        for use in weight.uses:
            parts = [part for bias in use.biases for part in traced.analysis.of(bias.value).parts]
            leaves |= dict.fromkeys(leaf for part in parts for leaf in part.origins)
        biases = [np.asarray(traced.leaves[leaf], float) for leaf in leaves]
        values = np.asarray(part_of(jnp.asarray(traced.leaves[weight.leaf]), weight), float)
        for i in range(layer.stacked):
            own = values[i] if layer.stacked > 1 and len(values) == layer.stacked else values
            of_bias = [b[i] if layer.stacked > 1 and len(b) == layer.stacked else b for b in biases]
            size_b = float(np.sqrt(np.mean(of_bias[0] ** 2))) if of_bias else 0.0
            points.append((float(np.sqrt(layer.fan_in * np.mean(own**2))), size_b))
    return points
