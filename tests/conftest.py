"""Eight CPU devices and strict promotion: every test runs under the conditions in which silent mistakes show.

Ranks that the library's own code promotes are errors, those that users' functions in the tests promote are not.

LLVM's optimizations are off: most of the time of these tests is compiling, and none of their claims is about speed.
Flags that are given come last and count: XLA_FLAGS=--xla_backend_optimization_level=3 runs what users run.
"""

import gc
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

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

import jaxinit

# Programs are many small objects, and looking for cycles among them so often takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)


_JAX, _OURS = (f"{Path(module.__file__).parent}{os.sep}" for module in (jax, jaxinit))


def _raise_if_ours(message, category, filename, lineno, file=None, line=None):
    """In place of showing a warning: an error, if it was code of the library that called JAX."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename.startswith(_JAX) or frame.f_globals["__name__"] == "warnings"):
        frame = frame.f_back
    if frame and frame.f_code.co_filename.startswith(_OURS):
        raise AssertionError(f"{frame.f_code.co_filename}:{frame.f_lineno}: {message}")


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("warn"), warnings.catch_warnings():
        warnings.filterwarnings("always", message="Following NumPy automatic rank promotion")
        warnings.showwarning = _raise_if_ours
        yield


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
