"""What is measured in a run: the user's metrics as a dictionary, and the one by which starts are compared."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

LOSS, TEST_LOSS = "loss", "test_loss"


def as_metrics(metrics_fn: Callable[[Any, Any], Any] | None, loss_fn: Callable[[Any, Any], Any] | None) -> Any:
    """A function of (params, data) that returns a dictionary.

    Args:
      metrics_fn: the user's function, which returns a scalar, or a dictionary of arrays.
      loss_fn: the loss, to be measured on test data if the user passed no function; None if there are no test data.
    """
    if metrics_fn is None:
        return lambda params, data: {TEST_LOSS: loss_fn(params, data)} if loss_fn else {}

    def measured(params: Any, data: Any) -> Mapping[str, Any]:
        found = metrics_fn(params, data)
        if not isinstance(found, Mapping):
            found = {getattr(metrics_fn, "__name__", "metric"): found}
        arrays = {str(name): _array(str(name), values) for name, values in found.items()}
        if LOSS in arrays:
            raise ValueError("metrics_fn returns 'loss', the name of the training loss; call it something else")
        return arrays

    return measured


def _array(name: str, values: Any) -> jax.Array:
    try:
        return jax.numpy.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metrics_fn must return a number or a dictionary of arrays, but its {name!r} is {values!r:.80}"
        ) from error


def chosen_metric(shapes: Mapping[str, Any], metric: str | None, maximize: bool | None) -> tuple[str, bool]:
    """The name of the metric to compare by, and whether larger is better.

    Raises:
      ValueError: there is no such metric, it is not a single number, or it is ambiguous.
    """
    scalars = [name for name, shape in shapes.items() if shape.shape == ()]
    if metric is None:
        if len(scalars) > 1:
            raise ValueError(f"metrics_fn returns several numbers; choose one to compare by: metric=one of {scalars}")
        metric = scalars[0] if scalars else LOSS
    if metric != LOSS and metric not in scalars:
        raise ValueError(f"metric must be one of {[LOSS, *scalars]}, the numbers that are measured, got {metric!r}")
    if maximize is None:
        if metric not in (LOSS, TEST_LOSS):
            raise ValueError(f"say whether more of {metric!r} is better: maximize=True or maximize=False")
        maximize = False
    return metric, bool(maximize)
