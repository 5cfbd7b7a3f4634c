"""jaxinit.haar against its peers: python benchmarks/haar.py [--seconds 3] [--quick]

Run time, compile time and peak memory of one jitted program per shape, float32, interleaved in one process.
The floor is a yardstick: the time to draw the necessary Gaussians as fast as this package can and write them to memory,
plus one product with as many flops as the reflectors of an N × k frame need, 2Nk² − 2k³/3. It is not a strict bound:
products of other shapes run at other speeds, and large squares have been a little below it. Rows are written to
benchmarks/results/haar-<hardware>.json, with the load of the machine at that moment.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from _machine import description, results_file
from _timing import interleaved, median_ratio
from rich.console import Console
from rich.table import Table

from jaxinit import haar
from jaxinit._haar._gaussians import normal_pairs

SHAPES = {
    "k ≤ 16, batch ≥ 64": [(1000, 8, 8), (1000, 16, 16)],
    "batched, 32 ≤ k ≤ 128": [(64, 32, 32), (64, 64, 64), (16, 128, 128)],
    "batched, larger": [(16, 512, 512), (32, 2048, 128)],
    "one square, 256–2048": [(256, 256), (512, 512), (1024, 1024), (2048, 2048)],
    "one tall or wide": [(4096, 512), (512, 4096)],
    "one of 64 or less": [(16, 16), (64, 64)],
    "24 kernels in one program": [(512, 512)],
}
KERNELS = {"24 kernels in one program": 24}
"""How many matrices the program of a regime draws one by one, as when a network is initialized, if not one."""
QUICK = {"k ≤ 16, batch ≥ 64": [(1000, 16, 16)], "one of 64 or less": [(64, 64)]}


def jax_contenders(shape):
    """Our sampler, JAX's two and the floor, as functions of a key."""
    *batch, n, m = shape
    rows, columns = max(n, m), min(n, m)
    initializer = jax.nn.initializers.orthogonal()

    def jax_initializer(key):
        if not batch:
            return initializer(key, (n, m))
        return jax.vmap(lambda k: initializer(k, (n, m)))(jax.random.split(key, batch[0]))

    def floor(key):
        needed = rows * columns - columns * (columns - 1) // 2
        draw, other = normal_pairs(key, (*batch, -(-needed // 2)), jnp.float32)
        x = jnp.broadcast_to(draw[..., :1, None], (*batch, rows, columns))
        y = jnp.broadcast_to(other[..., :1, None], (*batch, columns, columns - columns**2 // (3 * rows)))
        return draw, other, jnp.matmul(x, y, precision="highest")

    return {
        "jaxinit": lambda key: haar.orthogonal(key, shape),
        "jax.nn": jax_initializer,
        "jax.random": lambda key: jax.random.orthogonal(key, n, tuple(batch), m=m),
        "floor": floor,
    }


def repeated(function, count):
    """A function of a key that calls another one with this many keys."""
    return lambda key: [function(k) for k in jax.random.split(key, count)]


def other_contenders(shape):
    """torch, NumPy and SciPy; missing ones are named on the console."""
    *batch, n, m = shape
    tall = (*batch, max(n, m), min(n, m))
    rng = np.random.default_rng(0)

    def numpy_qr():
        q, r = np.linalg.qr(rng.standard_normal(tall, np.float32))
        return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]

    contenders = {"numpy": numpy_qr}
    try:
        import torch
    except ImportError:
        Console().print("[bold red]torch is not installed: its column is missing (pip install torch)")
    else:

        def torch_qr():
            q, r = torch.linalg.qr(torch.randn(tall))
            return q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)

        contenders["torch"] = torch_qr if batch else (lambda: torch.nn.init.orthogonal_(torch.empty(n, m)))
    try:
        import scipy.stats
    except ImportError:
        Console().print("[bold red]SciPy is not installed: its column is missing (pip install scipy)")
    else:
        if n == m and n <= 512:
            size = batch[0] if batch else 1
            contenders["scipy"] = lambda: scipy.stats.ortho_group.rvs(n, size=size, random_state=rng)
    return contenders


def measure(shape, seconds, count=1):
    """One row of figures, for a program that draws this many matrices or batches of this shape."""
    key = jax.random.key(0)
    compile_seconds, peak, runs = {}, {}, {}
    for name, function in jax_contenders(shape).items():
        jitted = jax.jit(function if count == 1 else repeated(function, count))
        lowered = jitted.lower(key)
        before = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds[name] = time.perf_counter() - before
        memory = compiled.memory_analysis()
        output = 4 * count * float(np.prod(shape))
        peak[name] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / output
        # As users call it: the result of `compile` goes through Python at each call, which takes some 50 µs more.
        runs[name] = lambda jitted=jitted: jax.block_until_ready(jitted(key))
    for name, function in other_contenders(shape).items():
        runs[name] = lambda function=function: [function() for _ in range(count)]
    times = interleaved(runs, seconds)
    peers = [name for name in runs if name not in ("jaxinit", "floor")]
    ratios = {name: median_ratio(times["jaxinit"], times[name]) for name in peers}
    return {
        "shape": shape,
        "count": count,
        "rounds": len(times["jaxinit"]),
        "median_ms": {name: float(np.median(t)) * 1e3 for name, t in times.items()},
        "peer_over_jaxinit": ratios,
        "against_best_peer": min(ratios.values()),
        "best_peer_over_floor": min(median_ratio(times["floor"], times[name]) for name in peers),
        "compile_seconds": compile_seconds,
        "peak_memory_over_output": peak,
    }


def show(rows):
    """The table on the console."""
    table = Table(title="jaxinit.haar.orthogonal, median ms, float32")
    names = list(dict.fromkeys(name for row in rows for name in row["median_ms"]))
    for column in ("shape", *names, "against best peer", "peer / floor", "compile / JAX's", "memory / output"):
        table.add_column(column, justify="right")
    for row in rows:
        times = [f"{row['median_ms'][n]:.2f}" if n in row["median_ms"] else "–" for n in names]
        compiling = row["compile_seconds"]["jaxinit"] / row["compile_seconds"]["jax.nn"]
        table.add_row(
            (f"{row['count']} of " if row["count"] > 1 else "") + " × ".join(map(str, row["shape"])),
            *times,
            f"{row['against_best_peer']:.2f}×",
            f"{row['best_peer_over_floor']:.1f}×",
            f"{compiling:.1f}×",
            f"{row['peak_memory_over_output']['jaxinit']:.1f}×",
        )
    Console(width=150).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="budget for each shape")
    parser.add_argument("--quick", action="store_true", help="two shapes, nothing written")
    arguments = parser.parse_args()
    shapes = QUICK if arguments.quick else SHAPES
    rows = []
    for regime, members in shapes.items():
        for shape in members:
            rows.append({"regime": regime, **measure(shape, arguments.seconds, KERNELS.get(regime, 1))})
            Console().print(shape, f"{rows[-1]['against_best_peer']:.2f}×", style="dim")
            if not arguments.quick:
                # After every row, so that a run that is interrupted keeps what it has measured.
                save(rows)
    show(rows)


def save(rows):
    """The rows so far, with the machine that they were measured on."""
    report = {**description(), "rows": rows}
    results_file("haar").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
