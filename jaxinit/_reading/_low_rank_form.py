"""The form of a low-rank addition: which columns of W it changes, and by which constant, W[:, columns] + c · A @ B.

Where each element of both summands comes from is followed from the common data through both ways. If both agree in
every dimension, the sum is x @ (W[:, columns] + c · A @ B) for every x; if not, or if more happens on the way
than multiplication by numbers, the answer is the reason.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, Followed
from jaxinit._reading._layers import Use
from jaxinit._reading._low_rank import LowRankPair, Step, is_one_product
from jaxinit._reading._origin import Factor, Origin
from jaxinit._reading._rules import cuts, rearrangement, rule_of


class LowRankForm(NamedTuple):
    """The sum is x @ (base · W[:, columns] + product · A @ B), plus biases.

    W, A and B are the leaves as `dims_of` orders their dimensions.
    """

    columns: tuple[int, int]
    base: Any
    product: Any


class UnreadableError(ValueError):
    """Why the form of a low-rank addition cannot be read."""


def low_rank_form(flow: Flow, pair: LowRankPair, paths: Sequence[str]) -> LowRankForm:
    """The form of a pair, for leaves with these paths.

    Raises:
      UnreadableError: the program computes something else, or something that cannot be followed.
    """
    if pair.base is None:
        raise UnreadableError("what it is added to is not a product with a floating-point weight; is it quantised?")
    numbers = _Numbers(flow, paths)
    columns = _columns(pair, pair.base)
    base = numbers.along(pair.beside) * numbers.of_weight(pair.base)
    product = numbers.along(pair.between + pair.behind) * numbers.of_weight(pair.first) * numbers.of_weight(pair.second)
    return LowRankForm(columns, base, product)


def dims_of(use: Use) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions of the weight of a product: those that are contracted, and those that are outputs, in order."""
    (entry,) = use.entries
    contracted = tuple(entry.equation.params["dimension_numbers"][0][entry.weight])
    return contracted, tuple(d for d in range(len(entry.atom.shape)) if d not in contracted)


def _columns(pair: LowRankPair, base: Use) -> tuple[int, int]:
    """Which outputs of the base layer the pair is added to."""
    for use in (base, pair.first, pair.second):
        if not is_one_product(use) or use.geometry.batch_dims:
            raise UnreadableError("it is not one plain product of data and a matrix")
    start = Followed.from_start(pair.data.shape)
    axes = len(start.base)
    at_base, at_first = _moved(start, pair.to_base), _moved(start, pair.to_first)
    before, inputs = _product(at_base, base)
    inner, same = _product(at_first, pair.first)
    if inputs != same or before.base != inner.base:
        raise UnreadableError("the two products take their data in different orders")
    between = _moved(inner, pair.between)
    # The second product sums over all features of the first, which are gone after it.
    outer, ranks = _product(between.changed(region=between.region[:axes], base=between.base[:axes]), pair.second)
    rank = int(pair.first.geometry.fan_out)
    if ranks != ((Factor(axes, rank, 1),) if rank > 1 else ()):
        raise UnreadableError("elements are rearranged between its two products")
    one, other = _moved(before, pair.beside), _moved(outer, pair.behind)
    whole = other.base[:axes] == one.base[:axes] and other.base[-1] == 0
    if not whole or [_merged(d) for d in one.dims] != [_merged(d) for d in other.dims]:
        raise UnreadableError("its outputs are added to those of the layer in another order")
    first, size = one.base[axes], int(pair.second.geometry.fan_out)
    if math.prod(f.size for dim in other.dims for f in dim if f.axis >= axes) != size:
        raise UnreadableError("only some of its outputs are used")
    return first, first + size


def _product(data: Followed, use: Use) -> tuple[Followed, tuple[Factor, ...]]:
    """The output of a product, its features along a new axis of the start; and what was contracted."""
    (entry,) = use.entries
    contracted = entry.equation.params["dimension_numbers"][0][1 - entry.weight]
    rows = [dim for d, dim in enumerate(data.dims) if d not in contracted]
    axis = len(data.base)
    sizes = [entry.atom.shape[d] for d in dims_of(use)[1]]
    features = [(Factor(axis, size, math.prod(sizes[i + 1 :])),) if size > 1 else () for i, size in enumerate(sizes)]
    dims = (*features, *rows) if entry.weight == 0 else (*rows, *features)
    region = (*data.region, (0, math.prod(sizes)))
    made = data.changed(region=region, dims=tuple(dims), base=(*data.base, 0))
    return made, _merged([f for d in contracted for f in data.dims[d]])


def _moved(track: Followed, steps: Sequence[Step]) -> Followed:
    for step in steps:
        equation = step.equation
        if not rule_of(equation).rearranges:
            continue
        moves = cuts(equation)
        move: Callable[[Any], Origin | None] | None = rearrangement(equation) if moves is None else moves[step.output]
        moved = None if move is None else move(track)
        if not isinstance(moved, Followed):
            raise UnreadableError(f"{equation.primitive} rearranges its data or its outputs")
        track = moved
    return track


def _merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """The same factors, with neighbours that are one run of an axis as one."""
    merged: list[Factor] = []
    for f in factors:
        last = merged[-1] if merged else None
        if last and (last.axis, last.flipped, last.stride) == (f.axis, f.flipped, f.stride * f.size):
            merged[-1] = f._replace(size=last.size * f.size)
        else:
            merged.append(f)
    return tuple(merged)


class _Numbers:
    """The numbers that values are multiplied by."""

    def __init__(self, flow: Flow, paths: Sequence[str]):
        self.flow, self.paths = flow, paths

    def along(self, steps: Sequence[Step]) -> Any:
        """The number that some steps multiply a value by."""
        factor: Any = 1.0
        for step in steps:
            factor = factor * self._factor(step.equation, step.operand)
        return factor

    def of_weight(self, use: Use) -> Any:
        """The number that the weight of a layer is, times its leaf."""
        (component, *others), atom, factor = use.components, use.entries[0].atom, 1.0
        leaf = component.weight.leaf
        made_of = set(component.dependence.degrees)
        if others or made_of != {leaf}:
            named = ", ".join(self.paths[i] for i in sorted(made_of))
            raise UnreadableError(f"the program makes its weight of {named or 'several values'}")
        while (equation := self.flow.producer.get(atom)) is not None:
            own = [i for i, x in enumerate(equation.inputs) if leaf in self.flow.analysis.of(x).degrees]
            if len(own) != 1:
                raise UnreadableError(f"{equation.primitive} makes its weight of {self.paths[leaf]}")
            factor = factor * self._factor(equation, own[0])
            atom = equation.inputs[own[0]]
        return factor

    def _factor(self, equation: ir.Equation, operand: int) -> Any:
        whole = equation.primitive is ir.convert_p and not ir.is_floating(equation.outputs[0])
        if not whole and (rule_of(equation).rearranges or equation.primitive in (ir.add_p, ir.add_any_p)):
            return 1.0
        others = [x for i, x in enumerate(equation.inputs) if i != operand]
        if equation.primitive is ir.neg_p:
            return -1.0
        if equation.primitive is ir.sub_p:
            return 1.0 - 2.0 * operand
        if equation.primitive is ir.mul_p:
            return self._number(others[0])
        if equation.primitive is ir.div_p and operand == 0:
            return 1.0 / self._number(others[0])
        raise UnreadableError(f"{equation.primitive} computes more than a multiple")

    def _number(self, atom: ir.Atom) -> Any:
        """The number that all elements of a value equal."""
        with jax.ensure_compile_time_eval():
            return self._evaluated(atom)

    def _evaluated(self, atom: ir.Atom) -> Any:
        if isinstance(atom, ir.Constant):
            if math.prod(atom.shape) == 1:
                return np.float64(np.ravel(atom.value)[0]) if ir.is_known(atom) else atom.value.reshape(())
            if not ir.is_known(atom) or np.ptp(np.asarray(atom.value)) != 0:
                raise UnreadableError("it, or its layer, is multiplied by different numbers for different outputs")
            return np.float64(np.ravel(atom.value)[0])
        equation = self.flow.producer.get(atom)
        if equation is None:
            sources, inputs = self.flow.sources(atom), self.flow.analysis.program.inputs
            if atom in inputs[: len(self.paths)]:
                path = self.paths[inputs.index(atom)]  # type: ignore[arg-type]
                raise UnreadableError(f"it, or its layer, is multiplied by what depends on the parameter {path}")
            if len(sources) != 1 or sources[0].shape != atom.shape:
                raise UnreadableError(
                    "it, or its layer, is multiplied by a number that differs from one step of a loop to the next"
                )
            return self._evaluated(sources[0])
        if rearrangement(equation) is not None and equation.primitive is not ir.convert_p:
            return self._evaluated(equation.inputs[0])
        if equation.primitive not in ir.ELEMENTWISE:
            raise UnreadableError(f"it, or its layer, is multiplied by a number that {equation.primitive} computes")
        return equation.bind_here(*(jnp.asarray(self._evaluated(x), x.dtype) for x in equation.inputs))[0]
