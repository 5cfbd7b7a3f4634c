"""Eight CPU devices and strict promotion: every test runs under the conditions in which silent mistakes show.

Promotions of dtypes and of ranks are errors everywhere, including functions in tests and in examples of docstrings.
Tests of models as others publish them may allow promotions of ranks: see `helpers.promotion`.

LLVM's optimizations are off: these tests spend most of their time compiling, and none of their claims is about speed.
Flags from the environment come last and take precedence: XLA_FLAGS=--xla_backend_optimization_level=3 runs what users
run.
"""

import gc
import os
from importlib.metadata import version

# On jaxlib 0.10 programs compile in half the time without MLIR; later versions have no such choice.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # parts of a program that would be compiled one by one
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.") and not os.environ.get("XLA_FLAGS")
        else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs are many small objects, and frequent searches for cycles among them would take a tenth of the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
