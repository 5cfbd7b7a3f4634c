"""jaxinit.diagnose against one value_and_grad of the same model: python benchmarks/diagnose.py [--seconds 4]

Run time, compile time and peak memory of `diagnose`, with and without the Jacobian, divided by those of a jitted
`value_and_grad` of the same loss, which is the lower bound. Interleaved in one process, float32. Rows are written to
benchmarks/results/diagnose-<hardware>.json. `--quick` measures one model and writes nothing.
"""

import argparse
import json

import jax
import jax.numpy as jnp
from _machine import description, results_file
from _timing import interleaved, median_ratio
from lsuv import compiled, models
from rich.console import Console
from rich.table import Table

import jaxinit

MODELS = (
    "MLP 50 × 128",
    "MLP 50 × 512",
    "ResNet-18, 64²",
    "ResNet-18, batch of 64",
    "transformer, unrolled",
    "transformer, scanned",
)


def loss_fn(output, batch):
    """An arbitrary loss: only its gradient matters."""
    return jnp.mean(output**2)


def row(module, batch, seconds):
    """The ratios for one model."""
    params = jax.jit(module.init)(jax.random.key(0), batch)

    def plain(params, batch):
        return jax.value_and_grad(lambda p: loss_fn(module.apply(p, batch), batch))(params)

    def measured(jacobian):
        return lambda params, batch: jaxinit.diagnose(
            params, module.apply, batch, loss_fn=loss_fn, **({} if jacobian else {"lanczos_steps": 0})
        )

    programs = {"floor": compiled(plain, params, batch)}
    programs |= {name: compiled(measured(name == "full"), params, batch) for name in ("passes", "full")}
    runs = {name: (lambda p=p: jax.block_until_ready(p(params, batch))) for name, (p, *_) in programs.items()}
    times = interleaved(runs, seconds)
    floor = programs["floor"]
    found = {}
    for name in ("passes", "full"):
        _, compiling, memory = programs[name]
        found[f"{name}_run"] = median_ratio(times["floor"], times[name])
        found[f"{name}_compile"] = compiling / floor[1]
        found[f"{name}_memory"] = memory / floor[2]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="time for each model")
    parser.add_argument("--quick", action="store_true", help="one model, nothing written")
    arguments = parser.parse_args()
    chosen = MODELS[:1] if arguments.quick else MODELS
    available = models()
    module, images = available["ResNet-18, 64²"]
    available["ResNet-18, batch of 64"] = module, jnp.tile(images, (4, 1, 1, 1))
    rows = {name: row(*available[name], arguments.seconds) for name in chosen}
    table = Table(title="diagnose over one value_and_grad")
    for column in ("model", "run", "with Jacobian", "compile", "with Jacobian", "memory", "with Jacobian"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, r in rows.items():
        values = (r[f"{which}_{what}"] for what in ("run", "compile", "memory") for which in ("passes", "full"))
        table.add_row(name, *(f"{value:.2f}" for value in values))
    Console().print(table)
    if not arguments.quick:
        results_file("diagnose").write_text(json.dumps({"machine": description(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
