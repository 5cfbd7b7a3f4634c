"""The cost of the initializers relative to JAX's: eager calls, jitted programs, and importing the package.

Each ratio is jaxinit's time over JAX's, median over interleaved rounds in one process: below 1, jaxinit is faster. The
floor is the bare random draw. Imports are timed in fresh processes, alternating.

    python benchmarks/initializers.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _timing import interleaved, median_ratio
from rich.console import Console
from rich.table import Table

import jaxinit

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "he_uniform": (jaxinit.he_uniform(), jax.nn.initializers.he_uniform()),
    "lecun_normal": (jaxinit.lecun_normal(), jax.nn.initializers.lecun_normal()),
    "normal": (jaxinit.normal(0.02), jax.nn.initializers.normal(0.02)),
    "uniform": (jaxinit.uniform(0.02), jax.nn.initializers.uniform(0.02)),
    "constant": (jaxinit.constant(0.1), jax.nn.initializers.constant(0.1)),
    "zeros": (jaxinit.zeros, jax.nn.initializers.zeros),
}
SHAPES = ((16, 8), (512, 512), (4096, 4096))


def _caller(init: Callable[..., Any], shape: tuple[int, ...], jitted: bool) -> tuple[Callable[[], object], float]:
    """A blocking call, repeated if one is too short to time, and the seconds that compiling it took."""
    key = jax.random.key(0)
    if not jitted:
        calls = 20 if np.prod(shape) < 1e5 else 1
        return lambda: [init(key, shape).block_until_ready() for _ in range(calls)], 0.0
    program = jax.jit(lambda key: init(key, shape))
    began = time.perf_counter()
    compiled = program.lower(key).compile()
    return lambda: compiled(key).block_until_ready(), time.perf_counter() - began


def measure(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for name, (ours, theirs) in PAIRS.items():
        for shape in SHAPES:
            for jitted in (False, True):
                contenders, compile_s = {}, {}
                for label, init in (("jaxinit", ours), ("jax", theirs)):
                    contenders[label], compile_s[label] = _caller(init, shape, jitted)
                if name not in ("constant", "zeros"):
                    draw = jax.random.normal if "normal" in name else jax.random.uniform
                    contenders["floor"], _ = _caller(draw, shape, jitted)
                times = interleaved(contenders, seconds)
                rows.append(
                    {
                        "initializer": name,
                        "shape": list(shape),
                        "mode": "jit" if jitted else "eager",
                        "ratio": 1 / median_ratio(times["jaxinit"], times["jax"]),
                        "jaxinit_ms": 1e3 * statistics.median(times["jaxinit"]),
                        "jax_ms": 1e3 * statistics.median(times["jax"]),
                        "draw_ms": 1e3 * statistics.median(times["floor"]) if "floor" in times else None,
                        "compile_ratio": compile_s["jaxinit"] / compile_s["jax"] if jitted else None,
                        "rounds": len(times["jax"]),
                    }
                )
    return rows


IMPORTS = {
    "import jax, jaxinit": "import jax, jaxinit",
    "the same, and a first initializer": "import jax, jaxinit; jaxinit.he_uniform()",
    "the same, and every name": "import jax, jaxinit; [getattr(jaxinit, name) for name in jaxinit.__all__]",
}


def measure_imports(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a process that imports, over those of one that imports only JAX, alternating."""

    def seconds(program: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        return time.perf_counter() - began

    programs = ["import jax", *IMPORTS.values()]
    turns = [[seconds(program) for program in programs] for _ in range(rounds + 1)][1:]
    return [
        {"mode": "import", "program": name, "ratio": statistics.median(t[i] / t[0] for t in turns), "rounds": rounds}
        for i, name in enumerate(IMPORTS, start=1)
    ]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="time of jaxinit / time of jax.nn.initializers")
    for column in ("initializer", "shape", "mode", "ratio", "jaxinit ms", "jax ms", "bare draw ms", "compile ratio"):
        table.add_column(column, justify="left" if column in ("initializer", "shape", "mode") else "right")
    for row in rows:
        if row["mode"] == "import":
            table.add_row(f"{row['program']} / import jax", "", "process", f"{row['ratio']:.3f}")
            continue
        optional = [f"{row[key]:.3f}" if row[key] is not None else "" for key in ("draw_ms", "compile_ratio")]
        table.add_row(
            row["initializer"],
            "×".join(map(str, row["shape"])),
            row["mode"],
            f"{row['ratio']:.3f}",
            f"{row['jaxinit_ms']:.3f}",
            f"{row['jax_ms']:.3f}",
            *optional,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="budget of each row")
    parser.add_argument("--import-rounds", type=int, default=10)
    arguments = parser.parse_args()
    rows = [*measure(arguments.seconds), *measure_imports(arguments.import_rounds)]
    show(rows, Console(width=130))
    device = jax.devices()[0]
    record = {
        "date": date.today().isoformat(),
        "device": f"{device.platform}, {device.device_kind}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"initializers-{device.platform}-jax{jax.__version__}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
