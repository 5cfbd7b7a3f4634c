"""The first call of each method, in a process of its own: python benchmarks/first_call.py [--models mlp-100 ...]

People call these methods once, before training, so they wait for tracing, compiling and one run. Every figure
comes from a fresh process without a persistent compilation cache; the process of a method and that of its yardstick
alternate. Yardsticks are the first calls of the jitted forward pass (`lsuv`), of the jitted `value_and_grad`
(`diagnose`), of `model.init` (`initialize`), and `jax.make_jaxpr` (`trace_layers`). The programs that XLA compiled are
counted too, in the first call and in a second, equal one: counts do not depend on what else the machine does. Rows are
written to benchmarks/results/first_call-<hardware>.json with `--write`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

SIZES = {"mlp": (3, 100), "cnn": (4,), "resnet": (18,), "transformer": (2, 4, 12, 48), "scanned": (2, 12, 48)}
MODELS = tuple(f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes)
YARDSTICKS = {
    "lsuv": "forward",
    "lsuv-scales": "forward",
    "diagnose": "value_and_grad",
    "initialize": "init",
    "trace_layers": "make_jaxpr",
    "trace-diagnose": "make_jaxpr",
}
"""Method → what it is compared with. `lsuv-scales` is `lsuv(orthonormalize=False)`, `trace-diagnose` only traces."""
SECOND = {"initialize": "jitted-init"}
"""What a second call is compared with, if that is not the second call of the yardstick."""
QUICK = ("mlp-3", "cnn-4", "transformer-2")


def model(name):
    """A module and its batch, by name."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np
    from lsuv import Mlp, ResNet18, Transformer

    class Cnn(nn.Module):
        """Convolutions with pooling, and a readout."""

        layers: int

        @nn.compact
        def __call__(self, x):
            for i in range(self.layers - 1):
                x = nn.relu(nn.Conv(16 * 2**i, (3, 3))(x))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            return nn.Dense(10)(x.reshape(len(x), -1))

    family, _, size = name.partition("-")
    rng = np.random.default_rng(0)
    if family == "mlp":
        return Mlp(int(size), 128), jnp.asarray(rng.normal(size=(256, 128)), jnp.float32)
    if family == "cnn":
        return Cnn(int(size)), jnp.asarray(rng.normal(size=(32, 32, 32, 3)), jnp.float32)
    if family == "resnet":
        return ResNet18(), jnp.asarray(rng.normal(size=(4, 64, 64, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 1000, (8, 64)), jnp.int32)
    return Transformer(family == "scanned", blocks=int(size)), tokens


def calls(module, batch):
    """Name → a function that makes the call and waits for its result."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxinit

    shapes = jax.eval_shape(module.init, jax.random.key(0), batch)
    rng = np.random.default_rng(1)

    def drawn(shape):
        fan_in = max(int(np.prod(shape.shape[:-1])), 1)
        return jnp.asarray(rng.normal(size=shape.shape) / fan_in**0.5, shape.dtype)

    params = jax.tree.map(drawn, shapes)
    apply_fn = module.apply

    def loss(params, batch):
        return jnp.mean(apply_fn(params, batch) ** 2)

    forward, gradient, init = jax.jit(apply_fn), jax.jit(jax.value_and_grad(loss)), jax.jit(module.init)
    key = jax.random.key(0)
    found = {
        "forward": lambda: forward(params, batch),
        "value_and_grad": lambda: gradient(params, batch),
        "init": lambda: module.init(key, batch),
        "jitted-init": lambda: init(key, batch),
        "make_jaxpr": lambda: str(jax.make_jaxpr(lambda p, x: apply_fn(p, x))(params, batch).eqns[0].primitive),
        "lsuv": lambda: jaxinit.lsuv(params, apply_fn, batch),
        "lsuv-scales": lambda: jaxinit.lsuv(params, apply_fn, batch, orthonormalize=False),
        "diagnose": lambda: jaxinit.diagnose(params, apply_fn, batch),
        "initialize": lambda: jaxinit.initialize(key, shapes, apply_fn, batch),
        "trace_layers": lambda: len(jaxinit.trace_layers(shapes, apply_fn, batch)),
        "trace-diagnose": lambda: len(
            jax.make_jaxpr(lambda p, x: jaxinit.diagnose(p, apply_fn, x))(params, batch).eqns
        ),
    }
    return {name: lambda call=call: jax.block_until_ready(call()) for name, call in found.items()}


def one(name, call):
    """One process: seconds and compilations of the first call and of the second."""
    import jax
    import jax.numpy as jnp

    events = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    run = calls(*model(name))[call]
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.float32(1)))  # so that JAX itself has started
    jax.monitoring.register_event_duration_secs_listener(listen)
    found = {}
    for which in ("first", "second"):
        events.clear()
        before = time.perf_counter(), time.process_time()
        run()
        found[which] = {
            "seconds": time.perf_counter() - before[0],
            "processor": time.process_time() - before[1],
            "compilations": len(events),
            "compiling": sum(events),
        }
    return found


def in_a_process(name, call):
    """The results of `one` in a process of its own."""
    left_out = ("JAX_COMPILATION_CACHE", "PYTHONDONTWRITEBYTECODE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    # Python compiles its modules once, before the first figure.
    environment["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), "first_call")
    command = [sys.executable, __file__, "--one", name, call]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, {call}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def row(name, method, repeats):
    """A method and its yardstick on one model: medians over processes that alternate."""
    import numpy as np

    names = list(dict.fromkeys([method, YARDSTICKS[method], SECOND.get(method, method)]))
    runs = {call: [] for call in names}
    for _ in range(repeats):
        for call in names:
            runs[call].append(in_a_process(name, call))
    found = {}
    for call, some in runs.items():
        found[call] = {
            which: {key: float(np.median([r[which][key] for r in some])) for key in some[0][which]}
            for which in ("first", "second")
        }
    first = {call: np.array([r["first"]["seconds"] for r in some]) for call, some in runs.items()}
    second = {call: np.array([r["second"]["seconds"] for r in some]) for call, some in runs.items()}
    yardstick = YARDSTICKS[method]
    found["ratio"] = float(np.median(first[method] / first[yardstick]))
    found["second ratio"] = float(np.median(second[method] / second[SECOND.get(method, yardstick)]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=QUICK, metavar="MODEL", help=f"of {', '.join(MODELS)}, or all")
    methods = ("lsuv", "lsuv-scales", "diagnose", "initialize", "trace_layers")
    parser.add_argument("--methods", nargs="+", default=methods, choices=tuple(YARDSTICKS), metavar="METHOD")
    parser.add_argument("--repeats", type=int, default=1, help="processes for each figure")
    parser.add_argument("--write", action="store_true", help="write the rows to the results of this machine")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "CALL"), help="make one call in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="first call, over that of its yardstick")
    for column in ("model", "method", "s", "yardstick, s", "ratio", "compiled", "yardstick", "second, s", "compiled"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    rows = {}
    in_a_process("mlp-3", arguments.methods[0])
    for name in MODELS if "all" in arguments.models else arguments.models:
        for method in arguments.methods:
            r = rows[f"{name}, {method}"] = row(name, method, arguments.repeats)
            own, other = r[method], r[YARDSTICKS[method]]
            seconds = (f"{own['first']['seconds']:.2f}", f"{other['first']['seconds']:.2f}", f"{r['ratio']:.2f}×")
            counts = (f"{own['first']['compilations']:.0f}", f"{other['first']['compilations']:.0f}")
            second = (f"{own['second']['seconds']:.3f}", f"{own['second']['compilations']:.0f}")
            table.add_row(name, method, *seconds, *counts, *second)
            print(name, method, *seconds, *counts, *second, flush=True)
    Console(width=120).print(table)
    if arguments.write:
        from _machine import description, results_file

        results_file("first_call").write_text(json.dumps({"machine": description(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
