"""jaxinit on a cluster, where several processes have some devices each: srun python examples/many_processes.py

Every process runs this script and makes the same calls. `jax.distributed.initialize()` learns the other processes from
SLURM, from Open MPI or from a cloud. Parameters and batches are arrays of all processes: each draws and holds its own
shards. `study` shares its seeds among the processes, and the first of them writes its file; it can be continued with
other devices and another number of processes.

To try it on one machine: python examples/many_processes.py --local 2, which starts two processes of four CPU devices.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=int, help="start this many processes on this machine, with CPU devices")
    parser.add_argument("--devices", type=int, default=4, help="CPU devices of each of those")
    parser.add_argument("--path", help="a file for the study, on a disk that all processes see or only the first")
    parser.add_argument("--out", help="a file for the results, as JSON")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of the study")
    parser.add_argument("--part", choices=["model", "study", "both"], default="both", help="what to run")
    parser.add_argument("--process", help=argparse.SUPPRESS)  # address,count,number
    arguments = parser.parse_args()
    if arguments.local:
        sys.exit(start(arguments.local, arguments.devices))
    connect(arguments.process)
    import jax

    found = {"processes": jax.process_count()}
    if arguments.part != "study":
        found |= whole_model()
    if arguments.part != "model":
        found |= study(arguments.path, arguments.seeds)
    if jax.process_index() == 0:
        print(json.dumps(found, indent=1))
        if arguments.out:
            with open(arguments.out, "w") as file:
                json.dump(found, file)


def start(processes, devices):
    """Starts the processes on this machine, as a cluster would, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    options = [sys.executable, *sys.argv, "--local", "0", "--process"]
    running = [
        subprocess.Popen([*options, f"{address},{processes},{number}"], env=environment) for number in range(processes)
    ]
    return max(process.wait() for process in running)


def connect(process):
    """Connects the processes, before JAX is asked for its devices."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs; GPUs have their own
    if process is None:
        jax.distributed.initialize()  # SLURM, Open MPI or a cloud provides the rest
        return
    address, count, number = process.split(",")
    if int(count) > 1:
        jax.distributed.initialize(address, int(count), int(number))


def net(params, x):
    """A deep network with ReLUs."""
    import jax

    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def shapes(sharding=None):
    """The shapes of the parameters; matrices are split by columns over the devices of the axis "model"."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    def shape(*sizes):
        where = sharding(PartitionSpec(*[None] * (len(sizes) - 1), "model")) if sharding else None
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=where)

    widths = [16, 32, 32, 32, 4]
    return [{"w": shape(n, m), "b": shape(m)} for n, m in itertools.pairwise(widths)]


def samples(count=64):
    """Inputs and targets; every process can make, or read, all of them or only its own."""
    import numpy as np

    x = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    return x, np.sin(x[:, :4])


def whole_model():
    """Draws, scales and diagnoses one model that is spread over all devices."""
    import functools

    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import jaxinit

    count = jax.device_count()
    columns = 2 if count % 2 == 0 else 1
    mesh = jax.make_mesh((columns, count // columns), ("model", "data"), axis_types=(AxisType.Auto,) * 2)
    on = functools.partial(NamedSharding, mesh)

    x, _ = samples()
    batch = jax.make_array_from_callback(x.shape, on(PartitionSpec("data")), lambda rows: x[rows])

    params = jaxinit.initialize(jax.random.key(0), shapes(on), net, batch)
    scaled, report = jaxinit.lsuv(params, net, batch, return_report=True)
    diagnosis = jaxinit.diagnose(scaled, net, batch)
    if jax.process_index() == 0:
        print(report, diagnosis, sep="\n")

    sizes = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.linalg.norm(leaf), tree))
    leaves = jax.tree.leaves(scaled)
    here = {str(shard.index) for shard in leaves[1].addressable_shards}
    return {
        "initialize": jax.tree.map(float, sizes(params)),
        "lsuv": jax.tree.map(float, sizes(scaled)),
        "diagnose": diagnosis.to_dict(),
        "shardings": [str(leaf.sharding.spec) for leaf in leaves],
        "shards of a matrix here": len(here),
    }


def study(path, seeds):
    """Compares starts; the processes share the seeds."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxinit

    def loss(params, batch):
        return jnp.mean((net(params, batch[0]) - batch[1]) ** 2)

    result = jaxinit.study(
        {"auto": "auto", "torch": "torch_default", "LSUV": jaxinit.lsuv}, shapes(), loss, samples(),
        optimizer=optax.adam, learning_rates=[1e-2, 1e-3], steps=20, seeds=seeds, batch_size=16, path=path,
    )  # fmt: skip
    if jax.process_index() == 0:
        print(result)
    return {"study": result.losses[..., -1].tolist(), "best": result.best(), "devices": result.settings["devices"]}


if __name__ == "__main__":
    main()
