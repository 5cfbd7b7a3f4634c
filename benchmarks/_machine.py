"""What a benchmark was measured on, for its results file."""

import datetime
import os
import platform
from typing import Any

import jax
import numpy as np


def description() -> dict[str, Any]:
    """Date, hardware, load and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
