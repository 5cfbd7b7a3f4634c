"""jaxinit.lsuv against one forward pass, and against LSUV as usually written: python benchmarks/lsuv.py [--seconds 4]

Three tables: (1) run time, compile time and peak memory of the fused method, with and without orthonormalization,
divided by those of one plain forward pass of the same model, the lower bound; (2) the classical algorithm in JAX
(jitted capture_intermediates, a Python loop over layers) and the `lsuv` package of PyTorch on deep MLPs, with the
number of forward passes of each; (3) 32 seeds side by side. All float32, interleaved in one process. Rows are written
to benchmarks/results/lsuv-<hardware>.json. `--quick` measures one model and writes nothing.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from _machine import description, results_file
from _timing import interleaved, median_ratio
from rich.console import Console
from rich.table import Table

import jaxinit

SEEDS = 32


class Mlp(nn.Module):
    """Hidden layers of equal width with tanh."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = jnp.tanh(nn.Dense(self.width, name=f"layer_{i}")(x))
        return x


class ResNetBlock(nn.Module):
    """Two convolutions and a shortcut."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.GroupNorm(8)(nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)))
        y = nn.GroupNorm(8)(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.strides, use_bias=False)(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """The 18-layer residual network, with group normalization."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(64, (7, 7), (2, 2))(x))
        for i, features in enumerate((64, 128, 256, 512)):
            for j in range(2):
                x = ResNetBlock(features, 2 if i > 0 and j == 0 else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Block(nn.Module):
    """Attention and feed-forward, pre-norm."""

    width: int = 256

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=8)(h, h)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return x, None


class Transformer(nn.Module):
    """Blocks, unrolled or scanned."""

    scanned: bool
    width: int = 256
    blocks: int = 12

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(1000, self.width)(tokens)
        if self.scanned:
            stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.blocks)
            x, _ = stack(self.width)(x, None)
        else:
            for _ in range(self.blocks):
                x, _ = Block(self.width)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x))


def models():
    """Name → (module, batch)."""
    key = jax.random.key(1)
    found = {}
    for width in (128, 512):
        for depth in (10, 50, 100, 200):
            found[f"MLP {depth} × {width}"] = (Mlp(depth, width), jax.random.normal(key, (256, width)))
    found["ResNet-18, 64²"] = (ResNet18(), jax.random.normal(key, (16, 64, 64, 3)))
    tokens = jax.random.randint(key, (8, 64), 0, 1000)
    found["transformer, unrolled"] = (Transformer(False), tokens)
    found["transformer, scanned"] = (Transformer(True), tokens)
    return found


def compiled(function, *arguments, donate=()):
    """An ahead-of-time compiled function, its compile time in seconds, and its peak memory in bytes."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    before = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - before
    memory = program.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    return program, seconds, peak - memory.alias_size_in_bytes


def chained(program, params, batch):
    """Calls a program that consumes its parameters on the result of its last call."""
    held = [jax.tree.map(jnp.copy, params)]

    def run():
        held[0] = jax.block_until_ready(program(held[0], batch))

    return run


def against_forward(module, batch, seconds):
    """One row of the first table. LSUV consumes the parameters (donation) and runs on its last result."""
    params = jax.jit(module.init)(jax.random.key(0), batch)
    programs = {
        "forward": lambda p, x: module.apply(p, x),
        "lsuv": lambda p, x: jaxinit.lsuv(p, module.apply, x, orthonormalize=False),
        "with orthonormalize": lambda p, x: jaxinit.lsuv(p, module.apply, x),
    }
    runs, compile_seconds, memory = {}, {}, {}
    for name, function in programs.items():
        donate = () if name == "forward" else (0,)
        program, compile_seconds[name], memory[name] = compiled(function, params, batch, donate=donate)
        if name == "forward":
            runs[name] = lambda program=program: jax.block_until_ready(program(params, batch))
        else:
            runs[name] = chained(program, params, batch)
    times = interleaved(runs, seconds)
    return {
        "median_ms": {name: float(np.median(t)) * 1e3 for name, t in times.items()},
        "over_forward": {name: median_ratio(times["forward"], times[name]) for name in times},
        "compile_seconds": compile_seconds,
        "compile_over_forward": {n: s / compile_seconds["forward"] for n, s in compile_seconds.items()},
        "memory_over_forward": {n: m / memory["forward"] for n, m in memory.items()},
    }


def classical(module, params, batch, counter):
    """LSUV as it is usually written: a jitted capture of all outputs, and a Python loop over layers."""

    @jax.jit
    def capture(params, x):
        return module.apply(params, x, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]

    def run():
        tree = jax.tree.map(lambda x: x, params)
        counter[0] = 0
        for i in range(module.depth):
            for _ in range(10):
                counter[0] += 1
                std = float(jnp.std(capture(tree, batch)[f"layer_{i}"]["__call__"][0]))
                if abs(std - 1) < 1e-2:
                    break
                layer = tree["params"][f"layer_{i}"]
                tree["params"][f"layer_{i}"] = {**layer, "kernel": layer["kernel"] / std}
        return tree

    return run


def torch_lsuv(depth, width, batch, counter):
    """The `lsuv` package of PyTorch on the same MLP; None if it is not installed."""
    # This file has the name of that package, and its folder comes first on the path.
    elsewhere = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != pathlib.Path(__file__).parent]
    spec = importlib.machinery.PathFinder.find_spec("lsuv", elsewhere)
    if spec is None or spec.loader is None or importlib.util.find_spec("torch") is None:
        message = "torch and lsuv are not installed: that row is missing (pip install '.[bench]')"
        Console().print(message, style="bold red", markup=False)
        return None
    import torch

    package = importlib.util.module_from_spec(spec)
    sys.modules["lsuv"] = package
    spec.loader.exec_module(package)
    layers = [m for _ in range(depth) for m in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    x = torch.from_numpy(np.array(batch))

    def run():
        torch.manual_seed(0)
        net = torch.nn.Sequential(*layers)
        counter[0] = 0
        net.register_forward_hook(lambda *_: counter.__setitem__(0, counter[0] + 1))
        return package.lsuv_with_singlebatch(net, x, do_orthonorm=False, std_tol=0.01, verbose=False)

    return run


def against_classical(depth, width, seconds):
    """One row of the second table."""
    module, batch = Mlp(depth, width), jax.random.normal(jax.random.key(1), (256, width))
    params = jax.jit(module.init)(jax.random.key(0), batch)
    program, _, _ = compiled(lambda p, x: jaxinit.lsuv(p, module.apply, x, orthonormalize=False), params, batch)
    passes = {"jaxinit": [1], "JAX, loop over layers": [0], "torch lsuv": [0]}
    runs = {
        "jaxinit": lambda: jax.block_until_ready(program(params, batch)),
        "JAX, loop over layers": classical(module, params, batch, passes["JAX, loop over layers"]),
    }
    peer = torch_lsuv(depth, width, batch, passes["torch lsuv"])
    if peer is not None:
        runs["torch lsuv"] = peer
    times = interleaved(runs, seconds)
    return {
        "median_ms": {name: float(np.median(t)) * 1e3 for name, t in times.items()},
        "over_jaxinit": {name: median_ratio(times["jaxinit"], times[name]) for name in times},
        "forward_passes": {name: passes[name][0] for name in times},
    }


def seeds(depth, width, seconds):
    """Many seeds in one program against one seed, both including the drawing."""
    module, batch = Mlp(depth, width), jax.random.normal(jax.random.key(1), (256, width))

    def one(key):
        return jaxinit.lsuv(module.init(key, batch), module.apply, batch)

    keys = jax.random.split(jax.random.key(0), SEEDS)
    single, _, _ = compiled(one, keys[0])
    many, _, _ = compiled(jax.vmap(one), keys)
    times = interleaved(
        {"one": lambda: jax.block_until_ready(single(keys[0])), "many": lambda: jax.block_until_ready(many(keys))},
        seconds,
    )
    return {
        "median_ms": {name: float(np.median(t)) * 1e3 for name, t in times.items()},
        "many_over_one": median_ratio(times["one"], times["many"]),
    }


def show(report):
    """The tables on the console."""
    console = Console(width=150)
    table = Table(title="LSUV in one evaluation, over one forward pass of the same model")
    for column in ("model", "forward ms", "lsuv", "with orthonormalize", "compile", "memory"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in report["against_forward"].items():
        ratio = row["over_forward"]
        table.add_row(
            name,
            f"{row['median_ms']['forward']:.2f}",
            f"{ratio['lsuv']:.2f}×",
            f"{ratio['with orthonormalize']:.2f}×",
            f"{row['compile_over_forward']['lsuv']:.2f}×",
            f"{row['memory_over_forward']['lsuv']:.2f}×",
        )
    console.print(table)
    table = Table(title="LSUV against the classical algorithm, orthonormalization aside")
    for column in ("model", "method", "ms", "over jaxinit", "forward passes"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for name, row in report.get("against_classical", {}).items():
        for method, milliseconds in row["median_ms"].items():
            ratio, passes = row["over_jaxinit"][method], row["forward_passes"][method]
            table.add_row(name, method, f"{milliseconds:.1f}", f"{ratio:.1f}×", str(passes))
    console.print(table)
    for name, row in report.get("seeds", {}).items():
        console.print(f"{name}: {SEEDS} seeds in one program take {row['many_over_one']:.1f} × one seed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="budget for each row")
    parser.add_argument("--quick", action="store_true", help="one model, nothing written")
    arguments = parser.parse_args()
    console = Console(width=150)
    report = {**description(), "against_forward": {}}
    for name, (module, batch) in models().items():
        if arguments.quick and name != "MLP 50 × 128":
            continue
        row = report["against_forward"][name] = against_forward(module, batch, arguments.seconds)
        console.print(f"{name}: {row['over_forward']['lsuv']:.2f}×", style="dim")
    if not arguments.quick:
        report["against_classical"] = {
            f"MLP {depth} × 128": against_classical(depth, 128, arguments.seconds) for depth in (10, 50, 100)
        }
        report["seeds"] = {f"MLP {depth} × 128": seeds(depth, 128, arguments.seconds) for depth in (10, 50)}
        results_file("lsuv").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
