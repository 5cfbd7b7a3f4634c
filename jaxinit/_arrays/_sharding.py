"""Draws that are sharded from the start, and arithmetic that ignores meshes, with explicit or automatic axes."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, auto_axes, get_abstract_mesh

from jaxinit._arrays._eager import outside_traces
from jaxinit._caches import kept_with_functions
from jaxinit._typing import Array


def sharded(draw: Callable[[Any], Array], key: Any, out_sharding: NamedSharding | PartitionSpec) -> Array:
    """`draw(key)`, where each device computes its own shard.

    Raises:
      TypeError: `out_sharding` is not a sharding.
      ValueError: it is a PartitionSpec, and no mesh is set that its names could refer to.
    """
    if isinstance(out_sharding, NamedSharding):
        mesh: Any = out_sharding.mesh
    elif isinstance(out_sharding, PartitionSpec):
        mesh = get_abstract_mesh()
        if mesh.empty:
            raise ValueError(
                f"out_sharding={out_sharding} names axes of a mesh, but no mesh is set; "
                "enter jax.set_mesh(mesh), or pass a NamedSharding"
            )
    else:
        raise TypeError(f"out_sharding must be a NamedSharding or a PartitionSpec, got {out_sharding!r}")
    if mesh.explicit_axes:
        return auto_axes(draw, axes=mesh.explicit_axes, out_sharding=out_sharding)(key)
    try:
        program = _program(*_by_value(draw), out_sharding)
    except TypeError:  # something cannot be compared by value
        program = jax.jit(draw, out_shardings=out_sharding)
    drawn: Array = program(key)
    return drawn


def whole_array(x: Any) -> Any:
    """An array whose elements can be read here: all processes gather what none of them has whole."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    if x.is_fully_replicated:
        return x.addressable_data(0)
    return outside_traces(lambda: multihost_utils.process_allgather(x, tiled=True))


@kept_with_functions(64)
def _program(owner: Any, function: Callable[..., Array], options: Any, out_sharding: Any) -> Callable[[Any], Array]:
    """The compiled draw of an initializer, which equal initializers share."""
    own = () if owner is None else (owner,)
    return jax.jit(functools.partial(function, *own, **dict(options)), out_shardings=out_sharding)


def _by_value(draw: Any) -> tuple[Any, Any, Any]:
    """The object whose method a draw is, the method, and its options.

    Raises:
      TypeError: it is not a function with options, or it holds a user's functions, which a cache must not keep alive.
    """
    if not isinstance(draw, functools.partial) or draw.args:
        raise TypeError
    owner, function = getattr(draw.func, "__self__", None), getattr(draw.func, "__func__", draw.func)
    if _holds_functions(owner):
        raise TypeError
    return owner, function, tuple(sorted(draw.keywords.items()))


def _holds_functions(x: Any) -> bool:
    if isinstance(x, types.FunctionType | types.MethodType | functools.partial):
        return True
    inner = x if isinstance(x, tuple) else vars(x).values() if dataclasses.is_dataclass(x) else ()
    return any(map(_holds_functions, inner))


def with_automatic_axes(function: Callable[..., Any], *arguments: Any, like: Any = None) -> Any:
    """`function(*arguments)`, where the compiler decides how intermediate values are sharded.

    On a mesh with explicit axes each operation must know how its result is sharded, and products, reshapes and slices
    of sharded axes often do not. Results are sharded as the arrays in `like`, a pytree of their structure, or
    replicated. Elsewhere this is the plain call. What `function` closes over must not be sharded.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves((arguments, like)))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*arguments)
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding_of(x: Any) -> NamedSharding:
        found = jax.typeof(x).sharding
        return replicated if found.mesh.empty else found

    wanted = replicated if like is None else jax.tree.map(sharding_of, like)
    return auto_axes(function, axes=mesh.explicit_axes, out_sharding=wanted)(*arguments)
