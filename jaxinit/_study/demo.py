"""A small study that needs only this package: a deep plain network on two spirals, from four starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._initializers import normal
from jaxinit._schemes import orthogonal_critical, torch_default
from jaxinit._study._result import StudyResult
from jaxinit._study._study import study
from jaxinit._typing import Array

DEPTH, WIDTH, SAMPLES = 20, 32, 512


def spirals() -> tuple[np.ndarray, np.ndarray]:
    """Points on two noisy spirals, and which of the two each is on."""
    random = np.random.default_rng(0)
    which = np.arange(SAMPLES) % 2
    angle = 1.5 * np.pi * np.sqrt(random.uniform(0.02, 1, SAMPLES))
    turned = angle + np.pi * which
    points = np.stack([angle * np.cos(turned), angle * np.sin(turned)], axis=1) / 2
    return (points + 0.05 * random.normal(size=points.shape)).astype(np.float32), which.astype(np.float32)


def params() -> dict[str, Any]:
    """The shapes of the network's parameters."""
    shapes = {"in": (2, WIDTH), "hidden": (DEPTH, WIDTH, WIDTH), "biases": (DEPTH, WIDTH), "out": (WIDTH, 2)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def logits(params: Any, batch: tuple[Array, Array]) -> Array:
    """A plain tanh network."""

    def layer(h: Array, weights: tuple[Array, Array]) -> tuple[Array, None]:
        return jnp.tanh(h @ weights[0] + weights[1][None]), None

    h, _ = jax.lax.scan(layer, batch[0] @ params["in"], (params["hidden"], params["biases"]))
    return h @ params["out"]


def loss_fn(params: Any, batch: tuple[Array, Array]) -> Array:
    """The mean cross-entropy."""
    scores, chosen = jax.nn.log_softmax(logits(params, batch)), batch[1].astype(jnp.int32)
    return -jnp.mean(jnp.take_along_axis(scores, chosen[:, None], axis=1))


def accuracy(params: Any, batch: tuple[Array, Array]) -> Array:
    """The share of points that are classified correctly."""
    return jnp.mean(logits(params, batch).argmax(axis=1) == batch[1].astype(jnp.int32))


def demo(progress: bool = True) -> StudyResult:
    """Runs the study."""
    from optax import adam  # type: ignore[import-untyped]

    starts = {
        "normal(0.01)": normal(0.01),
        "PyTorch's default": torch_default(),
        "normal(1)": normal(1.0),
        "orthogonal, critical": orthogonal_critical(),
    }
    return study(
        starts,
        params(),
        loss_fn,
        spirals(),
        optimizer=adam,
        learning_rates=[1e-3],
        steps=200,
        seeds=8,
        metrics_fn=accuracy,
        maximize=True,
        progress=progress,
    )
