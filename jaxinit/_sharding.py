"""Draws that are born sharded, on meshes whose axes are explicit or automatic."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, auto_axes, get_abstract_mesh

from jaxinit._typing import Array


def sharded(draw: Callable[[Any], Array], key: Any, out_sharding: NamedSharding | PartitionSpec) -> Array:
    """`draw(key)`, each device making its own shard.

    Raises:
      TypeError: `out_sharding` is no sharding.
      ValueError: it is a PartitionSpec, and no mesh is set to which its names could refer.
    """
    if isinstance(out_sharding, NamedSharding):
        mesh: Any = out_sharding.mesh
    elif isinstance(out_sharding, PartitionSpec):
        mesh = get_abstract_mesh()
        if mesh.empty:
            raise ValueError(
                f"out_sharding={out_sharding} names axes of a mesh, and none is set; "
                "enter jax.set_mesh(mesh), or pass a NamedSharding"
            )
    else:
        raise TypeError(f"out_sharding must be a NamedSharding or a PartitionSpec, got {out_sharding!r}")
    if mesh.explicit_axes:
        return auto_axes(draw, axes=mesh.explicit_axes, out_sharding=out_sharding)(key)
    return jax.jit(draw, out_shardings=out_sharding)(key)
