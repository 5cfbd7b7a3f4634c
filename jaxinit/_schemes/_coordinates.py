"""The coordinate check: whether the size of pre-activations is independent of width, initially and after some steps."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._lsuv import deviations
from jaxinit._reading import layers_of, trace
from jaxinit._tabular import Tabular, add_path_column
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class CoordinateReport(Tabular):
    """What a coordinate check found.

    Attributes:
      widths: the widths tried.
      layers: names of the layers.
      stds: std of the pre-activations, of shape (widths, steps + 1, layers); the first step is before training.
      slopes: of log std over log width after the last step, for each layer: 0 is constant, 1/2 grows as the root.
    """

    widths: tuple[int, ...]
    layers: tuple[str, ...]
    stds: np.ndarray
    slopes: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "widths": list(self.widths),
            "layers": list(self.layers),
            "stds": self.stds.tolist(),
            "slopes": self.slopes.tolist(),
        }

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"std of pre-activations after {self.stds.shape[1] - 1} steps")
        add_path_column(table, "layer")
        for width in self.widths:
            table.add_column(f"width {width}", justify="right")
        table.add_column("slope", justify="right")
        for i, name in enumerate(self.layers):
            table.add_row(name, *(f"{std:.3g}" for std in self.stds[:, -1, i]), f"{self.slopes[i]:+.2f}")
        yield table


def coordinate_check(
    build: Callable[[int, Array], tuple[Any, Callable[[Any, Any], Any], Any]],
    widths: Sequence[int],
    loss_fn: Callable[[Any, Any], Array],
    batch: Any,
    *,
    steps: int = 4,
    seeds: int = 4,
    key: Array | None = None,
) -> CoordinateReport:
    """Trains models of several widths for a few steps, and measures each layer's pre-activations.

    In the maximal update parametrization their size does not depend on the width. In the standard one it grows, or
    the learning rate that suits one width makes another diverge.

    Args:
      build: function of (width, key) that returns (params, apply_fn, optimizer), the last an Optax transformation.
      widths: widths to try, at least two.
      loss_fn: function of (the model's output, batch) that returns a number.
      batch: the batch, used in every step.
      steps: steps of training.
      seeds: over how many initializations the variances are averaged.
      key: a JAX key; `jax.random.key(0)` by default.

    Returns:
      A `CoordinateReport`: the std of each layer, and its slope over width.

    Raises:
      ValueError: fewer than two widths, or models with different layers.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxinit
      >>> def apply_fn(p, x):
      ...     return jnp.tanh(x @ p["hidden"]) @ p["out"]
      >>> def build(width, key):
      ...     params = jaxinit.initialize(key, {"hidden": jax.ShapeDtypeStruct((4, width), jnp.float32),
      ...         "out": jax.ShapeDtypeStruct((width, 1), jnp.float32)}, apply_fn, x)
      ...     return params, apply_fn, optax.sgd(0.1)
      >>> x = jnp.ones((8, 4))
      >>> report = jaxinit.schemes.coordinate_check(
      ...     build, (16, 64), lambda out, x: jnp.mean((out - 1) ** 2), x, steps=1
      ... )
      >>> report.layers, report.stds.shape
      (('hidden', 'out'), (2, 2, 2))

    Reference: Yang et al., 2022 (arXiv:2203.03466), appendix D.1.
    """
    if len(widths) < 2:
        raise ValueError(f"coordinate_check compares widths, so it needs two or more, got {list(widths)}")
    keys = jax.random.split(jax.random.key(0) if key is None else key, seeds)
    names: tuple[str, ...] | None = None
    stds = []
    for width in widths:
        found, variances = _measured(width, build, loss_fn, batch, steps, keys)
        if names is not None and found != names:
            raise ValueError(f"the models must have the same layers, got {names} and, at width {width}, {found}")
        names = found
        stds.append(np.sqrt(np.mean(variances, axis=0)))
    assert names is not None
    array = np.stack(stds)
    logs = np.log(np.maximum(array[:, -1], 1e-30))
    slopes = np.polyfit(np.log(np.asarray(widths, float)), logs, 1)[0]
    return CoordinateReport(tuple(widths), names, array, slopes)


def _measured(
    width: int, build: Any, loss_fn: Any, batch: Any, steps: int, keys: Array
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the layers, and variances of shape (seeds, steps + 1, layers)."""
    shapes, apply_fn, optimizer = build(width, keys[0])
    traced = trace(shapes, apply_fn, batch)
    names = tuple(layer.name for layer in layers_of(traced))
    data = jax.tree.leaves(batch)

    def variances(params: Any) -> Array:
        found = deviations(traced.analysis, [*jax.tree.leaves(params), *data])
        return jnp.stack([jnp.mean(jnp.square(found[weight])) for weight in traced.analysis.weights])

    def one_seed(params: Any) -> Array:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            before = variances(params)
            gradients = jax.grad(lambda p: loss_fn(apply_fn(p, batch), batch))(params)
            updates, state = optimizer.update(gradients, state, params)
            return (jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), state), before

        (params, _), rows = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
        return jnp.concatenate([rows, variances(params)[None]])

    starts = [build(width, key)[0] for key in keys]
    run = jax.jit(jax.vmap(one_seed))
    return names, np.asarray(run(jax.tree.map(lambda *xs: jnp.stack(xs), *starts)))
