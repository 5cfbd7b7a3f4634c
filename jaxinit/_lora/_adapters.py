"""The adapters of a program: which leaves are W, A and B, in which layout, and the constants that multiply them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._reading import (
    LowRankForm,
    LowRankPair,
    Traced,
    UnreadableError,
    Use,
    Weight,
    axis_factors,
    dims_of,
    in_order_of_leaf,
    is_one_product,
    low_rank_form,
    low_rank_pairs,
    overlap,
    part_of,
    with_part,
)
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The weight of a product as (slices, inputs, outputs), with the inputs and outputs in the order of the product."""

    weight: Weight
    factored: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def leaf(self) -> int:
        """The index of its leaf."""
        return self.weight.leaf

    def read(self, leaf: Array) -> Array:
        """The matrices in a leaf; those of a stack in the order of the loop."""
        part = jnp.transpose(part_of(jnp.asarray(leaf), self.weight).reshape(self.factored), self.order)
        stack = self.weight.stack
        return in_order_of_leaf(part, stack).reshape(self.shape)

    def written(self, leaf: Array, matrices: Array) -> Array:
        """The leaf with other matrices."""
        leaf = jnp.asarray(leaf)
        sizes = [self.factored[i] for i in self.order]
        part = in_order_of_leaf(matrices.astype(leaf.dtype).reshape(sizes), self.weight.stack)
        back = jnp.transpose(part, np.argsort(self.order).tolist())
        return with_part(leaf, self.weight, back.reshape([stop - start for start, stop in self.weight.region]))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One low-rank addition: the matrices A and B, and for methods that change W, it and the form of the sum."""

    pair: LowRankPair
    first: Matrix
    second: Matrix
    changed: tuple[Matrix, LowRankForm] | None


def adapters_of(traced: Traced, caller: str, *, changes_base: bool) -> list[Adapter]:
    """The adapters of a program, those that are used several times once.

    Raises:
      ValueError: there are none, or one has a form that is not read, or is used for something else too.
    """
    pairs = low_rank_pairs(traced.flow)
    if not pairs:
        raise ValueError(
            f"{caller} needs low-rank adapters, x @ W + c * (x @ A) @ B with fewer columns in A than W has rows and "
            "columns, but apply_fn has none; a sum W + A @ B that is computed before data meets it is not one, and "
            "neither is a product with an activation or dropout in between"
        )
    found: dict[tuple[Weight, ...], Adapter] = {}
    uses: dict[tuple[Weight, ...], list[Use]] = {}
    for pair in pairs:
        try:
            adapter = _adapter(traced, pair, changes_base)
        except UnreadableError as error:
            raise ValueError(f"{caller}: the adapter {_named(traced, pair)} cannot be handled: {error}") from None
        changed = () if adapter.changed is None else (adapter.changed[0].weight,)
        weights = (adapter.first.weight, adapter.second.weight, *changed)
        known = found.setdefault(weights, adapter)
        if known.changed and adapter.changed and known.changed[1] != adapter.changed[1]:
            raise ValueError(
                f"{caller}: the adapter {_named(traced, pair)} cannot be handled: it is added to the layer's output in "
                "more than one way"
            )
        layers = [use for use in (pair.first, pair.second, pair.base) if use is not None]
        uses.setdefault(weights, []).extend(layers)
    for weights, adapter in found.items():
        for weight in weights:
            if _is_used_elsewhere(traced, weight, uses[weights]):
                raise ValueError(
                    f"{caller}: the adapter {_named(traced, adapter.pair)} cannot be handled: "
                    f"{traced.paths[weight.leaf]} is used elsewhere too, and more than this layer would change with it"
                )
    return list(found.values())


def _adapter(traced: Traced, pair: LowRankPair, changes_base: bool) -> Adapter:
    first, second = _matrix(pair.first), _matrix(pair.second)
    if not changes_base:
        return Adapter(pair, first, second, None)
    form = low_rank_form(traced.flow, pair, traced.paths)
    assert pair.base is not None
    base = _matrix(pair.base)
    _check(form, base, first, second)
    return Adapter(pair, first, second, (base, form))


def _named(traced: Traced, pair: LowRankPair) -> str:
    a, b = (traced.paths[use.components[0].weight.leaf] for use in (pair.first, pair.second))
    return f"({a}, {b}) of {' and '.join(traced.paths[leaf] for leaf in sorted(pair.base_leaves))}"


def _matrix(use: Use) -> Matrix:
    (component, *others) = use.components
    if others or not is_one_product(use) or use.geometry.batch_dims:
        raise UnreadableError("it is not one plain product of data and a matrix")
    weight, origin = component.weight, component.origin
    if (
        origin is None
        or weight.members
        or origin.picked
        or component.ensemble
        or origin.region != weight.region
        or len(origin.stack) != len(weight.stack)
    ):
        raise UnreadableError("the program does not show where the elements of its weight are in the leaf")
    inputs, outputs = dims_of(use)
    ordered = [*weight.stack, *(f for d in (*inputs, *outputs) for f in origin.dims[d])]
    factors = [f for a, (start, stop) in enumerate(weight.region) for f in axis_factors(a, stop - start, ordered)]
    plain = [f for f in ordered if f.size > 1]
    if any(f.flipped for f in ordered[len(weight.stack) :]) or sorted(plain) != sorted(
        f for f in factors if f.size > 1
    ):
        raise UnreadableError("the program rearranges the elements of its weight in a way that is not followed")
    order = [factors.index(f) for f in ordered]
    sizes = [math.prod(f.size for f in fs) for fs in _split(use, ordered)]
    return Matrix(weight, tuple(f.size for f in factors), tuple(order), (sizes[0], sizes[1], sizes[2]))


def _split(use: Use, ordered: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    (component,) = use.components
    assert component.origin is not None
    stacked = len(component.weight.stack)
    inputs = stacked + sum(len(component.origin.dims[d]) for d in dims_of(use)[0])
    return ordered[:stacked], ordered[stacked:inputs], ordered[inputs:]


def _check(form: LowRankForm, base: Matrix, first: Matrix, second: Matrix) -> None:
    sizes = [[f.size for f in matrix.weight.stack] for matrix in (base, first, second)]
    if sizes[0] != sizes[1] or sizes[0] != sizes[2]:
        raise UnreadableError("a loop runs over some of its weights, and over others not")
    for number in (form.base, form.product):
        if isinstance(number, float | np.floating | np.ndarray) and float(number) == 0:
            raise UnreadableError("it is multiplied by zero")


def _is_used_elsewhere(traced: Traced, weight: Weight, known: Sequence[Use]) -> bool:
    """Whether an output depends on a weight in another way than through these uses."""
    program, flow = traced.analysis.program, traced.flow
    products = {entry.equation for use in known for entry in use.entries}
    met = [atom for atom in program.outputs if not flow.is_data(atom)]
    for equation in ir.equations_of(program):
        if equation not in products and not ir.subprograms(equation) and any(map(flow.is_data, equation.outputs)):
            met += [atom for atom in equation.inputs if not flow.is_data(atom)]
    for value in map(traced.analysis.of, met):
        origin = value.origins.get(weight.leaf)
        if weight.leaf in value.degrees and (origin is None or overlap(origin.region, weight.region)):
            return True
    return False
