"""How much initialization matters: deep plain networks on handwritten digits, from eight starts.

Trains a 50-layer network without normalization or skip connections, with ReLU and with tanh, from each start with 16
seeds. Prints a table for each activation and draws a picture.

    python examples/compare_initializers.py [picture.png]
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxinit
import jaxinit.plot

DEPTH, WIDTH, CLASSES = 50, 32, 10
SHAPES = {"in": (64, WIDTH), "hidden": (DEPTH, WIDTH, WIDTH), "biases": (DEPTH, WIDTH), "out": (WIDTH, CLASSES)}
STARTS = {
    "small Gaussian": jaxinit.normal(0.01),
    "large Gaussian": jaxinit.normal(5.0),
    "LeCun": jaxinit.lecun_normal(),
    "Glorot": jaxinit.glorot_normal(),
    "He": jaxinit.he_normal(),
    "random walk": "random_walk",
    "orthogonal": "orthogonal_critical",
    "LSUV": jaxinit.lsuv,
}


def digits():
    """Images and labels for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    images = ((images - images.mean(axis=0)) / np.maximum(images.std(axis=0), 1)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return [(images[rows], labels[rows]) for rows in np.split(order, [4 * len(order) // 5])]


def compare(activation):
    """The study of all starts for one activation."""

    def network(params, images):
        hidden = params["hidden"], params["biases"]
        h, _ = jax.lax.scan(lambda h, layer: (activation(h @ layer[0] + layer[1]), None), images @ params["in"], hidden)
        return h @ params["out"]

    def loss_fn(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, batch[0]), batch[1]).mean()

    def metrics_fn(params, batch):
        report = jaxinit.diagnose(params, network, batch[0], lanczos_steps=0)
        accuracy = (network(params, batch[0]).argmax(axis=1) == batch[1]).mean()
        return {"accuracy": accuracy, "scale of activations": report.post_std[1:-1]}  # of the hidden layers

    train, test = digits()
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    options = {"learning_rates": [0.01], "steps": 140, "seeds": 16, "diverged_above": 2 * np.log(CLASSES)}
    options |= {"test_data": test, "metrics_fn": metrics_fn, "metric": "accuracy", "maximize": True}
    return jaxinit.study(STARTS, shapes, loss_fn, train, optimizer=sgd, **options)


def sgd(rate):
    """Gradient descent with momentum, gradients clipped."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9))


def main(picture=Path(__file__).parent / "pictures" / "compare_initializers.png"):
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for row, activation in zip(axes, (jax.nn.relu, jnp.tanh), strict=True):
        result = compare(activation)
        print(f"{DEPTH} plain layers of {WIDTH} units, {activation.__name__}", result, sep="\n")
        jaxinit.plot.over_depth(result, "scale of activations", row[0], legend=False)
        jaxinit.plot.learning_curves(result, row[1], legend=activation is jnp.tanh)
        row[0].set(title=f"{activation.__name__}: at the start", ylim=(1e-13, 1e13))
        row[1].set_title(f"{activation.__name__}: learning")
        row[1].axhline(np.log(CLASSES), color="gray", linewidth=0.8)
        row[1].annotate("guessing", (140, np.log(CLASSES)), ha="right", va="top", color="gray", fontsize="small")
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)
    print("picture:", picture)


if __name__ == "__main__":
    main(*sys.argv[1:2])
