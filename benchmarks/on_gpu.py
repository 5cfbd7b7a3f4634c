"""Everything about one accelerator in a few minutes: python benchmarks/on_gpu.py --out FOLDER [--seconds 420]

Made for a machine that is available only briefly: it needs jaxinit's dependencies, CUDA wheels of JAX, and PyTorch if
its figures are wanted, and downloads nothing. It checks whether Haar's law, the bits of draws and the numbers of the
methods are right on the device. It measures the Haar sampler against cuSOLVER's QR, JAX's samplers and PyTorch's, and
`lsuv`, `diagnose` and `initialize` against the model's own forward pass, gradient and `init`, the random draws, and a
study. It also tries other panel widths, inverses and products.

Each row is written to FOLDER/on-gpu-<accelerator>.json as soon as it exists. A row that fails is kept with its
traceback, and a row for which no time is left says so. `--rehearse` runs the same code with tiny sizes on any device;
`--show FILE` prints the tables of a file.

The first call of a program, which compiles it, is timed; later programs may find products and convolutions that
XLA has already tuned.
"""

import argparse
import faulthandler
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

from rich.console import Console

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch", "jax-cuda13-plugin", "jax-cuda12-plugin")
CONSOLE = Console(width=180)


def machine():
    """What the run is measured on."""
    import jax
    import jax.extend.backend
    from _machine import description

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        **description(),
        "accelerator": device.device_kind,
        "platform": device.platform,
        "runtime": jax.extend.backend.get_backend().platform_version,
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "driver": driver(),
        "versions": versions,
    }


def driver():
    """The driver's version as reported by nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def measure(record, rehearse, only, share):
    """All sections, or those named with their seconds; a share of one means 420 seconds."""
    from gpu import checks, haar_speed, models, speed

    large = models.large(rehearse)  # made when a row needs one
    sections = (
        ("haar, by default", 90, haar_speed.by_default(record, rehearse)),
        ("haar, compiling", 25, haar_speed.compiling(record, rehearse)),
        ("checks: law", 40, checks.haar_law(rehearse)),
        ("ceilings", 8, speed.ceilings(rehearse)),
        ("haar", 120, haar_speed.against_peers(record, rehearse)),
        ("lsuv", 75, speed.lsuv(large, rehearse)),
        ("checks: numbers", 25, checks.numbers(rehearse)),
        ("torch", 22, torch_rows(record, rehearse)),
        ("checks: methods", 30, checks.methods()),
        ("draws", 12, speed.draws(rehearse)),
        ("haar, tuning", 40, haar_speed.tuning(record, rehearse)),
        ("studies", 12, speed.studies(rehearse)),
        ("diagnose", 20, speed.diagnose(large)),
        ("initialize", 6, speed.initialize(large)),
        ("haar, few columns", 10, haar_speed.few_columns(record, rehearse)),
    )
    known = {name: (seconds * share, rows) for name, seconds, rows in sections}
    if unknown := [name for name in only if name not in known]:
        sys.exit(f"no sections {unknown}; there are {list(known)}")
    for name, seconds in (only or dict.fromkeys(known)).items():
        usual, rows = known[name]
        record.section(name, usual if seconds is None else seconds, rows)


def section_and_seconds(text):
    """NAME or NAME=SECONDS."""
    name, _, seconds = text.partition("=")
    return name, float(seconds) if seconds else None


def torch_rows(record, rehearse):
    """PyTorch's figures, all in one row."""
    from gpu import haar_speed, speed, torch_peers

    def row():
        shapes = [list(shape) for shape in haar_speed.shapes(rehearse)]
        return torch_peers.started(shapes, list(speed.draw_shape(rehearse)), max(record.left(), 20.0))

    yield "samplers and draws", row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder of the JSON file")
    parser.add_argument("--seconds", type=float, default=420.0, help="no row starts after so many")
    parser.add_argument(
        "--only",
        nargs="+",
        type=section_and_seconds,
        metavar="SECTION[=SECONDS]",
        help="only these sections, in this order, such as: haar 'haar, tuning=30'",
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--show", type=pathlib.Path, metavar="FILE", help="only print the tables of a file")
    arguments = parser.parse_args()
    from gpu.tables import show

    if arguments.show is not None:
        show(json.loads(arguments.show.read_text()), CONSOLE)
        return
    if arguments.out is None:
        parser.error("--out is needed, unless --show is given")
    # A call that hangs, in a library or in the driver, must not use up the machine's time.
    faulthandler.dump_traceback_later(arguments.seconds + 60, exit=True)
    from gpu.record import Record

    about = machine()
    if about["platform"] == "cpu" and not arguments.rehearse:
        sys.exit("JAX finds no accelerator here; --rehearse runs tiny sizes on a CPU")
    name = "rehearsal" if arguments.rehearse else re.sub(r"[^a-z0-9]+", "-", about["accelerator"].lower()).strip("-")
    record = Record(arguments.out / f"on-gpu-{name}.json", about, arguments.seconds)
    measure(record, arguments.rehearse, dict(arguments.only or ()), arguments.seconds / 420)
    show(record.report, CONSOLE)
    print(f"written to {record.path}")


if __name__ == "__main__":
    main()
