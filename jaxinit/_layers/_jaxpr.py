"""Programs: what a function computes, read from its jaxpr once and kept in a form of our own.

This is the only file that touches JAX's extension API, which changes between releases. Calls (`jit`, `remat`,
`custom_jvp`, ...) are inlined, so that a program is one flat list of equations in execution order; `scan`, `cond` and
`while_loop` are equations that hold programs. Primitives are told apart by identity, never by name.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jax import lax

from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A value that the program computes or receives."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value known when the function was traced: a literal, or an array that the function closes over."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(getattr(self.value, "shape", ()))

    @property
    def dtype(self) -> Any:
        """The dtype of the value."""
        return jax.dtypes.result_type(self.value) if not hasattr(self.value, "dtype") else self.value.dtype


Atom: TypeAlias = Variable | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Equations in execution order, from inputs to outputs.

    Calls of functions with derivatives of their own are inlined like others; `calls` keeps them for those who want to
    differentiate.
    """

    inputs: tuple[Variable, ...]
    equations: "tuple[Equation, ...]"
    outputs: tuple[Atom, ...]
    calls: "tuple[Call, ...]" = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to inputs."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[Variable, ...]
    context: Any

    def bind(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, computed as the traced function would."""
        with self.context.manager:
            return self.bind_here(*values)

    def bind_here(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, whatever mesh the function was traced on."""
        params = self.primitive.get_bind_params(self.params)
        results = self.primitive.bind(*values, **params)
        return list(results) if self.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True, eq=False)
class Call(Equation):
    """A call of a function with its own derivative, and the equations that its program was inlined to."""

    inlined: tuple[Equation, ...]
    results: tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Equation):
    """A `lax.scan`: inputs are constants, initial carries and stacked inputs, in this order.

    The last stacked inputs, as many as `appended`, are constants of the scan that was traced: see `_stacks`.
    """

    body: Program
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    appended: int = 0

    def bind(self, *values: Array) -> list[Array]:
        """The outputs for these inputs, computed by the scan that was traced."""
        return super().bind(*values[: len(values) - self.appended])


@dataclasses.dataclass(frozen=True, eq=False)
class Switch(Equation):
    """A `lax.cond` or `lax.switch`: the first input is the index of the branch, the others are its operands."""

    branches: tuple[Program, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class While(Equation):
    """A `lax.while_loop`: inputs are constants of the condition, constants of the body, initial carries."""

    condition: Program
    body: Program
    condition_consts: int
    body_consts: int


# Calls, and which of their parameters holds the program.
_CALLS = {
    jexp.jit_p: "jaxpr",
    jexp.closed_call_p: "call_jaxpr",
    jexp.remat_p: "jaxpr",
    jexp.custom_jvp_call_p: "call_jaxpr",
    jexp.custom_vjp_call_p: "call_jaxpr",
}
_WITH_DERIVATIVES = {jexp.custom_jvp_call_p, jexp.custom_vjp_call_p}


def trace(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of a function; its inputs are the leaves of the arguments."""
    return _program(jax.make_jaxpr(function)(*arguments))


def as_function(function: Callable[..., Any], *arguments: Any) -> Callable[..., list[Array]]:
    """A function traced once, from the leaves of its arguments to those of its result: no Python of it runs again."""
    run: Callable[..., list[Array]] = jex.jaxpr_as_fun(jax.make_jaxpr(function)(*arguments))
    return run


def is_floating(atom: Atom) -> bool:
    """Whether a value holds real or complex floating-point numbers."""
    return bool(jnp.issubdtype(atom.dtype, jnp.inexact))


def is_traced(x: Any) -> bool:
    """Whether a value is known only once a transformation has run."""
    return isinstance(x, jax.core.Tracer)


def is_known(constant: Constant) -> bool:
    """Whether the elements of a constant can be looked at here and now."""
    return not is_traced(constant.value) and getattr(constant.value, "is_fully_addressable", True)


def fills(equation: Equation) -> bool:
    """Whether a lookup gives a number other than zero for indices out of range."""
    value = equation.params["fill_value"]
    # Those who fill with NaN mean indices to be in range.
    return value is not None and not (value == 0 or value != value)


def subprograms(equation: Equation) -> tuple[Program, ...]:
    """The programs that an equation holds."""
    match equation:
        case Scan():
            return (equation.body,)
        case Switch():
            return equation.branches
        case While():
            return (equation.condition, equation.body)
    return ()


def holds_program(equation: Equation) -> bool:
    """Whether a primitive that is not read into a program holds a jaxpr nevertheless (`shard_map`, kernels)."""
    return not subprograms(equation) and any(True for _ in jex.jaxprs_in_params(equation.params))


def is_opaque(equation: Equation) -> bool:
    """Whether nothing is known of what a primitive computes: it holds a jaxpr, or is a callback, a foreign call, ..."""
    return holds_program(equation) or not (subprograms(equation) or equation.primitive in _NAMED)


def _program(closed: Any) -> Program:
    jaxpr = getattr(closed, "jaxpr", closed)
    inputs = tuple(_variable(v) for v in jaxpr.invars)
    equations: list[Equation] = []
    calls: list[Call] = []
    outputs = _inline(closed, inputs, equations, calls)
    return Program(inputs, tuple(equations), outputs, tuple(calls))


def _variable(var: Any) -> Variable:
    return Variable(tuple(getattr(var.aval, "shape", ())), getattr(var.aval, "dtype", None))


def _inline(closed: Any, arguments: Sequence[Atom], equations: list[Equation], calls: list[Call]) -> tuple[Atom, ...]:
    """Appends the equations of a jaxpr applied to arguments, and the outermost calls; returns its outputs."""
    jaxpr = getattr(closed, "jaxpr", closed)
    consts = getattr(closed, "consts", ())
    environment: dict[Any, Atom] = {}
    environment.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Atom:
        return Constant(atom.val) if isinstance(atom, jex.Literal) else environment[atom]

    for eqn in jaxpr.eqns:
        inputs = tuple(read(v) for v in eqn.invars)
        if eqn.primitive in _CALLS:
            own = eqn.primitive in _WITH_DERIVATIVES
            before = len(equations)
            results = _inline(eqn.params[_CALLS[eqn.primitive]], inputs, equations, [] if own else calls)
            if own:
                outputs = tuple(_variable(v) for v in eqn.outvars)
                inlined = tuple(equations[before:])
                calls.append(Call(eqn.primitive, eqn.params, inputs, outputs, eqn.ctx, inlined, results))
            environment.update(zip(eqn.outvars, results, strict=True))
            continue
        outputs = tuple(_variable(v) for v in eqn.outvars)
        environment.update(zip(eqn.outvars, outputs, strict=True))
        if eqn.primitive in _IDENTITIES_OF_MANY:
            equations.extend(_identities(eqn, inputs, outputs))
        else:
            equations.append(_equation(eqn, inputs, outputs))
    return tuple(read(v) for v in jaxpr.outvars)


def _identities(eqn: Any, inputs: tuple[Atom, ...], outputs: tuple[Variable, ...]) -> Iterator[Equation]:
    """One equation for each operand of a primitive that hands on several values as they are: none depends on others."""
    lists = _IDENTITIES_OF_MANY[eqn.primitive]
    for i, (value, output) in enumerate(zip(inputs, outputs, strict=True)):
        params = eqn.params | {name: eqn.params[name][i : i + 1] for name in lists}
        yield Equation(eqn.primitive, params, (value,), (output,), eqn.ctx)


def _equation(eqn: Any, inputs: tuple[Atom, ...], outputs: tuple[Variable, ...]) -> Equation:
    params = eqn.params
    fields = (eqn.primitive, params, inputs, outputs, eqn.ctx)
    if eqn.primitive is jexp.scan_p:
        num_consts, num_carry = _scan_sizes(params, inputs)
        return Scan(*fields, _program(params["jaxpr"]), num_consts, num_carry, params["length"], params["reverse"])
    if eqn.primitive is jexp.cond_p:
        return Switch(*fields, tuple(_program(branch) for branch in params["branches"]))
    if eqn.primitive is jexp.while_p:
        condition, body = _program(params["cond_jaxpr"]), _program(params["body_jaxpr"])
        return While(*fields, condition, body, params["cond_nconsts"], params["body_nconsts"])
    return Equation(*fields)


def _scan_sizes(params: dict[str, Any], inputs: tuple[Atom, ...]) -> tuple[int, int]:
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(list(inputs)).unpack()
    return len(list(consts)), len(list(carry))


def goes_forwards(program: Program) -> bool:
    """Whether nothing in a program has a backward rule alone, as far as it can be read."""
    return (
        all(call.primitive is not jexp.custom_vjp_call_p for call in program.calls)
        and not any(holds_program(e) for e in program.equations)
        and all(goes_forwards(inner) for e in program.equations for inner in subprograms(e))
    )


def equations_of(program: Program) -> Iterator[Equation]:
    """All equations of a program and of those it holds, in execution order."""
    for equation in program.equations:
        yield equation
        for inner in subprograms(equation):
            yield from equations_of(inner)


dot_general_p = jexp.dot_general_p
conv_p = jexp.conv_general_dilated_p
gather_p = jexp.gather_p
dynamic_slice_p = jexp.dynamic_slice_p
add_p, sub_p, mul_p, div_p = jexp.add_p, jexp.sub_p, jexp.mul_p, jexp.div_p
add_any_p = jexp.add_jaxvals_p
neg_p, abs_p, sign_p = jexp.neg_p, jexp.abs_p, jexp.sign_p
integer_pow_p, square_p, sqrt_p, rsqrt_p = jexp.integer_pow_p, jexp.square_p, jexp.sqrt_p, jexp.rsqrt_p
max_p, min_p, select_p, clamp_p = jexp.max_p, jexp.min_p, jexp.select_n_p, jexp.clamp_p
reshape_p, transpose_p, squeeze_p, rev_p = jexp.reshape_p, jexp.transpose_p, jexp.squeeze_p, jexp.rev_p
broadcast_p, slice_p, concatenate_p, pad_p = jexp.broadcast_in_dim_p, jexp.slice_p, jexp.concatenate_p, jexp.pad_p
split_p = lax.split_p
# Primitives of their own from JAX 0.12 on; None before.
stack_p, unstack_p = getattr(lax, "stack_p", None), getattr(lax, "unstack_p", None)
exp_p, exp2_p = jexp.exp_p, jexp.exp2_p
reduce_max_p, reduce_sum_p = jexp.reduce_max_p, jexp.reduce_sum_p
convert_p = jexp.convert_element_type_p
iota_p, eq_p, lt_p = jexp.iota_p, jexp.eq_p, jexp.lt_p


def _ragged_dot_p() -> Any:
    """The primitive of `jax.lax.ragged_dot`, which neither the extension API nor `jax.lax` names."""
    shapes = (jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((1, 1, 1), jnp.float32))
    # This file may be imported on a mesh with explicit axes, where products must be told how to be sharded.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        (equation,) = jax.make_jaxpr(lax.ragged_dot)(*shapes, jax.ShapeDtypeStruct((1,), jnp.int32)).jaxpr.eqns
    return equation.primitive


ragged_dot_p = _ragged_dot_p()


def _reshard_p() -> Any:
    """The primitive of `jax.sharding.reshard`, which the extension API does not name."""
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    (equation,) = jax.make_jaxpr(lambda x: jax.sharding.reshard(x, sharding))(
        jax.ShapeDtypeStruct((), jnp.float32)
    ).jaxpr.eqns
    return equation.primitive


# What layers are made of.
CONTRACTIONS = {dot_general_p, ragged_dot_p, conv_p, gather_p}

# One operand in, the same numbers out.
IDENTITIES = {
    convert_p,
    jexp.copy_p,
    jexp.reduce_precision_p,
    jexp.sharding_constraint_p,
    _reshard_p(),
    jexp.device_put_p,
    jexp.name_p,
    jexp.stop_gradient_p,
    lax.optimization_barrier_p,
}

# Those that take any number of operands, and their parameters with an entry for each.
_IDENTITIES_OF_MANY: dict[Any, tuple[str, ...]] = {
    jexp.device_put_p: ("devices", "srcs", "copy_semantics"),
    lax.optimization_barrier_p: (),
}

# All that the extension API or `jax.lax` names, but for solvers, whose matrix is no kernel.
_NAMED = {getattr(module, name) for module in (jexp, lax) for name in dir(module) if name.endswith("_p")}
_NAMED = (_NAMED | IDENTITIES | CONTRACTIONS) - {jexp.triangular_solve_p}

# Linear in the first operand, elements mixed or moved.
LINEAR = {
    jexp.reduce_sum_p,
    jexp.cumsum_p,
    jexp.real_p,
    jexp.imag_p,
    jexp.conj_p,
    jexp.fft_p,
    jexp.reduce_window_sum_p,
    dynamic_slice_p,
    gather_p,
    lax.tile_p,
}

# f(s·x) = s·f(x) for s > 0, but not linear.
POSITIVELY_HOMOGENEOUS = {jexp.reduce_max_p, jexp.reduce_min_p, jexp.cummax_p, jexp.cummin_p, jexp.sort_p, abs_p}

# Unchanged when all operands are multiplied by the same s > 0.
SCALE_FREE = {
    sign_p,
    jexp.eq_p,
    jexp.ne_p,
    jexp.lt_p,
    jexp.le_p,
    jexp.gt_p,
    jexp.ge_p,
    jexp.argmax_p,
    jexp.argmin_p,
    jexp.is_finite_p,
    jexp.atan2_p,
}

# Functions of one number, or of several numbers at the same place.
ELEMENTWISE = {
    *IDENTITIES - {lax.optimization_barrier_p},
    *(add_p, sub_p, mul_p, div_p, add_any_p, neg_p, abs_p, sign_p),
    *(integer_pow_p, square_p, sqrt_p, rsqrt_p, max_p, min_p, select_p, clamp_p),
    *(jexp.acos_p, jexp.acosh_p, jexp.asin_p, jexp.asinh_p, jexp.atan_p, jexp.atan2_p, jexp.atanh_p),
    *(jexp.bessel_i0e_p, jexp.bessel_i1e_p, jexp.cbrt_p, jexp.ceil_p, jexp.cos_p, jexp.cosh_p, jexp.digamma_p),
    *(jexp.erf_p, jexp.erfc_p, jexp.erf_inv_p, jexp.exp_p, jexp.exp2_p, jexp.expm1_p, jexp.floor_p),
    *(jexp.is_finite_p, jexp.lgamma_p, jexp.log_p, jexp.log1p_p, jexp.logistic_p, jexp.nextafter_p, jexp.pow_p),
    *(jexp.rem_p, jexp.round_p, jexp.sin_p, jexp.sinh_p, jexp.tan_p, jexp.tanh_p),
    *(jexp.eq_p, jexp.ne_p, jexp.lt_p, jexp.le_p, jexp.gt_p, jexp.ge_p),
    *(jexp.and_p, jexp.or_p, jexp.not_p, jexp.xor_p),
    *(getattr(jexp, name) for name in ("log2_p", "one_minus_square_p", "polynomial_p") if hasattr(jexp, name)),
}
