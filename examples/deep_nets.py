"""What whole-model schemes are for: networks of a hundred to two thousand layers without normalization, on digits.

Trains plain ReLU and tanh networks of 100 layers, and residual networks of 100 and 1000 blocks, with initializations
that suit them and with others, with three seeds at each learning rate. Every network is one `jaxinit.study`.
Prints a table of all of them and draws a picture.

    python examples/deep_nets.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from compare_initializers import CLASSES, digits
from rich import print
from rich.table import Table

import jaxinit
import jaxinit.linen
import jaxinit.plot

WIDTH, RATES, GUESSING = 64, (1e-3, 1e-2, 1e-1), float(np.log(CLASSES))


class Stack(nn.Module):
    """The same layer repeated, with weights of its own each time."""

    layer: Callable[[jax.Array], jax.Array]
    depth: int

    @nn.compact
    def __call__(self, x):
        def step(_, h, __):
            return self.layer(h), None

        steps = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        return steps(self, x, None)[0]


def block(h):
    return h + nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(h)))


def block_with_scalars(h):
    layers = [nn.Dense(WIDTH, use_bias=False), nn.Dense(WIDTH, use_bias=False)]
    return jaxinit.linen.FixupResidual(layers, nn.relu)(h)


def plain(activation, layers):
    """A network of this many layers, the last of which is the readout."""
    hidden = Stack(lambda h: activation(nn.Dense(WIDTH)(h)), layers - 2)
    return nn.Sequential([nn.Dense(WIDTH), activation, hidden, nn.Dense(CLASSES)])


def residual(blocks, scalars):
    """A residual network without normalization, with the scalars of Fixup or with biases."""
    stack = [Stack(block_with_scalars, blocks), jaxinit.linen.ScalarBias()] if scalars else [Stack(block, blocks)]
    return nn.Sequential([nn.Dense(WIDTH, use_bias=False), *stack, nn.Dense(CLASSES)])


RELU = {"He": jaxinit.he_normal(), "LSUV": ("auto", jaxinit.lsuv), "looks-linear": "looks_linear"}
TANH = {"LeCun": jaxinit.lecun_normal(), "orthogonal critical": "orthogonal_critical"}
BLOCKS = {
    "He": jaxinit.he_normal(),
    "auto: He, 1/√L": "auto",
    # 0.02 is GPT-2's at width 768; narrower layers need a larger one for the same outputs.
    "GPT-2, σ = 0.07": jaxinit.schemes.gpt2(stddev=0.02 * (768 / WIDTH) ** 0.5),
    "GPT-2, σ = 0.02": "gpt2",
}
FIXUP = {"Fixup": "fixup"}
PROBLEMS = {
    "100 ReLU layers": {"network": plain(nn.relu, 100), "starts": RELU, "steps": 300, "clip": True},
    "100 tanh layers": {"network": plain(nn.tanh, 100), "starts": TANH, "steps": 300, "clip": True},
    "100 residual blocks": {"network": residual(100, False), "starts": BLOCKS, "steps": 200},
    "100 blocks with scalars": {"network": residual(100, True), "starts": FIXUP, "steps": 200},
    "1000 blocks with scalars": {"network": residual(1000, True), "starts": FIXUP, "steps": 100, "rates": (1e-2,)},
}


def compare(network, starts, steps, rates=RATES, clip=False):
    """The study of one network; scalars learn at a tenth of the rate."""
    train, test = digits()
    params = jax.eval_shape(network.init, jax.random.key(0), train[0])

    def loss_fn(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, batch[0]), batch[1]).mean()

    def metrics_fn(params, batch):
        return {"test accuracy": (network.apply(params, batch[0]).argmax(axis=1) == batch[1]).mean()}

    labels = jaxinit.scalar_labels(params, loss_fn, train)

    def optimizer(rate):
        parts = {"other": optax.sgd(rate, momentum=0.9), "scalar": optax.sgd(rate / 10, momentum=0.9)}
        descent = optax.partition(parts, labels)
        return optax.chain(optax.clip_by_global_norm(1.0), descent) if clip else descent

    return jaxinit.study(
        starts,
        params,
        loss_fn,
        train,
        optimizer=optimizer,
        learning_rates=rates,
        steps=steps,
        seeds=3,
        batch_size=128,
        test_data=test,
        metrics_fn=metrics_fn,
        maximize=True,
        diverged_above=GUESSING,
        chunk=1,  # Pairs of seeds, the default on CPUs, would train a fourth seed for nothing.
    )


def stable(result):
    """Starts × rates: whether no seed diverged, so that every final loss is below that of guessing."""
    return ~result.diverged().any(axis=-1)


def largest_stable(result, start):
    """The largest rate at which a start is stable, 0 if there is none."""
    rates = np.array(result.learning_rates)
    return float(max(rates[stable(result)[result.starts.index(start)]], default=0))


def report(results):
    """One row per start; a seed counts at the rate that is best for the other seeds."""
    table = Table("network", "start", "test accuracy", "best rate", "largest stable rate")
    for name, result in results.items():
        for i, row in enumerate(result.summary()):
            largest, best = largest_stable(result, row.start), " / ".join(f"{rate:g}" for rate in row.learning_rates)
            cells = [f"{row.mean:.3f}", best, f"{largest:g}"] if largest else ["diverged", "–", "–"]
            table.add_row("" if i else name, row.start, *cells, end_section=i + 1 == len(result.starts))
    return table


def draw_curves(axis, result, title):
    """Training loss at the best rate, and test accuracies in the legend."""
    jaxinit.plot.learning_curves(result, axis, legend=False)
    for line, row in zip(axis.lines, result.summary(), strict=True):
        line.set_label(f"{row.start}: test accuracy {row.mean:.3f}")
    axis.legend(loc="upper right", frameon=False)
    axis.axhline(GUESSING, color="gray", linewidth=0.8)
    axis.annotate("guessing", (axis.get_xlim()[1], GUESSING), ha="right", va="bottom", color="0.4", fontsize="small")
    axis.set(title=title, ylim=(0, 3.4))


def draw_rates(axis, results, title):
    """Test accuracy of every start at every rate, as a grid of cells."""
    works = np.concatenate([stable(result) for result in results])
    accuracy = np.concatenate([result.final["test accuracy"].mean(axis=-1) for result in results])
    axis.imshow(np.where(works, accuracy, np.nan), cmap="cividis", vmin=0.5, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        text = f"{value:.3f}" if works[row, column] else "diverged"
        color = "white" if works[row, column] and value < 0.8 else "black"
        axis.text(column, row, text, ha="center", va="center", color=color)
    starts = [start for result in results for start in result.starts]
    axis.set(title=title, xlabel="learning rate", xticks=range(len(RATES)), xticklabels=RATES)
    axis.set(yticks=range(len(starts)), yticklabels=starts)
    axis.tick_params(length=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = Path(__file__).parent / "pictures" / "deep_nets.png"
    parser.add_argument("--out", type=Path, default=picture, help="where to draw")
    out = parser.parse_args().out
    results = {name: compare(**problem) for name, problem in PROBLEMS.items()}
    print(report(results))
    relu, tanh, blocks, blocks_with_scalars, deepest = results.values()
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    draw_curves(axes[0, 0], relu, "100 ReLU layers, no normalization")
    draw_curves(axes[0, 1], tanh, "100 tanh layers, no normalization")
    draw_rates(axes[1, 0], [blocks, blocks_with_scalars], "100 residual blocks: test accuracy by learning rate")
    draw_curves(axes[1, 1], deepest, "1000 residual blocks (2000 layers)")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print("picture:", out)


if __name__ == "__main__":
    main()
