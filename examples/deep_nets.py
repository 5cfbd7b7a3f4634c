"""What whole-model starts are for: networks of a hundred to two thousand layers without normalization, on digits.

Trains plain ReLU and tanh networks of 100 layers, and residual networks of 100 and 1000 blocks, from the starts that
suit them and from those that do not, with three seeds at each learning rate of one grid. All runs of a start are one
compiled program: seeds side by side (vmap), layers and steps in loops (scan). Prints a table and draws a picture.

    python examples/deep_nets.py
"""

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from compare_initializers import CLASSES, Data, load
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import jaxinit
import jaxinit.linen

WIDTH, BATCH, SEEDS, STEPS = 64, 128, 3, 300
RATES = (1e-3, 1e-2, 1e-1)
HE, LECUN = {"*kernel": jaxinit.he_normal()}, {"*kernel": jaxinit.lecun_normal()}


class Layer(nn.Module):
    """One hidden layer of a plain network."""

    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        return self.activation(nn.Dense(WIDTH)(h)), None


class Block(nn.Module):
    """One residual block of two layers, with the scalars of Fixup or with biases."""

    scalars: bool

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        if self.scalars:
            layers = [nn.Dense(WIDTH, use_bias=False), nn.Dense(WIDTH, use_bias=False)]
            return jaxinit.linen.FixupResidual(layers, nn.relu)(h), None
        return h + nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(h))), None


def stacked(layer: type[nn.Module], length: int) -> Any:
    """A module that applies a layer again and again, with weights of its own each time."""
    return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)


class Plain(nn.Module):
    """A plain network of `depth` layers, the last of which reads out."""

    activation: Callable[[jax.Array], jax.Array]
    depth: int = 100

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.activation(nn.Dense(WIDTH)(x))
        h, _ = stacked(Layer, self.depth - 2)(self.activation)(h, None)
        return nn.Dense(CLASSES)(h)


class Residual(nn.Module):
    """A residual network without normalization."""

    blocks: int
    scalars: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, _ = stacked(Block, self.blocks)(self.scalars)(nn.Dense(WIDTH, use_bias=False)(x), None)
        return nn.Dense(CLASSES)(jaxinit.linen.ScalarBias()(h) if self.scalars else h)


@dataclasses.dataclass(frozen=True)
class Start:
    """A network and its start: a scheme of jaxinit, or one initializer for all kernels; LSUV may follow."""

    network: nn.Module
    scheme: str | jaxinit.schemes.Scheme = "auto"
    kernels: Mapping[str, jaxinit.Initializer] | None = None
    lsuv: bool = False

    def __call__(self, key: jax.Array, batch: jax.Array) -> Any:
        shapes = jax.eval_shape(self.network.init, key, batch)
        params = jaxinit.initialize(key, shapes, self.network.apply, batch, self.scheme, overrides=self.kernels)
        return jaxinit.lsuv(params, self.network.apply, batch) if self.lsuv else params


@dataclasses.dataclass(frozen=True)
class Problem:
    """Starts to compare under the same training."""

    starts: Mapping[str, Start]
    rates: tuple[float, ...] = RATES
    steps: int = STEPS
    clip: float | None = None


PROBLEMS = {
    "100 ReLU layers": Problem(
        {
            "He": Start(Plain(nn.relu), kernels=HE),
            "LSUV": Start(Plain(nn.relu), lsuv=True),
            "looks-linear": Start(Plain(nn.relu), jaxinit.schemes.looks_linear()),
        },
        clip=1.0,
    ),
    "100 tanh layers": Problem(
        {
            "LeCun": Start(Plain(nn.tanh), kernels=LECUN),
            "orthogonal critical": Start(Plain(nn.tanh), jaxinit.schemes.orthogonal_critical()),
        },
        clip=1.0,
    ),
    "100 residual blocks": Problem(
        {
            "He": Start(Residual(100), kernels=HE),
            "auto: He, 1/√L": Start(Residual(100)),
            # 0.02 is GPT-2's at width 768; the same outputs need more of narrower layers.
            "GPT-2, σ = 0.07": Start(Residual(100), jaxinit.schemes.gpt2(stddev=0.02 * (768 / WIDTH) ** 0.5)),
            "GPT-2, σ = 0.02": Start(Residual(100), jaxinit.schemes.gpt2()),
            "Fixup": Start(Residual(100, scalars=True), jaxinit.schemes.fixup()),
        },
        steps=200,
    ),
    "1000 residual blocks": Problem(
        {"Fixup": Start(Residual(1000, scalars=True), jaxinit.schemes.fixup())}, rates=(1e-2,), steps=100
    ),
}


class Outcome(NamedTuple):
    """One row a learning rate, one column a seed, and a third axis over steps."""

    accuracy: np.ndarray
    losses: np.ndarray


@functools.partial(jax.jit, static_argnames=("network", "steps", "clip"))
def train(
    network: nn.Module, params: Any, rates: jax.Array, keys: jax.Array, data: Data, steps: int, clip: float | None
) -> Outcome:
    """Train every seed at every rate; scalars learn at a tenth of it."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    labels = jaxinit.scalar_labels(one, network.apply, data.train_x)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

    def run(params: Any, key: jax.Array, rate: jax.Array) -> Outcome:
        optimizer = optax.partition(
            {"other": optax.sgd(rate, momentum=0.9), "scalar": optax.sgd(rate / 10, momentum=0.9)}, labels
        )
        optimizer = optimizer if clip is None else optax.chain(optax.clip_by_global_norm(clip), optimizer)

        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(data.train_x))
            loss, gradients = jax.value_and_grad(loss_fn)(params, data.train_x[rows], data.train_y[rows])
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
        correct = network.apply(params, data.test_x).argmax(axis=-1) == data.test_y
        return Outcome(correct.mean(), losses)

    return jax.lax.map(lambda rate: jax.vmap(run, in_axes=(0, 0, None))(params, keys, rate), rates)


def run_start(problem: Problem, start: Start, data: Data) -> Outcome:
    """All rates and seeds of one start."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    params = jax.jit(jax.vmap(lambda key: start(key, data.train_x[:256])))(keys)
    rates, keys = jnp.asarray(problem.rates), jax.random.split(jax.random.key(1), SEEDS)
    return jax.device_get(train(start.network, params, rates, keys, data, problem.steps, problem.clip))


def stable(outcome: Outcome) -> np.ndarray:
    """The rates at which every seed ends with a smaller loss than guessing has."""
    return np.all(outcome.losses[:, :, -20:].mean(axis=-1) < np.log(CLASSES), axis=1)


def best(outcome: Outcome) -> tuple[int, float]:
    """The best rate's place in the grid, and the mean over seeds of its accuracy on the test digits."""
    means = np.where(stable(outcome), outcome.accuracy.mean(axis=1), 0.0)
    return int(means.argmax()), float(means.max())


def largest_stable(problem: Problem, outcome: Outcome) -> float:
    """The largest rate of the grid that is stable, 0 if none is."""
    return max((rate for rate, works in zip(problem.rates, stable(outcome), strict=True) if works), default=0.0)


def report(results: Mapping[str, Mapping[str, Outcome]]) -> Table:
    table = Table(
        title=f"Width {WIDTH}, batch {BATCH}, momentum 0.9, mean of {SEEDS} seeds at the best rate of a grid",
        caption="Plain networks clip gradients at norm 1, residual ones do not; no network has normalization",
    )
    for column in ("network", "start", "test accuracy", "best rate", "stable up to"):
        table.add_column(column, justify="left" if column in ("network", "start") else "right")
    for name, outcomes in results.items():
        problem = PROBLEMS[name]
        for i, (start, outcome) in enumerate(outcomes.items()):
            place, accuracy = best(outcome)
            if stable(outcome).any():
                cells = [f"{accuracy:.3f}", f"{problem.rates[place]:g}", f"{largest_stable(problem, outcome):g}"]
            else:
                cells = ["diverged", "–", "–"]
            table.add_row("" if i else name, start, *cells)
        table.add_section()
    return table


def draw_curves(axis: Any, outcomes: Mapping[str, Outcome], title: str, smooth: int) -> None:
    """Training loss over steps at the best rate: the mean of the seeds, and their range."""
    styles = [("#D55E00", ":"), ("#0072B2", "--"), ("#000000", "-")][-len(outcomes) :]
    for (name, outcome), (color, line) in zip(outcomes.items(), styles, strict=True):
        place, accuracy = best(outcome)
        losses = outcome.losses[place].reshape(SEEDS, -1, smooth).mean(axis=-1)
        steps = smooth * np.arange(losses.shape[1]) + (smooth + 1) / 2
        axis.plot(
            steps, losses.mean(axis=0), color=color, linestyle=line, label=f"{name}: test accuracy {accuracy:.3f}"
        )
        axis.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15, linewidth=0)
    axis.axhline(np.log(CLASSES), color="0.6", linewidth=0.8)
    axis.annotate("guessing", (steps[-1], np.log(CLASSES)), ha="right", va="bottom", color="0.4", fontsize=8)
    axis.set(title=title, xlabel="step", ylabel="training loss", ylim=(0, 3.4), xlim=(0, None))
    axis.legend(frameon=False, loc="upper right", fontsize=9)


def draw_rates(axis: Any, problem: Problem, outcomes: Mapping[str, Outcome], title: str) -> None:
    """Test accuracy of every start at every rate, as a grid of cells."""
    works = np.array([stable(outcome) for outcome in outcomes.values()])
    accuracy = np.array([outcome.accuracy.mean(axis=1) for outcome in outcomes.values()])
    axis.imshow(np.where(works, accuracy, np.nan), cmap="cividis", vmin=0.5, vmax=1.0, aspect="auto")
    for (row, column), works_here in np.ndenumerate(works):
        text = f"{accuracy[row, column]:.3f}" if works_here else "diverged"
        color = "#B03A00" if not works_here else "black" if accuracy[row, column] > 0.8 else "white"
        axis.text(column, row, text, ha="center", va="center", color=color)
    axis.set(title=title, xlabel="learning rate")
    axis.set_xticks(range(len(problem.rates)), [f"{rate:g}" for rate in problem.rates])
    axis.set_yticks(range(len(outcomes)), list(outcomes))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def picture(results: Mapping[str, Mapping[str, Outcome]], path: Path) -> None:
    """Learning curves of the plain networks, rates of the residual ones, and the deepest network."""
    relu, tanh, residual, deepest = results
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    draw_curves(axes[0, 0], results[relu], f"{relu}, no normalization", smooth=10)
    draw_curves(axes[0, 1], results[tanh], f"{tanh}, no normalization", smooth=10)
    draw_rates(axes[1, 0], PROBLEMS[residual], results[residual], f"{residual}: test accuracy by learning rate")
    draw_curves(axes[1, 1], results[deepest], f"{deepest} (2000 layers)", smooth=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "pictures" / "deep_nets.png", help="where to draw")
    arguments = parser.parse_args()
    console, data, began = Console(), load(), time.perf_counter()
    starts = [(name, start) for name, problem in PROBLEMS.items() for start in problem.starts]
    columns = (TextColumn("starts done"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Matrices this small keep one core busy, so a start runs on each; the deepest network comes first.
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = progress.add_task("", total=len(starts))
        tasks = {}
        for name, start in reversed(starts):
            tasks[name, start] = pool.submit(run_start, PROBLEMS[name], PROBLEMS[name].starts[start], data)
            tasks[name, start].add_done_callback(lambda _: progress.advance(bar))
    results = {
        name: {start: tasks[name, start].result() for start in problem.starts} for name, problem in PROBLEMS.items()
    }
    console.print(report(results))
    picture(results, arguments.out)
    runs = sum(outcome.accuracy.size for outcomes in results.values() for outcome in outcomes.values())
    console.print(f"{runs} networks trained in {time.perf_counter() - began:.0f} s; picture: {arguments.out}")


if __name__ == "__main__":
    main()
