"""jaxinit.study against a Python loop over jitted runs: python benchmarks/study.py [--seconds 5]

64 seeds of one start, as the study trains them (programs of the size that it chooses, and one program for all), a
Python loop over a jitted training run of one seed, and one such run alone; with the peak memory of each program and the
time that it takes to compile. Drawing and metrics are left out of all of them. Float32, interleaved in one process.
Rows are written to benchmarks/results/study-<hardware>.json. `--quick` measures one model with few steps and writes
nothing.
"""

import argparse
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _machine import description, results_file
from _timing import interleaved, median_ratio
from rich.console import Console
from rich.table import Table

from jaxinit._study._programs import Compiler, Inputs, bytes_held
from jaxinit._study._run import _padded
from jaxinit._study._train import Training

SEEDS, SAMPLES, FEATURES, CLASSES, BATCH = 64, 1024, 64, 10, 64
MODELS = {"MLP 2 × 16": (2, 16), "MLP 4 × 64": (4, 64), "MLP 3 × 256": (3, 256), "MLP 50 × 32": (50, 32)}


def parameters(depth, width, key):
    """A plain network with equal hidden layers, stacked."""
    keys = jax.random.split(key, 3)
    return {
        "in": jax.random.normal(keys[0], (FEATURES, width)) / math.sqrt(FEATURES),
        "hidden": jax.random.normal(keys[1], (depth, width, width)) / math.sqrt(width),
        "out": jax.random.normal(keys[2], (width, CLASSES)) / math.sqrt(width),
    }


def loss_fn(params, batch, key):
    """The cross-entropy of a tanh network."""
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch[0] @ params["in"], params["hidden"])
    return optax.softmax_cross_entropy_with_integer_labels(h @ params["out"], batch[1]).mean()


def training():
    """One seed's training with Adam."""
    return Training(loss_fn, optax.adam, lambda params, data: {}, SAMPLES, BATCH, SAMPLES)


def problem(depth, width):
    """What the programs take, and the parameters of every seed."""
    key = jax.random.key(0)
    data = jax.random.normal(key, (SAMPLES, FEATURES)), jax.random.randint(key, (SAMPLES,), 0, CLASSES)
    params = jax.vmap(lambda key: parameters(depth, width, key))(jax.random.split(key, SEEDS))
    return Inputs(key, jnp.array([1e-3]), data, data), params


def alone(inputs, params, steps):
    """The program of one seed, as people write it: a jitted scan over steps."""
    one = training()

    def run(params, seed):
        state = one.begin(params, inputs.rates)
        return one.advance(state, seed, inputs.key, inputs.rates, inputs.data, jnp.int32(0), steps)[1]

    before = time.perf_counter()
    program = jax.jit(run).lower(jax.tree.map(lambda x: x[0], params), np.uint32(0)).compile()
    return program, time.perf_counter() - before


def together(inputs, params, steps, chunk):
    """A function that trains all seeds as the study does, its programs, and the seconds to compile them."""
    shapes = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), params)
    before = time.perf_counter()
    compiler = Compiler(training(), jax.local_devices(), inputs, chunk, SEEDS, steps)
    programs = compiler.programs(shapes)
    seconds = time.perf_counter() - before
    leaves, structure = jax.tree.flatten(params)
    groups = [jax.tree.unflatten(structure, g) for g in zip(*(_padded(x, programs.size) for x in leaves), strict=True)]
    seeds = _padded(np.arange(SEEDS, dtype=np.uint32), programs.size)
    places = [i % len(programs.places) for i in range(len(groups))]

    def run():
        from concurrent.futures import ThreadPoolExecutor

        states = [
            jax.device_put(programs.begin(group)[0], programs.places[i])
            for i, group in zip(places, groups, strict=True)
        ]
        with ThreadPoolExecutor(len(programs.places)) as pool:
            for step in range(0, steps, programs.length):
                advance = lambda place, state, seed, step=step: programs.advance(place, state, seed, step)  # noqa: E731
                states = [
                    s for s, _ in pool.map(lambda *a, f=advance: jax.block_until_ready(f(*a)), places, states, seeds)
                ]

    advancing = compiler._advancing(shapes, programs.size, programs.length).on(compiler.devices[0])
    return run, programs, seconds, bytes_held(advancing.memory())


def measured(depth, width, steps, seconds):
    """One row."""
    inputs, params = problem(depth, width)
    single, single_seconds = alone(inputs, params, steps)
    each = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(SEEDS)]
    chosen, programs, chosen_seconds, chosen_bytes = together(inputs, params, steps, None)
    all_at_once, _, all_seconds, all_bytes = together(inputs, params, steps, SEEDS)

    def loop():
        for seed in range(SEEDS):
            jax.block_until_ready(single(each[seed], np.uint32(seed)))

    runs = {
        "one run": lambda: jax.block_until_ready(single(each[0], np.uint32(0))),
        "loop": loop,
        "study": chosen,
        "one program": all_at_once,
    }
    times = interleaved(runs, seconds)
    return {
        "median_ms": {name: float(np.median(t)) * 1e3 for name, t in times.items()},
        "loop_over": {name: median_ratio(times[name], times["loop"]) for name in times},
        "over_one_run": {name: median_ratio(times["one run"], times[name]) for name in times},
        "bytes": {
            "one run": bytes_held(single.memory_analysis()),
            "study": chosen_bytes * len(programs.places),
            "one program": all_bytes,
        },
        "compile_seconds": {"one run": single_seconds, "study": chosen_seconds, "one program": all_seconds},
        "study": {"chunk": programs.size, "at_once": len(programs.places), "steps": steps},
    }


def show(report):
    """The table on the console."""
    table = Table(title=f"{SEEDS} seeds: time over one run, time of the loop over it, and memory over one run")
    table.add_column("model")
    for name in ("one run", "loop", "study", "one program"):
        table.add_column(name, justify="right")
    for model, row in report["rows"].items():
        cells = [f"{row['median_ms']['one run']:.1f} ms"]
        for name in ("loop", "study", "one program"):
            cell = f"{row['over_one_run'][name]:.1f}×, loop {row['loop_over'][name]:.2f}×"
            if name in row["bytes"]:
                cell += f", memory {row['bytes'][name] / row['bytes']['one run']:.1f}×"
            cells.append(cell)
        table.add_row(model, *cells)
    Console(width=150).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget for each row")
    parser.add_argument("--steps", type=int, default=50, help="training steps of a run")
    parser.add_argument("--quick", action="store_true", help="one model, few steps, nothing written")
    arguments = parser.parse_args()
    report = {**description(), "rows": {}}
    for name, (depth, width) in MODELS.items():
        if arguments.quick and name != "MLP 4 × 64":
            continue
        steps = 20 if arguments.quick else arguments.steps
        report["rows"][name] = measured(depth, width, steps, arguments.seconds)
        Console().print(name, report["rows"][name]["loop_over"], style="dim")
    if not arguments.quick:
        results_file("study").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
