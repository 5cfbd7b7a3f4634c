"""Tracing: the table of layers of any function of parameters and a batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._checks import calling, check_no_module, is_module
from jaxinit._program import rolled, uncollected, unrolled, with_stacks
from jaxinit._reading._activated import ActivationInput, activation_inputs
from jaxinit._reading._analysis import analyse
from jaxinit._reading._blocks import Structure, structure
from jaxinit._reading._consumers import consumers_of
from jaxinit._reading._depth import Depth, depths
from jaxinit._reading._evidence import LeafRole
from jaxinit._reading._flow import Flow, programs_of
from jaxinit._reading._following import Onward, onward
from jaxinit._reading._layers import Analysis, Use, Weight
from jaxinit._reading._onwards import Onwards
from jaxinit._reading._origin import Factor
from jaxinit._reading._residual import Membership, Skip, memberships
from jaxinit._reading._roles import leaf_roles
from jaxinit._reading._rules import rule_of
from jaxinit._reading._table import UNREAD, Layer, Layers, Unvisited
from jaxinit._reading._views import grouped_factors, stacked_size, view, weight_name


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A program and what was found in it, with the paths of the leaves."""

    analysis: Analysis
    paths: tuple[str, ...]
    leaves: tuple[Any, ...]

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the leaves."""
        return tuple(jnp.shape(leaf) for leaf in self.leaves)

    @functools.cached_property
    def entered(self) -> dict[ir.Atom, Any]:
        """Values that go, element by element, into a primitive whose program is not read, and that primitive."""
        return _entered(self.analysis)

    @functools.cached_property
    def flow(self) -> Flow:
        """What every value is computed from."""
        return Flow(self.analysis)

    @functools.cached_property
    def structure(self) -> Structure:
        """Attention and recurrent cells."""
        return structure(self.flow, self.skips, self.leaves)

    @functools.cached_property
    def activation_inputs(self) -> dict[Weight, list[ActivationInput]]:
        """Where activations are applied to the outputs of weights."""
        return activation_inputs(self.flow, self.leaves)

    @functools.cached_property
    def depths(self) -> dict[Weight, list[Depth]]:
        """How deep the layers are, one after the other for the slices of a stack."""
        return depths(self.flow)

    @functools.cached_property
    def onwards(self) -> Onwards:
        """What every value is used for."""
        return Onwards(self.flow)

    @functools.cached_property
    def roles(self) -> list[LeafRole]:
        """The role of every leaf, except for those that are only the weight of a layer."""
        return leaf_roles(self.flow, self.skips, self.shapes)

    @functools.cached_property
    def skips(self) -> tuple[Skip, ...]:
        """The skip connections."""
        return consumers_of(self.analysis).skips


def trace(params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any) -> Traced:
    """Traces and analyses `apply_fn(params, batch)`."""
    check_no_module("a function of (params, apply_fn, batch)", params, "arrays as params")
    _check_apply_fn(apply_fn)
    with_paths, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths)
    leaves = tuple(leaf for _, leaf in with_paths)
    with calling("apply_fn", apply_fn, "params", "batch"):
        program = ir.traced_program(apply_fn, params, batch)
    with uncollected():
        program = rolled(unrolled(with_stacks(program), len(leaves)), len(leaves))
        return Traced(analyse(program, len(leaves)), paths, leaves)


def _check_apply_fn(apply_fn: Any) -> None:
    """Raises if it is not a function of parameters and a batch; modules and their classes are not."""
    kind = type(apply_fn)
    if isinstance(apply_fn, type):
        received = f"the class {apply_fn.__name__}; for a Linen module pass the method `apply` of one that it makes"
    elif callable(getattr(apply_fn, "apply", None)) and callable(getattr(apply_fn, "init", None)):
        received = (
            f"a {kind.__name__} module; pass its method `apply`, or see jaxinit.linen for modules with state and "
            "random numbers"
        )
    elif is_module(apply_fn, "flax.nnx"):
        received = f"a {kind.__name__} module of NNX; jaxinit.nnx has functions that take the model itself"
    elif not callable(apply_fn):
        received = f"{kind.__name__}; for a Flax module pass module.apply, or use jaxinit.linen or jaxinit.nnx"
    else:
        return
    raise TypeError(f"apply_fn must be a function of (params, batch), got {received}")


def trace_layers(params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any) -> Layers:
    """Lists the layers of `apply_fn(params, batch)`, read from the program that JAX traces it to.

    A layer is a `dot_general`, a `ragged_dot` or a convolution between data and a weight, or a lookup in one; or a sum
    of products that is written out. A weight is a value W that depends on no data and is homogeneous of degree one in a
    leaf θ of the parameters, W(s·θ) = s·W(θ) for s > 0: the leaf itself, rearranged, cast, or multiplied by anything
    independent of it. If a product with data uses matrices that were looked up, as in a mixture of experts, lookup and
    product are one layer, and its experts are along a batch axis.

    Nothing is computed: shapes are enough. This works for any framework whose models are functions of a pytree.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      apply_fn: function of (params, batch), for a Linen module `module.apply`. Values that it closes over (random keys,
        constants) count as neither parameters nor data.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s, the data.

    Returns:
      `Layers`: a sequence of `Layer` in execution order, with `unvisited` and `unused`; print it for a table.

    Raises:
      TypeError: `apply_fn` is not a function of two arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> params = {"hidden": jnp.ones((4, 8)), "out": jnp.ones((8, 2))}
      >>> def apply_fn(params, x):
      ...     return jnp.tanh(x @ params["hidden"]) @ params["out"]
      >>> layers = jaxinit.trace_layers(params, apply_fn, jax.ShapeDtypeStruct((16, 4), jnp.float32))
      >>> [(layer.path, layer.fan_in, layer.activation) for layer in layers]
      [('hidden', 4, <tanh>), ('out', 8, None)]
    """
    traced = trace(params, apply_fn, batch)
    with uncollected():
        layers = layers_of(traced)
        # Weights and their uses refer to one another. Separated, everything that was read is freed at once.
        for weight in traced.analysis.weights:
            weight.uses.clear()
        del traced
    return layers


def layers_of(traced: Traced) -> Layers:
    """The table of a traced program."""
    analysis = traced.analysis
    members = memberships(traced.skips)
    home = _homes(analysis.program)
    rows = tuple(_row(traced, weight, members, home) for weight in analysis.weights)
    used = analysis.read_leaves.union(*(weight.regions for weight in analysis.weights))
    unused = tuple(path for i, path in enumerate(traced.paths) if _is_floating(traced.leaves[i]) and i not in used)
    return Layers(rows, unvisited(traced), unused)


def unvisited(traced: Traced) -> tuple[Unvisited, ...]:
    """The weights that do not belong to any layer, and matrices whose role the program does not show."""
    opaque = dict.fromkeys(traced.analysis.opaque)
    layers = {leaf for weight in traced.analysis.weights for leaf in weight.regions}
    known = {leaf for leaf, _ in opaque} | layers
    unknown = [
        (i, traced.roles[i].reason)
        for i in sorted(traced.analysis.read_leaves - known)
        if _is_floating(traced.leaves[i]) and sum(n > 1 for n in traced.shapes[i]) > 1
    ]
    named = [(i, reason) for i, reason in unknown if traced.roles[i].name == "unknown"]
    return tuple(Unvisited(traced.paths[leaf], reason) for leaf, reason in (*opaque, *named))


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) if hasattr(leaf, "dtype") else True


def _row(traced: Traced, weight: Weight, members: dict[Use, Membership], home: dict[ir.Equation, ir.Program]) -> Layer:
    use = weight.uses[0]
    roles, axes, member = use.geometry, view(weight), members.get(use)
    following = _following(traced, weight, home[use.finish])
    return Layer(
        path=traced.paths[weight.leaf],
        paths=tuple(traced.paths[leaf] for leaf in weight.regions),
        name=weight_name(traced.paths, weight, traced.shapes),
        kind=roles.kind,
        shape=tuple(stop - start for start, stop in weight.region),
        region=weight.region,
        fan_in=roles.fan_in * use.makes,
        fan_out=_shared_out(weight.first_component.fan_out, _members(weight)),
        receptive_field=roles.receptive_field,
        feature_group_count=roles.feature_group_count,
        view=axes.shape if axes else None,
        in_axes=axes.in_axes if axes else None,
        out_axes=axes.out_axes if axes else None,
        batch_axes=axes.batch_axes if axes else None,
        stack_axes=axes.stack_axes if axes else None,
        stacked=stacked_size(weight),
        uses=weight.use_count,
        activation=following.activation,
        skip=member.skip if member else None,
        position=member.position if member else None,
        branch_length=member.length if member else None,
        role=_role(traced, weight),
        has_bias=use.bias is not None,
        note=weight.refused or (_unread(traced, use) if following.activation is None else None),
        multiplier=following.multiplier,
    )


def _entered(analysis: Analysis) -> dict[ir.Atom, Any]:
    """Values that go, element by element, into a primitive whose program is not read, and that primitive."""
    found: dict[ir.Atom, Any] = {}
    for program in programs_of(analysis.program):
        for equation in reversed(program.equations):
            rule = rule_of(equation)
            if rule.linear and (rule.elementwise or rule.rearranges):
                goes_on = () if equation in analysis.uses else equation.outputs
                primitive = next((found[v] for v in goes_on if v in found), None)
            else:
                primitive = equation.primitive if ir.is_opaque(equation) else None
            if primitive is not None:
                found.update(dict.fromkeys(equation.inputs, primitive))
    return found


def _unread(traced: Traced, use: Use) -> str | None:
    """What a reader should know about a layer whose output goes into something that is not read."""
    primitive = traced.entered.get(use.finish.outputs[0])
    return None if primitive is None else f"{UNREAD}: its output enters {primitive}, whose program is not read"


def _members(weight: Weight) -> list[int]:
    """How many weights meet the same data, along each factor of the leaf; groups of a convolution meet their own."""
    component, roles = weight.first_component, weight.uses[0].geometry
    groups: list[Factor] = []
    if component.origin is not None and roles.feature_group_count > 1:
        groups = [
            f for d in roles.out_dims for f in grouped_factors(component.origin.dims[d], roles.feature_group_count)
        ]
    return [f.size for f in component.ensemble if f not in groups]


def _shared_out(fan_out: int | float, members: Sequence[int]) -> int | float:
    """The fan-out of one of several weights that meet the same data."""
    count = math.prod(members)
    return fan_out // count if fan_out % count == 0 else fan_out / count


def _following(traced: Traced, weight: Weight, program: ir.Program) -> Onward:
    use = weight.uses[0]
    features = [use.placed[d] for d in use.geometry.out_dims if d in use.placed]
    value = use.finish.outputs[0]
    found = onward(traced.analysis, program, value, traced.leaves, through=True, features=features)
    # The number by which attention divides its queries is there to make scores smaller, so no gain may undo it.
    return found._replace(multiplier=1.0) if {"query", "key"} & set(_roles(traced, weight)) else found


def weight_growth(traced: Traced, weight: Weight) -> float:
    """By how much the standard deviation grows in the product that uses a layer's output as a weight; else 1."""
    use = weight.uses[0]
    if use.makes == 1:
        return 1.0
    following = _following(traced, weight, _homes(traced.analysis.program)[use.finish])
    return float(math.sqrt(use.makes) * following.multiplier)


def _role(traced: Traced, weight: Weight) -> str | None:
    return ", ".join(_roles(traced, weight)) or None


def _roles(traced: Traced, weight: Weight) -> list[str]:
    return list(dict.fromkeys(p.role for p in traced.structure.weights.get(weight, ()) if p.role))


def _homes(program: ir.Program) -> dict[ir.Equation, ir.Program]:
    homes = dict.fromkeys(program.equations, program)
    for equation in program.holders:
        for inner in ir.subprograms(equation):
            homes |= _homes(inner)
    return homes
