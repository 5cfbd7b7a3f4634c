"""Eight CPU devices and strict promotion: every test runs under the conditions in which silent mistakes show."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest


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
