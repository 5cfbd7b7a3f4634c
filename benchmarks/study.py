"""jaxinit.study against a handwritten loop: python benchmarks/study.py [--rounds 5] [--only CNN]

The loop is a Python loop over a jitted step, whose state is donated and whose batches are cut beforehand, for one seed
after another. Seed-steps per second of both, alternating. The study's number excludes compiling, drawing and measuring;
these are in the seconds of its first and second call. For comparison there are a jitted `lax.scan` over the steps of
one seed, and the peak memory of all programs that run at the same time. Float32, Adam.

Rows are written to benchmarks/results/study-<hardware>.json. `--quick` measures two small models with few steps and
writes nothing.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _machine import description, results_file
from lsuv import Block, Mlp, ResNetBlock
from rich.console import Console
from rich.table import Table

import jaxinit
from jaxinit._study._processes import Processes
from jaxinit._study._programs import Compiler, Inputs, bytes_held
from jaxinit._study._train import Training

BATCH, SAMPLES, CLASSES, RATE = 64, 512, 10, 1e-3


class Classifier(nn.Module):
    """A module with a readout, after averaging over the remaining spatial dimensions."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        x = self.inner(x)
        return nn.Dense(CLASSES)(x.mean(range(1, x.ndim - 1)) if x.ndim > 2 else x)


class Cnn(nn.Module):
    """Five small convolutions."""

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((16, 16, 32, 32, 64)):
            x = nn.relu(nn.Conv(features, (3, 3), 1 + i % 2)(x))
        return x


class ResNet(nn.Module):
    """A small residual network: three blocks of two convolutions with group normalization."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        for i, features in enumerate((16, 32, 64)):
            x = ResNetBlock(features, 1 + (i > 0))(x)
        return x


class VisionTransformer(nn.Module):
    """Four blocks of width 64 on patches of 4 × 4."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (4, 4), (4, 4), padding="VALID")(x)
        x = x.reshape(len(x), -1, 64)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(4):
            x, _ = Block(64)(x)
        return nn.LayerNorm()(x)


class Lstm(nn.Module):
    """A recurrent network of 64 units that reads 32 steps."""

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.OptimizedLSTMCell(64))(x)[:, -1]


IMAGES, VECTORS, SEQUENCES = (16, 16, 3), (64,), (32, 16)
MODELS = {
    "MLP 2 × 16": (Mlp(2, 16), VECTORS),
    "MLP 4 × 64": (Mlp(4, 64), VECTORS),
    "MLP 3 × 256": (Mlp(3, 256), VECTORS),
    "MLP 50 × 32": (Mlp(50, 32), VECTORS),
    "CNN": (Cnn(), IMAGES),
    "ResNet": (ResNet(), IMAGES),
    "ViT": (VisionTransformer(), IMAGES),
    "LSTM": (Lstm(), SEQUENCES),
}


class Problem(NamedTuple):
    """The models that are trained."""

    start: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    data: Any


def problem(module, shape, samples=SAMPLES):
    """Random samples of a shape and labels for them."""
    key = jax.random.key(0)
    data = jax.random.normal(key, (samples, *shape)), jax.random.randint(key, (samples,), 0, CLASSES)
    classifier = Classifier(module)

    def loss(params, batch):
        logits = classifier.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return Problem(lambda key: classifier.init(key, data[0][:1]), loss, data)


def step_of(loss):
    """One step of training, as usually written."""
    optimizer = optax.adam(RATE)

    def step(state, batch):
        params, inner = state
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, inner = optimizer.update(gradients, inner)
        return (optax.apply_updates(params, updates), inner), value

    return step


def begun(what, key):
    """Parameters, and the state of the optimizer."""
    params = what.start(key)
    return params, optax.adam(RATE).init(params)


def loop(what, steps):
    """A function that trains one seed in a loop over a jitted step, and the peak memory of the step in bytes."""
    batches = [jax.tree.map(lambda x, i=i: x[i : i + BATCH], what.data) for i in range(0, len(what.data[0]), BATCH)]
    begin, step = jax.jit(functools.partial(begun, what)), jax.jit(step_of(what.loss), donate_argnums=0)
    memory = step.lower(jax.eval_shape(begin, jax.random.key(0)), batches[0]).compile().memory_analysis()

    def run(seed):
        state = jax.block_until_ready(begin(jax.random.key(seed)))
        before = time.perf_counter()
        for i in range(steps):
            state, value = step(state, batches[i % len(batches)])
        jax.block_until_ready(value)
        return steps / (time.perf_counter() - before)

    return run, bytes_held(memory)


def scan(what, steps):
    """The same in a jitted scan over the steps."""
    begin, step = jax.jit(functools.partial(begun, what)), step_of(what.loss)
    many = jax.tree.map(lambda x: x.reshape(-1, BATCH, *x.shape[1:]), what.data)

    @jax.jit
    def trained(state, data):
        count = len(data[1])
        return jax.lax.scan(lambda s, i: step(s, jax.tree.map(lambda x: x[i % count], data)), state, jnp.arange(steps))

    def run(seed):
        state = jax.block_until_ready(begin(jax.random.key(seed)))
        before = time.perf_counter()
        jax.block_until_ready(trained(state, many))
        return steps / (time.perf_counter() - before)

    return run


def studied(what, steps, seeds):
    """The study, and the peak memory of its programs that run at the same time, with how it runs them."""

    def run():
        before = time.perf_counter()
        result = jaxinit.study(
            {"start": what.start}, what.start, what.loss, what.data, optimizer=optax.adam, learning_rates=[RATE],
            steps=steps, seeds=seeds, batch_size=BATCH, progress=False,
        )  # fmt: skip
        return float(result.settings["seed_steps_per_second"]), time.perf_counter() - before

    def memory():
        devices, samples = jax.local_devices(), len(what.data[0])
        on_cpu = devices[0].platform == "cpu"
        loss = lambda params, batch, key: what.loss(params, batch)  # noqa: E731
        training = Training(loss, optax.adam, lambda params, data: {}, samples, BATCH, samples, on_cpu)
        inputs = Inputs(jax.random.key(0), jnp.array([RATE]), what.data, what.data)
        compiler = Compiler(training, Processes(devices), inputs, None, seeds, steps)
        params = jax.eval_shape(what.start, jax.random.key(0))
        programs = compiler.programs(params)
        held = bytes_held(compiler._advancing(params, programs.size, programs.length).on(devices[0]).memory())
        places = len(programs.places)
        return held * places, {"chunk": programs.size, "at_once": places, "steps": programs.length}

    return run, memory


def measured(module, shape, steps, seeds, rounds):
    """One row."""
    what = problem(module, shape)
    looped, loop_bytes = loop(what, steps)
    scanned = scan(what, min(steps, 25))
    study, memory = studied(what, steps, seeds)
    looped(0), scanned(0)
    _, first = study()
    rates, again = {"loop": [], "scan": [], "study": []}, []
    for i in range(rounds):
        rates["loop"].append(looped(i))
        rates["scan"].append(scanned(i))
        rate, seconds = study()
        rates["study"].append(rate)
        again.append(seconds)
    study_bytes, how = memory()
    ratios = {name: np.divide(rates[name], rates["loop"]) for name in ("scan", "study")}
    return {
        "seed_steps_per_s": {name: float(np.median(found)) for name, found in rates.items()},
        "over_loop": {name: float(np.median(found)) for name, found in ratios.items()},
        "worst_over_loop": {name: float(np.min(found)) for name, found in ratios.items()},
        "bytes": {"loop": loop_bytes, "study": study_bytes},
        "call_seconds": {"first": first, "second": float(np.median(again))},
        "study": {"seeds": seeds, "steps": steps, **how},
    }


def show(report):
    """The table on the console."""
    table = Table(title="Seed-steps per second, those of the loop as 1, and memory over the loop's")
    for name in ("model", "loop", "scan", "study", "the worst round", "memory", "first call", "second"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model, row in report["rows"].items():
        over, worst, seconds = row["over_loop"], row["worst_over_loop"], row["call_seconds"]
        cells = [f"{row['seed_steps_per_s']['loop']:.0f}/s", f"{over['scan']:.2f}×", f"{over['study']:.2f}×"]
        cells += [f"{worst['study']:.2f}×", f"{row['bytes']['study'] / row['bytes']['loop']:.1f}×"]
        table.add_row(model, *cells, *(f"{seconds[name]:.1f} s" for name in ("first", "second")))
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of loop, scan and study")
    parser.add_argument("--steps", type=int, default=100, help="training steps of a run")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of the study")
    parser.add_argument("--only", help="the model of this name alone, added to what is in the file")
    parser.add_argument("--quick", action="store_true", help="two models, few steps, nothing written")
    arguments = parser.parse_args()
    file = results_file("study")
    report = {**description(), "rows": {}}
    if arguments.only and file.exists():
        report["rows"] = json.loads(file.read_text())["rows"]
    chosen = [arguments.only] if arguments.only else ["MLP 4 × 64", "CNN"] if arguments.quick else MODELS
    steps, seeds, rounds = (20, 4, 2) if arguments.quick else (arguments.steps, arguments.seeds, arguments.rounds)
    for name in chosen:
        report["rows"][name] = measured(*MODELS[name], steps, seeds, rounds)
        Console().print(name, report["rows"][name]["over_loop"], style="dim")
        if not arguments.quick:
            file.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
