"""jaxinit.trace_layers against jax.make_jaxpr of the same function: python benchmarks/reading.py [--seconds 8]

Nothing is computed: parameters and batch are shapes. A chain of dense layers, doubled in length each time, shows
whether the cost of reading is linear; transformers of 80 unrolled blocks, with and without an embedding, show how it
compares with the trace that JAX needs anyway. Each of the two is given a new function every time, so that neither finds
a trace of an earlier call. Interleaved in one process, medians. Everything runs in Python, on one core, so processor
time is the better measure when the machine has other work. Rows are written to
benchmarks/results/reading-<hardware>.json. `--quick` measures small models and writes nothing.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from _machine import description, results_file
from _timing import interleaved
from rich.console import Console
from rich.table import Table

import jaxinit

LENGTHS = (400, 800, 1600, 3200)
BLOCKS = 80
CLOCKS = ("", ", processor")


def struct(*shape):
    """An array of which only the shape is known."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def chain(length, width=16):
    """Dense layers with biases, one after the other."""

    def apply_fn(params, x):
        for weight, bias in params:
            x = jax.nn.relu(x @ weight + bias)
        return x

    return [(struct(width, width), struct(width))] * length, apply_fn, struct(8, width)


def transformer(blocks, width=64, heads=4, embedded=False):
    """Unrolled blocks of attention and a gated feed-forward network: seven weights per block."""

    def normalized(x, gain):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain

    def block(p, x):
        y = normalized(x, p["attention_norm"])
        query, key, value = (
            (y @ p[name]).reshape(*x.shape[:-1], heads, width // heads) for name in ("query", "key", "value")
        )
        x = x + jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape) @ p["output"]
        y = normalized(x, p["norm"])
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]

    def apply_fn(params, x):
        if embedded:
            x = params["embedding"][x]
        for p in params["blocks"]:
            x = block(p, x)
        return x @ params["embedding"].T if embedded else x

    one = {name: struct(width, width) for name in ("query", "key", "value", "output")}
    one |= {"gate": struct(width, 4 * width), "up": struct(width, 4 * width), "down": struct(4 * width, width)}
    one |= {"attention_norm": struct(width), "norm": struct(width)}
    params = {"blocks": [one] * blocks}
    if not embedded:
        return params, apply_fn, struct(2, 16, width)
    return params | {"embedding": struct(256, width)}, apply_fn, jax.ShapeDtypeStruct((2, 16), jnp.int32)


def models(quick):
    """Every model by its name."""
    lengths, blocks = ((50, 100), 5) if quick else (LENGTHS, BLOCKS)
    found = {f"{length} dense layers": chain(length) for length in lengths}
    found[f"transformer, {blocks} blocks"] = transformer(blocks)
    found[f"transformer, {blocks} blocks, embedding"] = transformer(blocks, embedded=True)
    return found


def row(params, apply_fn, batch, seconds):
    """Seconds of both and their ratio, in wall time and in processor time."""
    processor = {"jaxpr": [], "reading": []}

    def tracing(name, run):
        def call():
            before = time.process_time()
            run(lambda params, batch: apply_fn(params, batch))
            processor[name].append(time.process_time() - before)

        return call

    runs = {
        "jaxpr": tracing("jaxpr", lambda function: jax.make_jaxpr(function)(params, batch)),
        "reading": tracing("reading", lambda function: jaxinit.trace_layers(params, function, batch)),
    }
    times = interleaved(runs, seconds)
    found = {name: float(np.median(some)) for name, some in times.items()}
    found |= {f"{name}, processor": float(np.median(some)) for name, some in processor.items()}
    found["ratio"] = float(np.median(np.divide(times["reading"], times["jaxpr"])))
    found["ratio, processor"] = float(np.median(np.divide(processor["reading"], processor["jaxpr"])))
    return found


def both(row, name, factor, digits):
    """One figure by both clocks, as text."""
    wall, processor = (f"{factor * row[f'{name}{clock}']:.{digits}f}" for clock in CLOCKS)
    return f"{wall} ({processor})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="time for each model")
    parser.add_argument("--quick", action="store_true", help="small models, nothing written")
    arguments = parser.parse_args()
    rows = {name: row(*model, arguments.seconds) for name, model in models(arguments.quick).items()}
    table = Table(title="trace_layers beside jax.make_jaxpr")
    for column in ("model", "make_jaxpr, ms", "trace_layers, ms", "ratio", "to the row above"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.caption = "by the clock (of the processor)"
    before = None
    for name, r in rows.items():
        if before is not None and "dense" in name:
            r |= {f"growth{clock}": r[f"reading{clock}"] / before[f"reading{clock}"] for clock in CLOCKS}
        before = r
        cells = [both(r, "jaxpr", 1e3, 0), both(r, "reading", 1e3, 0), both(r, "ratio", 1, 2)]
        table.add_row(name, *cells, both(r, "growth", 1, 2) if "growth" in r else "–")
    Console().print(table)
    if not arguments.quick:
        results_file("reading").write_text(json.dumps({"machine": description(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
