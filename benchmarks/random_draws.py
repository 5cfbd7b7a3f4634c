"""Draws on CPU against `jax.random`: run time, compile time and memory of whole programs.

    python benchmarks/random_draws.py

Both sides run in turn, call by call, so that other work of the machine affects both alike; the ratio is
that of the medians. Writes benchmarks/results/random-cpu.json: a set of rows for each JAX version.
This file is not called random.py, which would hide the standard library's module of that name.
"""

import datetime
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import rich
import rich.table
from _machine import processor

from jaxinit._arrays import random

RESULTS = Path(__file__).parent / "results" / "random-cpu.json"
SECONDS_PER_ROW = 5.0
LARGE = (2500, 4000)
MLP = ((784, 512), *[(512, 512)] * 6, (512, 10))

Program = Callable[[Any], Callable[[jax.Array], Any]]


def he_uniform(module: Any) -> Callable[[jax.Array], Any]:
    bound = (6 / LARGE[0]) ** 0.5
    return lambda key: module.uniform(key, LARGE, jnp.float32, -bound, bound)


def mlp(module: Any) -> Callable[[jax.Array], Any]:
    def kernels(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(MLP))
        return [module.normal(k, shape, jnp.float32) * shape[0] ** -0.5 for k, shape in zip(keys, MLP, strict=True)]

    return kernels


def used_twice(module: Any) -> Callable[[jax.Array], Any]:
    def program(key: jax.Array) -> Any:
        weights = module.normal(key, LARGE, jnp.float32)
        return weights * 0.1, weights.sum(axis=0)

    return program


def used_thrice(module: Any) -> Callable[[jax.Array], Any]:
    def program(key: jax.Array) -> Any:
        weights = module.normal(key, (2000, 2000), jnp.float32)
        return weights * 0.1, weights.T + 1.0, (weights**2).sum(axis=0)

    return program


def many_small(module: Any) -> Callable[[jax.Array], Any]:
    return lambda key: [module.normal(k, (16, 16), jnp.float32) * 0.1 for k in jax.random.split(key, 40)]


def seeds(module: Any) -> Callable[[jax.Array], Any]:
    draw = jax.vmap(lambda key: module.normal(key, (128, 128), jnp.float32))
    return lambda key: draw(jax.random.split(key, 64))


def normal(*shape: int) -> Program:
    return lambda module: lambda key: module.normal(key, shape, jnp.float32)


PROGRAMS: dict[str, Program] = {
    "normal, 10M": normal(*LARGE),
    "normal × 0.1, 10M": lambda module: lambda key: module.normal(key, LARGE, jnp.float32) * 0.1,
    "he_uniform, 10M": he_uniform,
    "truncated normal, 10M": lambda m: lambda key: m.truncated_normal(key, -2.0, 2.0, LARGE, jnp.float32),
    "complex normal, 2M": lambda m: lambda key: m.normal(key, (1000, 2000), jnp.complex64),
    "normal (1M, 3)": normal(1_000_000, 3),
    "convolution (3, 3, 512, 512)": normal(3, 3, 512, 512),
    "MLP, 8 kernels": mlp,
    "64 seeds × (128, 128), vmap": seeds,
    "normal used twice, 10M": used_twice,
    "normal used thrice, 4M": used_thrice,
    "40 draws of (16, 16)": many_small,
    "normal (16, 16)": normal(16, 16),
    "normal (32, 32)": normal(32, 32),
    "normal (128, 128)": normal(128, 128),
}
EAGER_SHAPES = ((), (64,), (16, 16), (64, 64), (256, 256))


def measure(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds per call, with the calls interleaved."""
    for call in calls.values():
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(next(iter(calls.values()))())
    repeats = max(1, round(0.002 / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + SECONDS_PER_ROW
    while time.perf_counter() < deadline:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats):
                result = call()
            jax.block_until_ready(result)
            samples[name].append((time.perf_counter() - start) / repeats * 1e3)
    return {name: statistics.median(times) for name, times in samples.items()}


def compiled_row(name: str, program: Program, key: jax.Array) -> dict[str, Any]:
    row: dict[str, Any] = {"program": name}
    calls: dict[str, Callable[[], Any]] = {}
    for side, module in (("jax", jax.random), ("jaxinit", random)):
        start = time.perf_counter()
        lowered = jax.jit(program(module)).lower(key)
        row[f"{side}_trace_s"] = time.perf_counter() - start
        start = time.perf_counter()
        compiled = lowered.compile()
        row[f"{side}_compile_s"] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        row[f"{side}_temporary_bytes"] = memory.temp_size_in_bytes
        row["output_bytes"] = memory.output_size_in_bytes
        calls[side] = functools.partial(compiled, key)
    return with_times(row, calls)


def eager_row(shape: tuple[int, ...], key: jax.Array) -> dict[str, Any]:
    calls: dict[str, Callable[[], Any]] = {
        "jax": lambda: jax.random.normal(key, shape, jnp.float32),
        "jaxinit": lambda: random.normal(key, shape, jnp.float32),
    }
    return with_times({"program": f"eager call, normal {shape}"}, calls)


def with_times(row: dict[str, Any], calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    medians = measure(calls)
    row |= {f"{side}_ms": milliseconds for side, milliseconds in medians.items()}
    return row | {"ratio": medians["jax"] / medians["jaxinit"]}


def save(rows: list[dict[str, Any]]) -> None:
    """Keeps the rows of other JAX versions, and replaces those of this one."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[f"jax {jax.__version__}"] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": platform.python_version(),
        },
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def report(rows: list[dict[str, Any]]) -> None:
    table = rich.table.Table(title=f"Draws on CPU, JAX {jax.__version__}; jax.random → jaxinit")
    for heading in ("program", "run, ms", "ratio", "trace, s", "compile, s", "temporary / output"):
        table.add_column(heading, justify="left" if heading == "program" else "right")
    for row in rows:
        cells = [row["program"], f"{row['jax_ms']:.3g} → {row['jaxinit_ms']:.3g}", f"{row['ratio']:.2f}"]
        if "output_bytes" in row:
            for stage in ("trace", "compile"):
                cells.append(f"{row[f'jax_{stage}_s']:.2f} → {row[f'jaxinit_{stage}_s']:.2f}")
            shares = [row[f"{side}_temporary_bytes"] / row["output_bytes"] for side in ("jax", "jaxinit")]
            cells.append(f"{shares[0]:.2f} → {shares[1]:.2f}")
        table.add_row(*cells)
    rich.print(table)


def main() -> None:
    key = jax.random.key(0)
    rows = [compiled_row(name, program, key) for name, program in PROGRAMS.items()]
    rows += [eager_row(shape, key) for shape in EAGER_SHAPES]
    report(rows)
    save(rows)


if __name__ == "__main__":
    main()
