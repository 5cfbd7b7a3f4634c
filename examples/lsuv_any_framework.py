"""LSUV on the same network written in Linen, in NNX and in plain JAX, with a table of each.

python examples/lsuv_any_framework.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

import jaxinit
import jaxinit.linen
import jaxinit.nnx

WIDTHS = (64, 64, 64, 10)


class LinenNetwork(nn.Module):
    """Dense layers with batch normalization and dropout between them."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for width in WIDTHS[:-1]:
            x = nn.gelu(nn.BatchNorm(use_running_average=not train)(nn.Dense(width)(x)))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(WIDTHS[-1])(x)


class NnxNetwork(nnx.Module):
    """Dense layers and GELU."""

    def __init__(self, n_in: int, rngs: nnx.Rngs) -> None:
        sizes = (n_in, *WIDTHS)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes, WIDTHS, strict=False)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.gelu(layer(x))
        return self.layers[-1](x)


def plain_network(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """The same as a function of a list of dictionaries."""
    for layer in params[:-1]:
        x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def main() -> None:
    """Prints the three tables."""
    console = Console(width=120)
    x = jax.random.normal(jax.random.key(0), (256, 32))

    console.rule("Linen")
    model = LinenNetwork()
    rngs = {"dropout": jax.random.key(2)}
    variables = model.init(jax.random.key(1), x, train=False)
    variables, report = jaxinit.linen.lsuv(
        model, variables, x, rngs=rngs, mutable=["batch_stats"], kwargs={"train": True}, return_report=True
    )
    console.print(report)

    console.rule("NNX")
    network = NnxNetwork(32, nnx.Rngs(1))
    console.print(jaxinit.nnx.lsuv(network, x, return_report=True))

    console.rule("plain JAX")
    sizes, init = (32, *WIDTHS), jaxinit.lecun_normal()
    keys = jax.random.split(jax.random.key(1), len(WIDTHS))
    params = [
        {"kernel": init(key, (a, b)), "bias": jnp.zeros(b)} for key, a, b in zip(keys, sizes, WIDTHS, strict=False)
    ]
    params, report = jaxinit.lsuv(params, plain_network, x, return_report=True)
    console.print(report)


if __name__ == "__main__":
    main()
