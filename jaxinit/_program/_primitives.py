"""JAX's primitives: the one file that touches JAX's extension API, which changes between releases.

A primitive is looked up by name in `jax.extend` or `jax.lax`, once, here; everywhere else primitives are compared by
identity. If this JAX does not have a primitive, it becomes an `Absent` object, which no equation has, so rules for it
are never used. A primitive that is new in this JAX is not in any table, and is opaque.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from jaxinit._arrays import outside_traces

Literal = jex.Literal
Tracer = jax.core.Tracer
jaxpr_as_fun = jex.jaxpr_as_fun
jaxprs_in_params = jex.jaxprs_in_params
JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr)
"""The classes of programs that JAX has traced; in later versions they are a single class."""


@dataclasses.dataclass(frozen=True, eq=False)
class Absent:
    """A primitive that this version of JAX does not have."""

    name: str


def primitive(name: str) -> Any:
    """The primitive of this name without its `_p`, or an `Absent`."""
    for module in (jexp, lax):
        found = getattr(module, f"{name}_p", None)
        if found is not None:
            return found
    return Absent(name)


def name_of(known: Any) -> str:
    """The name by which `primitive` finds a primitive.

    Raises:
      LookupError: there is no such name.
    """
    names = {id(value): name for module in (lax, jexp) for name, value in vars(module).items() if name.endswith("_p")}
    if id(known) not in names:
        raise LookupError(f"the primitive {known} is in neither jax.lax nor jax.extend")
    return names[id(known)].removesuffix("_p")


def _only_primitive(function: Any, *shapes: Any) -> Any:
    """The primitive of a function that is traced to one equation, for primitives that JAX does not name anywhere."""
    try:
        # This file may be imported on a mesh with explicit axes, where products must be told how to be sharded.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            (equation,) = jax.make_jaxpr(function)(*shapes).jaxpr.eqns
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return Absent(getattr(function, "__name__", "unnamed"))
    return equation.primitive


def _ragged_dot() -> Any:
    shapes = (jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((1, 1, 1), jnp.float32))
    return _only_primitive(lambda x, w, n: lax.ragged_dot(x, w, n), *shapes, jax.ShapeDtypeStruct((1,), jnp.int32))


def _reshard() -> Any:
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return _only_primitive(lambda x: jax.sharding.reshard(x, sharding), jax.ShapeDtypeStruct((), jnp.float32))


# Programs within programs.
jit_p, closed_call_p, remat_p = (primitive(name) for name in ("jit", "closed_call", "remat"))
custom_jvp_call_p, custom_vjp_call_p = primitive("custom_jvp_call"), primitive("custom_vjp_call")
scan_p, cond_p, while_p = (primitive(name) for name in ("scan", "cond", "while"))

# Products.
dot_general_p, conv_p, ragged_dot_p = primitive("dot_general"), primitive("conv_general_dilated"), _ragged_dot()

# Indexing.
gather_p, dynamic_slice_p = primitive("gather"), primitive("dynamic_slice")
dynamic_update_slice_p = primitive("dynamic_update_slice")

# Arithmetic.
add_p, sub_p, mul_p, div_p = (primitive(name) for name in ("add", "sub", "mul", "div"))
add_any_p = primitive("add_jaxvals")
neg_p, abs_p = primitive("neg"), primitive("abs")
integer_pow_p, square_p, sqrt_p, rsqrt_p = (primitive(name) for name in ("integer_pow", "square", "sqrt", "rsqrt"))
max_p, min_p, select_p = (primitive(name) for name in ("max", "min", "select_n"))
exp_p, exp2_p = primitive("exp"), primitive("exp2")
eq_p, lt_p = primitive("eq"), primitive("lt")
complex_p = primitive("complex")

# Rearranging.
reshape_p, transpose_p, squeeze_p, rev_p = (primitive(name) for name in ("reshape", "transpose", "squeeze", "rev"))
broadcast_p, slice_p = primitive("broadcast_in_dim"), primitive("slice")
concatenate_p, pad_p, split_p, tile_p = (primitive(name) for name in ("concatenate", "pad", "split", "tile"))
stack_p, unstack_p = primitive("stack"), primitive("unstack")

# Reducing.
reduce_max_p, reduce_sum_p = primitive("reduce_max"), primitive("reduce_sum")

# Others.
convert_p, iota_p, copy_p = (primitive(name) for name in ("convert_element_type", "iota", "copy"))
device_put_p, stop_gradient_p = primitive("device_put"), primitive("stop_gradient")
optimization_barrier_p = primitive("optimization_barrier")
random_bits_p = primitive("random_bits")


@functools.cache
def _outside() -> Any:
    return outside_traces(lambda: jex.get_opaque_trace_state(convention="nnx"))


def is_outside() -> bool:
    """Whether no transformation is running."""
    return bool(jex.get_opaque_trace_state(convention="nnx") == _outside())


class Computation(NamedTuple):
    """What an equation of `hosted_p` computes: arrays by JAX, or the same by NumPy, in results of these shapes."""

    by_jax: Callable[..., Sequence[Any]]
    by_numpy: Callable[..., Sequence[Any]]
    shapes: tuple[jax.ShapeDtypeStruct, ...]


hosted_p = jex.Primitive("hosted")
"""A computation that is traced as late as possible, because NumPy may do it instead."""
hosted_p.multiple_results = True
hosted_p.def_abstract_eval(lambda *_, computation: [jax.core.ShapedArray(s.shape, s.dtype) for s in computation.shapes])
mlir.register_lowering(
    hosted_p, mlir.lower_fun(lambda *values, computation: computation.by_jax(*values), multiple_results=True)
)


_CONTEXT = (
    "compute_type",
    "threefry_partitionable",
    "cur_abstract_mesh",
    "cur_layout_mode",
    "no_collectives",
    "remove_size_one_mesh_axis",
    "xla_metadata",
)
"""Settings around an equation that change what it is compiled to."""


def context_key(context: Any) -> Hashable:
    """What surrounds an equation, as a value to compare by."""
    found = tuple(getattr(context, name, None) for name in _CONTEXT)
    try:
        hash(found)
    except TypeError:
        return repr(found)
    return found


def family(*names: str) -> frozenset[Any]:
    """The primitives among these names that this JAX has."""
    return frozenset(p for p in map(primitive, names) if not isinstance(p, Absent))


PLACES = frozenset({*family("sharding_constraint", "shard_map", "reshard"), _reshard(), device_put_p})
"""Primitives that say on which devices values are."""

ADDITIONS = frozenset({add_p, sub_p, add_any_p})
"""Sums and differences of two operands."""

CALLS = {
    jit_p: "jaxpr",
    closed_call_p: "call_jaxpr",
    remat_p: "jaxpr",
    custom_jvp_call_p: "call_jaxpr",
    custom_vjp_call_p: "call_jaxpr",
}
"""Calls, and which of their parameters holds the program."""

WITH_DERIVATIVES = {custom_jvp_call_p, custom_vjp_call_p}
"""Calls of functions with custom derivatives."""

CONTRACTIONS = {dot_general_p, ragged_dot_p, conv_p, gather_p}
"""Primitives that layers are made of."""

IDENTITIES = frozenset(
    {
        *family("convert_element_type", "copy", "reduce_precision", "sharding_constraint", "device_put", "name"),
        *family("stop_gradient", "optimization_barrier", "pvary"),
        _reshard(),
    }
)
"""Primitives with one operand that return the same numbers."""

IDENTITIES_OF_MANY: dict[Any, tuple[str, ...]] = {
    device_put_p: ("devices", "srcs", "copy_semantics"),
    optimization_barrier_p: (),
}
"""Primitives with any number of operands, and their parameters with an entry for each operand."""

SCALE_FREE = family("sign", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "is_finite", "atan2")
"""Unchanged when all operands are multiplied by the same s > 0."""

ELEMENTWISE = frozenset(
    {
        *IDENTITIES - {optimization_barrier_p},
        *family("add", "sub", "mul", "div", "add_jaxvals", "neg", "abs", "sign", "integer_pow", "square", "sqrt"),
        *family("rsqrt", "max", "min", "select_n", "clamp", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh"),
        *family("bessel_i0e", "bessel_i1e", "cbrt", "ceil", "cos", "cosh", "digamma", "erf", "erfc", "erf_inv", "exp"),
        *family("exp2", "expm1", "floor", "is_finite", "lgamma", "log", "log1p", "logistic", "nextafter", "pow"),
        *family("rem", "round", "sin", "sinh", "tan", "tanh", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"),
        *family("xor", "log2", "one_minus_square", "polynomial", "shift_left", "shift_right_logical"),
        *family("shift_right_arithmetic", "bitcast_convert_type"),
    }
)
"""Functions of one number, or of several numbers at the same position."""


def _names(module: Any) -> Iterator[Any]:
    for name in dir(module):
        if name.endswith("_p"):
            yield getattr(module, name)


# Everything that the extension API or `jax.lax` names, except for solvers, whose matrix is not a kernel.
NAMED = frozenset({*_names(jexp), *_names(lax), *IDENTITIES, *CONTRACTIONS} - {primitive("triangular_solve")})
