"""Runs Python in several processes of four CPU devices or so each, which JAX connects, on loopback."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

_CONNECT = """
import sys
import jax
address, count, number = sys.argv[1:4]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(number))
jax.config.update("jax_numpy_dtype_promotion", "strict")
"""


def environment(devices):
    """The environment of a process with this many CPU devices, which compiles as this one does."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def in_processes(count, devices, code, *arguments):
    """What each process prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _CONNECT + code, address, str(count)]
    running = [
        subprocess.Popen([*command, str(number), *map(str, arguments)], env=environment(devices), **pipes)
        for number in range(count)
    ]
    outputs = []
    try:
        for process in running:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            outputs.append(output)
    finally:
        for process in running:
            process.kill()
    return outputs
