"""A model of 70 billion parameters by its shapes alone, for 64 devices: python benchmarks/scale.py [--quick]

80 blocks of width 8192, as a scan over stacked weights and unrolled, each matrix cut over 64 devices along heads,
units or the vocabulary. `initialize` and `lsuv` are traced, lowered and compiled with `out_shardings`, and nothing is
run: the devices are fake, and no array is ever made. Times are in multiples of the same for the model's own `init`,
which draws every matrix by `jax.random.normal`; beside them the bytes on each device, how many whole matrices the
program gathers, and the largest array that it gathers. A second table compiles orthogonal draws of one matrix of
width × width that is cut along its columns.

Each row has a process of its own. Rows are written to benchmarks/results/scale-<hardware>.json. `--quick` compiles
small models and writes nothing.
"""

import argparse
import functools
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from _machine import description, results_file
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

import jaxinit

DEVICES = 64


class Size(NamedTuple):
    """Of a transformer with gated feed-forward layers and grouped queries."""

    blocks: int
    width: int
    heads: int
    groups: int
    hidden: int
    vocabulary: int
    tokens: tuple[int, int]


SIZES = {
    "full": Size(80, 8192, 64, 8, 28672, 32000, (8, 512)),
    "quick": Size(3, 512, 64, 8, 1024, 1536, (2, 16)),
}
FORMS = ("scanned", "unrolled")
ROWS = ("init", "initialize", "forward", "lsuv without orthonormalization", "lsuv")
DRAWS = ("jax.random.orthogonal", "jaxinit.orthogonal", "blocks of columns", "normal")


def mesh():
    """All devices, on one axis."""
    return jax.make_mesh((DEVICES,), ("model",), axis_types=(AxisType.Auto,))


def shapes(size, scanned):
    """The parameters, each with its sharding."""
    where = mesh()

    def leaf(*sizes, cut, stacked=True):
        stack = (size.blocks,) if scanned and stacked else ()
        names = [None] * len(sizes)
        if cut is not None:
            names[cut] = "model"
        spec = PartitionSpec(*[None] * len(stack), *names)
        return jax.ShapeDtypeStruct((*stack, *sizes), jnp.float32, sharding=NamedSharding(where, spec))

    def block():
        narrow = size.width * size.groups // size.heads
        return {
            "attention norm": leaf(size.width, cut=None),
            "q": leaf(size.width, size.width, cut=1),
            "k": leaf(size.width, narrow, cut=1),
            "v": leaf(size.width, narrow, cut=1),
            "o": leaf(size.width, size.width, cut=0),
            "norm": leaf(size.width, cut=None),
            "gate": leaf(size.width, size.hidden, cut=1),
            "up": leaf(size.width, size.hidden, cut=1),
            "down": leaf(size.hidden, size.width, cut=0),
        }

    return {
        "embedding": leaf(size.vocabulary, size.width, cut=1, stacked=False),
        "blocks": block() if scanned else [block() for _ in range(size.blocks)],
        "norm": leaf(size.width, cut=None, stacked=False),
        "readout": leaf(size.width, size.vocabulary, cut=1, stacked=False),
    }


def normalized(x, scale):
    """RMS normalization."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def block(size, x, p):
    """Attention with grouped queries, and a gated feed-forward layer."""
    batch, length, width = x.shape
    head = width // size.heads
    h = normalized(x, p["attention norm"])
    q = (h @ p["q"]).reshape(batch, length, size.groups, size.heads // size.groups, head)
    k, v = ((h @ p[name]).reshape(batch, length, size.groups, head) for name in "kv")
    scores = jnp.einsum("blghd,bmgd->bghlm", q, k) / math.sqrt(head)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    y = jnp.einsum("bghlm,bmgd->blghd", jax.nn.softmax(scores), v)
    x = x + y.reshape(x.shape) @ p["o"]
    h = normalized(x, p["norm"])
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def apply(size, params, tokens):
    """The logits."""
    x = params["embedding"][tokens]
    if isinstance(params["blocks"], dict):
        x, _ = jax.lax.scan(lambda x, p: (block(size, x, p), None), x, params["blocks"])
    else:
        for p in params["blocks"]:
            x = block(size, x, p)
    return normalized(x, params["norm"]) @ params["readout"]


def init(like, key):
    """The model's own start."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)

    def draw(key, named):
        path, leaf = named
        if "norm" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape)
        return jax.random.normal(key, leaf.shape) / math.sqrt(leaf.shape[-2])

    return jax.tree.unflatten(structure, list(map(draw, jax.random.split(key, len(leaves)), leaves)))


def task(what, size, scanned):
    """The function, its arguments as shapes, and the shardings of its results."""
    like = shapes(size, scanned)
    out = jax.tree.map(lambda leaf: leaf.sharding, like)
    net = functools.partial(apply, size)
    everywhere = NamedSharding(mesh(), PartitionSpec())
    tokens = jax.ShapeDtypeStruct(size.tokens, jnp.int32, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if what == "init":
        return functools.partial(init, like), (key,), out
    if what == "initialize":
        return lambda key: jaxinit.initialize(key, like, net, tokens), (key,), out
    if what == "forward":
        return net, (like, tokens), NamedSharding(mesh(), PartitionSpec(None, None, "model"))
    orthonormalize = what == "lsuv"
    method = functools.partial(jaxinit.lsuv, orthonormalize=orthonormalize)
    return lambda params, tokens: method(params, net, tokens), (like, tokens), out


def draw(what, size):
    """The same for the draw of one matrix."""
    n = size.width
    out = NamedSharding(mesh(), PartitionSpec(None, "model"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    methods = {
        "jax.random.orthogonal": lambda key: jax.random.orthogonal(key, n),
        "jaxinit.orthogonal": lambda key: jaxinit.orthogonal()(key, (n, n)),
        "blocks of columns": lambda key: jaxinit.blocked(jaxinit.orthogonal(), 1, DEVICES)(key, (n, n)),
        "normal": lambda key: jaxinit.lecun_normal()(key, (n, n)),
    }
    return methods[what], (key,), out


def gathers(text, matrices):
    """How many all-gathers have as many numbers as a whole matrix, or a stack of them, and those of the largest."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= \(?\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", line)
        if match:
            found.append(math.prod(int(n) for n in match.group(1).split(",") if n))
    return {"whole matrices": sum(n in matrices for n in found), "numbers of the largest": max(found, default=0)}


def measured(function, arguments, out, matrices):
    """Seconds of each phase, bytes on a device, what is gathered."""
    jax.jit(lambda x: x + 1).lower(1.0).compile()  # what the first program of a process pays
    times = [time.perf_counter()]
    traced = jax.jit(function, out_shardings=out).trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    program = lowered.compile()
    times.append(time.perf_counter())
    memory = program.memory_analysis()
    trace, lower, compile_ = (b - a for a, b in itertools.pairwise(times))
    flops = program.cost_analysis().get("flops", math.nan)
    return {
        "seconds": {"trace": trace, "lower": lower, "compile": compile_, "all": times[-1] - times[0]},
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        },
        "flops on a device": flops,
        "gathers": gathers(program.as_text(), matrices),
    }


def one(form, what, size):
    """One row, in this process."""
    if form == "draw":
        return measured(*draw(what, size), {size.width**2})
    leaves = jax.tree_util.tree_flatten_with_path(shapes(size, form == "scanned"))[0]
    matrices = {leaf.size for path, leaf in leaves if "norm" not in jax.tree_util.keystr(path)}
    return measured(*task(what, size, form == "scanned"), matrices | {n // size.blocks for n in matrices})


def in_a_process(form, what, name, seconds):
    """One row, or why there is none."""
    command = [sys.executable, __file__, "--row", form, what, name]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else str(done.returncode)}
    return json.loads(done.stdout.splitlines()[-1])


def show(report):
    """The tables on the console."""
    for form, rows in report["rows"].items():
        base = rows.get("init" if form != "draw" else "normal", {}).get("seconds", {}).get("all", math.nan)
        table = Table(
            title=f"{form}: seconds, over those of {'init' if form != 'draw' else 'a normal draw'}; MB a device"
        )
        for column in (
            "",
            "trace",
            "lower",
            "compile",
            "over",
            "arguments",
            "results",
            "temporary",
            "gathered",
            "largest",
        ):
            table.add_column(column, justify="left" if not column else "right")
        for what, row in rows.items():
            if "failed" in row:
                table.add_row(what, row["failed"][:60])
                continue
            cells = [f"{row['seconds'][phase]:.1f}" for phase in ("trace", "lower", "compile")]
            cells += [f"{row['seconds']['all'] / base:.2f}×"]
            cells += [f"{row['bytes'][kind] / 1e6:,.0f}" for kind in ("arguments", "results", "temporary")]
            found = row["gathers"]
            cells += [str(found["whole matrices"]), f"{found['numbers of the largest'] * 4e-6:,.0f}"]
            table.add_row(what, *cells)
        Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, nothing written")
    parser.add_argument("--only", nargs="*", choices=[*FORMS, "draw"], default=[*FORMS, "draw"])
    parser.add_argument("--what", nargs="*", choices=[*ROWS, *DRAWS], default=[*ROWS, *DRAWS], help="rows to measure")
    parser.add_argument("--seconds", type=float, default=1200.0, help="for each row at most")
    parser.add_argument("--row", nargs=3, metavar=("FORM", "WHAT", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        form, what, name = arguments.row
        print(json.dumps(one(form, what, SIZES[name])))
        return
    name, file = "quick" if arguments.quick else "full", results_file("scale")
    rows = json.loads(file.read_text())["rows"] if file.exists() and not arguments.quick else {}
    report = {**description(), "size": SIZES[name]._asdict(), "devices": DEVICES, "rows": rows}
    for form in arguments.only:
        report["rows"].setdefault(form, {})
        for what in (row for row in (DRAWS if form == "draw" else ROWS) if row in arguments.what):
            report["rows"][form][what] = in_a_process(form, what, name, arguments.seconds)
            Console().print(form, what, report["rows"][form][what], style="dim")
            if not arguments.quick:
                file.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    main()
