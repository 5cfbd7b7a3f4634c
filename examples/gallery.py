"""Every picture that jaxinit draws, on small networks: healthy ones beside faulty ones.

python examples/gallery.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxinit
import jaxinit.plot

DEPTH, WIDTH = 100, 64
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (256, WIDTH))
STACK = {
    "kernel": jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), jnp.float32),
    "bias": jax.ShapeDtypeStruct((DEPTH, WIDTH), jnp.float32),
}


def network(activation: Callable[[jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    """A plain network of DEPTH layers."""

    def apply_fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, p: (activation(h @ p["kernel"] + p["bias"]), None), x, params)[0]

    return apply_fn


def start(activation: Callable[[jax.Array], jax.Array], kernel: jaxinit.Initializer, key: jax.Array = KEY) -> Any:
    """Parameters of that network, with kernels from one initializer."""
    return jaxinit.initialize(key, STACK, network(activation), X, overrides={"kernel": kernel})


def signals(figure: Any) -> None:
    axes = figure.subplots(1, 3)
    he = start(jnp.tanh, jaxinit.he_normal())
    orthogonal = jaxinit.initialize(KEY, STACK, network(jnp.tanh), X, "orthogonal_critical")
    keys = jax.random.split(KEY, 16)
    small = jax.vmap(lambda key: start(jax.nn.relu, jaxinit.lecun_normal(), key))(keys)
    reports = {
        "He, tanh": jaxinit.diagnose(he, network(jnp.tanh), X),
        "orthogonal at the edge of chaos, tanh": jaxinit.diagnose(orthogonal, network(jnp.tanh), X),
        "LeCun, ReLU, 16 seeds": jax.vmap(lambda p: jaxinit.diagnose(p, network(jax.nn.relu), X))(small),
    }
    for ax, (name, report) in zip(axes, reports.items(), strict=True):
        jaxinit.plot.signals(report, ax)
        ax.set_xlabel(f"layer; {name}")


def activations(figure: Any) -> None:
    axes = figure.subplots(1, 3)
    kernels = {
        "normal(0.05)": jaxinit.normal(0.05),
        "lecun_normal": jaxinit.lecun_normal(),
        "normal(0.5)": jaxinit.normal(0.5),
    }
    for ax, (name, kernel) in zip(axes, kernels.items(), strict=True):
        ten = jax.tree.map(lambda x: x[:10], start(jnp.tanh, kernel))
        jaxinit.plot.activations(ten, network(jnp.tanh), X, ax, limit=1.2)
        ax.set_title(f"tanh, {name}", fontsize=9, loc="left")


def spectra(figure: Any) -> None:
    axes = figure.subplots(1, 3)
    jaxinit.plot.singular_values(jaxinit.lecun_normal()(KEY, (512, 512)), axes[0])
    axes[0].set_title("lecun_normal, 512 × 512", fontsize=9, loc="left")
    jaxinit.plot.singular_values(jaxinit.lecun_normal()(KEY, (512, 128)), axes[1])
    axes[1].set_title("lecun_normal, 512 × 128", fontsize=9, loc="left")
    ten = jax.tree.map(lambda x: x[:10], jaxinit.initialize(KEY, STACK, network(jnp.tanh), X, "orthogonal_critical"))
    jaxinit.plot.jacobian(ten, network(jnp.tanh), 0.1 * X, axes[2])


def haar(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    jaxinit.plot.eigenvalues(jaxinit.haar.unitary(KEY, (100, 100)), left)
    left.set_title("Haar unitary: eigenvalues repel each other", fontsize=9, loc="left")
    independent = jnp.exp(2j * jnp.pi * jax.random.uniform(KEY, (100,)))
    jaxinit.plot.eigenvalues(jnp.diag(independent), right)
    right.set_title("independent angles do not", fontsize=9, loc="left")


def phases(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    params = jaxinit.initialize(KEY, STACK, network(jnp.tanh), X, jaxinit.schemes.auto())
    jaxinit.plot.phase_diagram("tanh", params, network(jnp.tanh), X, left)
    jaxinit.plot.phase_diagram("relu", start(jax.nn.relu, jaxinit.he_normal()), network(jax.nn.relu), X, right)


PICTURES = {
    "signals": (signals, (15, 4.2)),
    "activations": (activations, (12, 4.2)),
    "spectra": (spectra, (14, 4)),
    "haar": (haar, (9, 4.4)),
    "phases": (phases, (11, 4.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures", help="folder for the pictures")
    parser.add_argument("--dark", action="store_true", help="on a dark background")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with plt.style.context("dark_background" if arguments.dark else "default"):
        for name, (draw, size) in PICTURES.items():
            figure = plt.figure(figsize=size, layout="constrained")
            draw(figure)
            path = arguments.out / f"{name}.png"
            figure.savefig(path, dpi=110)
            plt.close(figure)
            print(path)


if __name__ == "__main__":
    main()
