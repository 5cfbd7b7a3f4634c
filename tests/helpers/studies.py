"""Small studies, and results built from given numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxinit
from jaxinit._study._records import Plan, Records
from jaxinit._study._result import result_of

N, FEATURES, WIDTH = 70, 4, 6
KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (N, FEATURES))
DATA = (X, jnp.sin(X[:, :1]))
PARAMS = {
    "a": jnp.zeros((FEATURES, WIDTH)),
    "b": jnp.full((WIDTH,), 7.0),
    "c": jnp.zeros((WIDTH, 1)),
    "order": jnp.arange(FEATURES)[::-1],
}


def apply_fn(params, batch):
    return jax.nn.relu(batch[0][:, params["order"]] @ params["a"] + params["b"][None]) @ params["c"]


def loss_fn(params, batch):
    return jnp.mean((apply_fn(params, batch) - batch[1]) ** 2)


def fresh(key):
    keys = jax.random.split(key)
    a, c = (jax.random.normal(k, PARAMS[n].shape) / 2 for k, n in zip(keys, "ac", strict=True))
    return PARAMS | {"a": a, "b": jnp.zeros(WIDTH), "c": c}


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def metrics_fn(params, data):
    return {"a": params["a"], "error": loss_fn(params, data)}


def study(starts, **options):
    """A small study on one device."""
    defaults = {
        "optimizer": momentum,
        "learning_rates": [0.1, 0.01],
        "steps": 9,
        "batch_size": 32,
        "key": KEY,
        "devices": jax.devices()[:1],
        "progress": False,
    }
    return jaxinit.study(starts, PARAMS, loss_fn, DATA, **(defaults | options))


@functools.cache
def usual():
    """The study that several tests share."""
    return study({"fresh": fresh, "again": fresh}, seeds=7, metrics_fn=metrics_fn, metric="loss")


def planted(final, *, maximize=True, losses=None, **options):
    """A result built from numbers: final metrics of shape starts × rates × seeds."""
    final = np.asarray(final, np.float32)
    starts, rates, seeds = final.shape
    records = Records(
        Plan(tuple(10.0**i for i in range(rates)), 4, {}, {}), [f"s{i}" for i in range(starts)], range(seeds)
    )
    for i, start in enumerate(records.starts):
        curve = np.ones((seeds, rates, 4), np.float32) if losses is None else losses[i].swapaxes(0, 1)
        records.enter(start, range(seeds), curve, {}, {"score": final[i].T})
    return result_of(records, metric="score", maximize=maximize, diverged_above=None, settings={}, **options)
