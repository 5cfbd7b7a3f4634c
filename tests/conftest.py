"""Eight CPU devices and strict promotion: every test runs under the conditions in which silent mistakes show.

LLVM's optimizations are off: most of the time of these tests is compiling, and none of their claims is about speed.
Flags that are given come last and count: XLA_FLAGS=--xla_backend_optimization_level=3 runs what users run.
"""

import gc
import os
from importlib.metadata import version

# On jaxlib 0.10 kernels compile in two thirds of the time without MLIR; later versions have no such choice.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.") and not os.environ.get("XLA_FLAGS")
        else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

# Programs are many small objects, and looking for cycles among them so often takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
