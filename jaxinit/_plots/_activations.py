"""The distribution of activations in each layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._evaluate import WeightUse, measure
from jaxinit._plots._style import COLORS, axes_or_new, name_layers
from jaxinit._reading import layers_of, slice_indices, trace
from jaxinit._typing import Array

_BINS = 81


def activations(
    params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any, ax: Any = None, *, limit: float = 3.0
) -> Any:
    """Draws histograms of the activations of each layer, one above the other, the first layer on top.

    Args:
      params, apply_fn, batch: as for `jaxinit.diagnose`.
      ax: axes to draw on; new ones by default.
      limit: the histograms go from −limit to limit; values beyond are counted at the ends.

    Returns:
      The axes.

    Example:
      >>> import jax, jaxinit.plot
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> ax = jaxinit.plot.activations([jax.numpy.eye(8)], lambda p, x: jax.numpy.tanh(x @ p[0]), x)
      >>> [float(x) for x in ax.get_xlim()]
      [-3.0, 3.0]
    """
    ax = axes_or_new(ax)
    traced = trace(params, apply_fn, batch)
    layers = dict(zip(traced.analysis.weights, layers_of(traced), strict=True))
    edges = np.linspace(-limit, limit, _BINS + 1, dtype=np.float32)

    def count(used: WeightUse, counts: Array, output: Array, _: Array) -> tuple[Array, Array]:
        activation = layers[used.weight].activation
        post = jnp.real(output if activation is None else activation(output)).astype(jnp.float32)
        more, _ = jnp.histogram(jnp.clip(post, -limit, limit), edges)
        return counts + more / post.size, output

    empty = jnp.zeros(_BINS, jnp.float32)
    run = jax.jit(lambda values: measure(traced.analysis, values, empty, count)[1])
    counts = run([jnp.asarray(x) for x in [*traced.leaves, *jax.tree.leaves(batch)]])
    rows = np.concatenate([np.asarray(counts[u]).reshape(-1, _BINS) for u in layers])
    names = [
        layer.name + "".join(f"[{i}]" for i in at) for weight, layer in layers.items() for at in slice_indices(weight)
    ]
    centres = np.linspace(-limit, limit, _BINS)
    # Half the height per layer if there are many: neighbours overlap a little, as ridgelines do.
    heights = 1.8 * rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-12)
    for i, height in enumerate(heights):
        ax.fill_between(centres, -i, -i + height, color=COLORS[0], alpha=0.55, linewidth=0, zorder=i)
        ax.plot(centres, -i + height, color=COLORS[0], linewidth=0.8, zorder=i)
    _name_rows(ax, names)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-len(rows) + 0.5, 2)
    ax.set_xlabel("activation")
    ax.set_title("Activations, layer by layer", fontsize=9, loc="left")
    return ax


def _name_rows(ax: Any, names: list[str]) -> None:
    name_layers(ax, names, axis="y")
    ax.set_yticks([-tick for tick in ax.get_yticks()], [label.get_text() for label in ax.get_yticklabels()])
