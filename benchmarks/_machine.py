"""The machine that a benchmark runs on, and the results file of that machine."""

import datetime
import os
import pathlib
import platform
import re
from typing import Any

import jax
import numpy as np


def description() -> dict[str, Any]:
    """Date, hardware, load and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def processor() -> str:
    """The name of the processor, if the system reports it."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def results_file(benchmark: str) -> pathlib.Path:
    """benchmarks/results/<benchmark>-<platform>-<processor or accelerator>.json."""
    backend = jax.default_backend()
    hardware = processor() if backend == "cpu" else jax.devices()[0].device_kind
    name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", hardware.lower())).strip("-")
    return pathlib.Path(__file__).parent / "results" / f"{benchmark}-{backend}-{name}.json"
