"""The models that the device is measured on: small ones for checks, and ones large enough to occupy it for times."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from lsuv import Mlp, Transformer


class Cnn(nn.Module):
    """Convolutions of stride two, and a readout."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for features in self.features:
            x = nn.relu(nn.Conv(features, (3, 3), 2)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Model(NamedTuple):
    """A module as a function of (params, batch), its batch, and Flax's own initialization."""

    apply: Any
    batch: Any
    init: Any
    """A function of a key."""

    def params(self) -> Any:
        return jax.jit(self.init)(jax.random.key(0))


def _model(module: nn.Module, batch: Any) -> Model:
    return Model(functools.partial(_applied, module), batch, lambda key: module.init(key, batch))


def _applied(module: nn.Module, params: Any, batch: Any) -> Any:
    return module.apply(params, batch)


def small() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Name → a function that makes the module and its batch."""
    return {
        "MLP 4 × 64": lambda: (Mlp(4, 64), _normal(256, 64)),
        "CNN of 3 layers": lambda: (Cnn((16, 32, 32)), _normal(64, 16, 16, 3)),
        "transformer of 12 blocks, width 64": lambda: (Transformer(True, 64), _tokens(16, 16)),
    }


def large(rehearse: bool) -> dict[str, Callable[[], Model]]:
    """Name → a function that makes the model; rehearsals use small ones."""
    tokens = functools.partial(_tokens, *((2, 8) if rehearse else (16, 512)))
    width = 32 if rehearse else 768
    depth, units, samples = (3, 32, 64) if rehearse else (8, 2048, 8192)
    features = (8, 16) if rehearse else (64, 128, 256, 256)
    images = (4, 16, 16, 3) if rehearse else (256, 128, 128, 3)
    return {
        "MLP": lambda: _model(Mlp(depth, units), _normal(samples, units)),
        "CNN": lambda: _model(Cnn(features), _normal(*images)),
        "transformer, scanned": lambda: _model(Transformer(True, width), tokens()),
        "transformer, unrolled": lambda: _model(Transformer(False, width), tokens()),
    }


def _tokens(*shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), shape, 0, 1000)


def _normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


SIZES = {
    "transformer, scanned": "12 blocks of width 768, 16 × 512 tokens",
    "MLP": "8 layers of 2048, batch 8192",
    "CNN": "convolutions of 64, 128, 256 and 256 channels, 256 images of 128²",
    "transformer, unrolled": "12 blocks of width 768, 16 × 512 tokens",
}
"""Descriptions of the large models, except in rehearsals."""


def loss_fn(output: Any, batch: Any) -> Any:
    """An arbitrary loss: only its gradient matters."""
    return jnp.mean(output**2)
