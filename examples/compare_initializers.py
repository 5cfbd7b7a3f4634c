"""How much the start matters: deep plain networks on handwritten digits, from eight starts.

Trains a 50-layer network without normalization or skip connections, ReLU and tanh, from each start with 16 seeds. All
seeds of a start train side by side (vmap) in one compiled loop (scan). Prints a table and writes a picture.

    python examples/compare_initializers.py
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy import stats
from sklearn.datasets import load_digits

import jaxinit

DEPTH, WIDTH, BATCH, STEPS, SEEDS = 50, 32, 64, 140, 16
LEARNING_RATE = {"relu": 0.01, "tanh": 0.01}
CLASSES = 10


def starts(activation: str) -> dict[str, tuple[jaxinit.Initializer, bool]]:
    """The initializers to compare, and whether LSUV follows; the first two are the warnings of the textbooks."""
    initializers = {
        "small Gaussian": jaxinit.normal(0.01),
        "large Gaussian": jaxinit.normal(5.0),
        "LeCun": jaxinit.lecun_normal(),
        "Glorot": jaxinit.glorot_normal(),
        "He": jaxinit.he_normal(),
        "random walk": jaxinit.random_walk(activation, depth=DEPTH),
        "orthogonal": jaxinit.orthogonal(jaxinit.critical(activation).sigma_w),
    }
    return {name: (init, False) for name, init in initializers.items()} | {"LSUV": (jaxinit.normal(1.0), True)}


class Layer(nn.Module):
    """One layer of the stack; its second output is the scale of its activations."""

    activation: Callable[[jax.Array], jax.Array]
    kernel_init: jaxinit.Initializer

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        h = self.activation(nn.Dense(WIDTH, kernel_init=self.kernel_init)(h))
        return h, jnp.sqrt(jnp.mean(h**2))


class PlainNetwork(nn.Module):
    """DEPTH hidden layers and a readout that always starts from LeCun's weights."""

    activation: Callable[[jax.Array], jax.Array]
    kernel_init: jaxinit.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
        x = jnp.pad(x, ((0, 0), (0, max(0, WIDTH - x.shape[-1]))))[:, : max(WIDTH, x.shape[-1])]
        h = nn.Dense(WIDTH, use_bias=False, kernel_init=jaxinit.lecun_normal(), name="read_in")(x)
        h, scales = stack(self.activation, self.kernel_init)(h, None)
        return nn.Dense(CLASSES, kernel_init=jaxinit.lecun_normal(), name="read_out")(h), scales


class Data(NamedTuple):
    train_x: jax.Array
    train_y: jax.Array
    test_x: jax.Array
    test_y: jax.Array


class Outcome(NamedTuple):
    """One entry a seed, and a second axis over layers or steps."""

    accuracy: jax.Array
    scales: jax.Array
    losses: jax.Array


def load() -> Data:
    """The digits of scikit-learn, standardized, four fifths of them for training."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order]
    split = 4 * len(images) // 5
    mean, std = images[:split].mean(axis=0), images[:split].std(axis=0) + 1e-3
    images = (images - mean) / np.maximum(std, 1.0)
    return Data(*(jnp.asarray(part) for part in (images[:split], labels[:split], images[split:], labels[split:])))


@functools.partial(jax.jit, static_argnames=("activation",))
def train(activation: str, params: Any, keys: jax.Array, data: Data) -> Outcome:
    """Train every seed for STEPS steps; the program depends on the activation, not on the start."""
    network = PlainNetwork(getattr(jax.nn, activation), jaxinit.zeros)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LEARNING_RATE[activation], momentum=0.9))

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = network.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def one_seed(params: Any, key: jax.Array) -> Outcome:
        _, scales = network.apply(params, data.train_x)

        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(data.train_x))
            loss, gradients = jax.value_and_grad(loss_fn)(params, data.train_x[rows], data.train_y[rows])
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, STEPS))
        logits, _ = network.apply(params, data.test_x)
        return Outcome((logits.argmax(axis=-1) == data.test_y).mean(), scales, losses)

    return jax.vmap(one_seed)(params, keys)


def run_start(activation: str, init: jaxinit.Initializer, with_lsuv: bool, data: Data) -> Outcome:
    """All seeds of one start."""
    network = PlainNetwork(getattr(jax.nn, activation), init)

    def start(key: jax.Array) -> Any:
        params = network.init(key, data.train_x[:1])
        return jaxinit.lsuv(params, network.apply, data.train_x[:256]) if with_lsuv else params

    params = jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), SEEDS))
    return jax.block_until_ready(train(activation, params, jax.random.split(jax.random.key(1), SEEDS), data))


def diverged(outcome: Outcome) -> np.ndarray:
    """Seeds whose loss became non-finite, or ended at more than twice that of guessing."""
    last = np.asarray(outcome.losses[:, -20:]).mean(axis=1)
    return ~(last < 2 * np.log(CLASSES))


def interval(values: np.ndarray) -> float:
    """Half the width of the 95% interval of the mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def scale_of_last_layer(outcome: Outcome) -> str:
    """The median over seeds; float32 cannot hold what fifty bad layers make."""
    scale = float(np.median(np.asarray(outcome.scales)[:, -1]))
    if not np.isfinite(scale):
        return "overflow"
    return f"{scale:.1e}" if scale > 0 else "underflow"


def report(results: dict[str, dict[str, Outcome]]) -> Table:
    table = Table(
        title=f"{DEPTH} plain layers of {WIDTH} units, {STEPS} steps, {SEEDS} seeds",
        caption="LeCun and Glorot coincide in these layers, which have as many inputs as outputs",
    )
    for column in ("activation", "start", "test accuracy", "diverged", "last layer at the start"):
        table.add_column(column, justify="left" if column in ("activation", "start") else "right")
    for activation, outcomes in results.items():
        for name, outcome in outcomes.items():
            accuracy = np.asarray(outcome.accuracy)
            table.add_row(
                activation,
                name,
                f"{accuracy.mean():.3f} ± {interval(accuracy):.3f}",
                f"{diverged(outcome).mean():.0%}",
                scale_of_last_layer(outcome),
            )
        table.add_section()
    return table


def picture(results: dict[str, dict[str, Outcome]], path: Path) -> None:
    """Scale of the activations over depth, beside the learning curves with their intervals."""
    colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#999999"]
    styles = ["-", "--", "-.", ":", (0, (5, 1)), "-", "-", "--"]
    figure, axes = plt.subplots(len(results), 2, figsize=(11, 3.6 * len(results)), layout="constrained")
    for (left, right), (activation, outcomes) in zip(axes, results.items(), strict=True):
        for (name, outcome), color, style in zip(outcomes.items(), colors, styles, strict=True):
            scales = np.nan_to_num(np.median(np.asarray(outcome.scales), axis=0), nan=np.inf)
            scales = np.clip(scales, 1e-12, 1e12)
            left.semilogy(np.arange(1, DEPTH + 1), scales, color=color, linestyle=style, label=name)
            smooth = np.asarray(outcome.losses).reshape(SEEDS, -1, 10).mean(axis=-1)
            smooth = np.clip(np.nan_to_num(smooth, nan=4.0, posinf=4.0), 0, 4.0)
            mean, half = smooth.mean(axis=0), np.array([interval(column) for column in smooth.T])
            steps = 10 * np.arange(smooth.shape[1]) + 5
            right.plot(steps, mean, color=color, linestyle=style, label=name)
            right.fill_between(steps, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        left.set(
            xlabel="layer",
            ylabel="root mean square of activations",
            ylim=(1e-13, 1e13),
            title=f"{activation}: at the start",
        )
        right.set(xlabel="step", ylabel="training loss (capped at 4)", ylim=(0, 4.1), title=f"{activation}: learning")
        right.axhline(np.log(CLASSES), color="0.6", linewidth=0.8)
        right.annotate("guessing", (STEPS, np.log(CLASSES)), ha="right", va="bottom", color="0.4", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument(
        "--out", type=Path, default=here / "pictures" / "compare_initializers.png", help="where to draw"
    )
    arguments = parser.parse_args()
    console, data, began = Console(), load(), time.perf_counter()
    results: dict[str, dict[str, Outcome]] = {"relu": {}, "tanh": {}}
    columns = (TextColumn("{task.description:30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(len(starts(activation)) for activation in results))
        for activation, outcomes in results.items():
            for name, (init, with_lsuv) in starts(activation).items():
                progress.update(task, description=f"{activation} from {name}")
                outcomes[name] = run_start(activation, init, with_lsuv, data)
                progress.advance(task)
    console.print(report(results))
    picture(results, arguments.out)
    seeds = SEEDS * sum(map(len, results.values()))
    console.print(f"{seeds} networks trained in {time.perf_counter() - began:.0f} s; picture: {arguments.out}")


if __name__ == "__main__":
    main()
