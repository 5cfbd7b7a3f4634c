"""Masks that a program computes from known numbers, such as causal masks, and which scores they leave visible."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import outside_traces
from jaxinit._moments._elementwise import values_of
from jaxinit._moments._indexed import INDEXED
from jaxinit._moments._samples import Samples, numbers, of_array
from jaxinit._reading import rule_of

_HIDDEN = -1e4
"""Scores below this before an exponential are masked out."""
_MOST_ELEMENTS = 1 << 22
"""Larger arrays than this are not computed."""


class Masks:
    """The values of a program that are computed only from known numbers, and the scores under masks."""

    def __init__(self, known: Mapping[ir.Atom, np.ndarray]) -> None:
        self._arrays = dict(known)
        self._counted: set[ir.Atom] = set()
        self._shown: dict[ir.Atom, np.ndarray] = {}

    def counts(self, atom: ir.Atom, dimension: int) -> Samples | None:
        """How many elements of a value along a dimension a mask leaves visible, if there is a mask."""
        shown = self._shown.get(atom)
        if shown is None:
            return None
        whole = shown if shown.shape[dimension] == atom.shape[dimension] else shown * atom.shape[dimension]
        return of_array(whole.sum(dimension, keepdims=True).astype(float))

    def counted(self, equation: ir.Equation) -> np.ndarray | None:
        """What an equation computes from what lies where known indices say, as degrees of nodes are."""
        return next((self._arrays[v] for v in equation.outputs if v in self._counted), None)

    def visit(self, equation: ir.Equation) -> None:
        """Records an equation."""
        rule = rule_of(equation)
        computed = rule.elementwise or rule.rearranges or equation.primitive in INDEXED | {ir.iota_p}
        if not computed or len(equation.outputs) != 1:
            return
        (output,) = equation.outputs
        known = [self.known(atom) for atom in equation.inputs]
        if all(x is not None for x in known) and math.prod(output.shape) <= _MOST_ELEMENTS:
            self._arrays[output] = _computed(equation, known)
            if equation.primitive in INDEXED or not self._counted.isdisjoint(equation.inputs):
                self._counted.add(output)
            return
        shown = self._shown_by(equation, known)
        if shown is not None:
            self._shown[output] = shown

    def known(self, atom: ir.Atom) -> np.ndarray | None:
        """The numbers of a value, if they are known."""
        if isinstance(atom, ir.Constant):
            return numbers(atom.value) if ir.is_known(atom) and math.prod(atom.shape) <= _MOST_ELEMENTS else None
        return self._arrays.get(atom)

    def _shown_by(self, equation: ir.Equation, known: Sequence[np.ndarray | None]) -> np.ndarray | None:
        if not rule_of(equation).elementwise:
            return None
        rank = len(equation.outputs[0].shape)
        masks = [self._shown[atom] for atom in equation.inputs if atom in self._shown]
        if equation.primitive is ir.select_p and known[0] is not None and len(known) == 3:
            hidden = [x is not None and x.size > 0 and bool((x.real < _HIDDEN).all()) for x in known[1:]]
            if sum(hidden) == 1:
                masks.append(known[0].astype(int) != hidden.index(True))
        elif equation.primitive in ir.ADDITIONS:
            masks += [x.real > _HIDDEN for x in known if x is not None and x.ndim == rank and (x.real < _HIDDEN).any()]
        masks = [m for m in masks if m.ndim == rank]
        found: Any = masks[0] if masks else None
        for mask in masks[1:]:
            found = found & mask
        return found


def _computed(equation: ir.Equation, known: Sequence[Any]) -> np.ndarray:
    """The output of an equation for known inputs."""
    if equation.primitive is ir.iota_p:
        shape, d = equation.params["shape"], equation.params["dimension"]
        along = np.arange(shape[d], dtype=equation.outputs[0].dtype)
        return np.broadcast_to(along.reshape([-1 if a == d else 1 for a in range(len(shape))]), shape)
    if equation.primitive is ir.broadcast_p:
        shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
        placed = [known[0].shape[kept.index(a)] if a in kept else 1 for a in range(len(shape))]
        return np.broadcast_to(known[0].reshape(placed), shape)
    if rule_of(equation).elementwise:
        shapes = np.broadcast_shapes(*(x.shape for x in known))
        return values_of(equation, [np.broadcast_to(x, shapes) for x in known])
    values = [jnp.asarray(x.astype(a.dtype)) for x, a in zip(known, equation.inputs, strict=True)]
    (found,) = outside_traces(lambda: [numbers(x) for x in equation.bind_here(*values)])
    return found
