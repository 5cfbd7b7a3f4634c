"""The layers of a program that can be pretrained: the leading chain of dense layers, each followed by a sigmoid."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from jaxinit import _program as ir
from jaxinit._evaluate import value_of
from jaxinit._rbm._leaf_array import LeafArray, leaf_array_of
from jaxinit._reading import Analysis, Layer, Use, Weight, rule_of
from jaxinit._schemes import Model
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """A layer of the chain.

    Attributes:
      layer: its row in the table.
      use: the operation.
      weight: where the program reads the weight, as (visible, hidden).
      bias: where it reads the bias, as (hidden,); None for a layer without.
    """

    layer: Layer
    use: Use
    weight: LeafArray
    bias: LeafArray | None

    def visible(self, program: ir.Program, inputs: Sequence[Array]) -> Array:
        """The input of the layer, of shape (samples, visible)."""
        values = value_of(program, self.use.data, inputs)
        (contracted, _) = self.use.equation.params["dimension_numbers"]
        (axis,) = contracted[1 - self.use.entries[0].weight]
        return jnp.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def stack_of(model: Model) -> tuple[list[Level], list[tuple[str, str]]]:
    """The chain from the first layer on, and the other layers, each with the reason why it is not in the chain."""
    stack: list[Level] = []
    others: list[tuple[str, str]] = []
    for layer, weight_read in model.layers:
        if others:
            others.append((layer.name, f"comes after {others[0][0]}"))
            continue
        found = _level(model, layer, weight_read, stack)
        if isinstance(found, Level):
            stack.append(found)
        else:
            others.append((layer.name, found))
    return stack, others


def _level(model: Model, layer: Layer, weight_read: Weight, below: list[Level]) -> Level | str:
    """The layer as the next one of the chain, or the reason why it cannot be."""
    analysis, use = model.traced.analysis, weight_read.uses[0]
    if layer.kind != "dense":
        return f"is of kind {layer.kind!r}, not dense"
    if use.entries[0].equation is not use.equation:
        return "is written out as products and a sum"
    if use.equation not in analysis.program.equations:
        return "is used inside a loop or a branch"
    name = layer.activation.name if layer.activation else "no activation"
    if name != "sigmoid":
        return f"is followed by {name}, not by a sigmoid"
    weight = leaf_array_of(analysis, use.weight, use.geometry.in_dims + use.geometry.out_dims)
    if weight is None:
        return "has a weight that the program computes, other than by rearranging a leaf"
    bias = None
    if use.biases:
        features = tuple(use.placed[d] for d in use.geometry.out_dims if d in use.placed)
        bias = leaf_array_of(analysis, use.biases[0].value, features)
        plain = len(use.biases) == 1 and use.sign == use.biases[0].sign == 1 and not use.biases[0].moves
        if bias is None or len(features) < len(use.geometry.out_dims) or not plain:
            return "has a bias that is not a vector of its own, added to its output"
    if below and not _is_made_of(analysis, use.data, below[-1].use.finish.outputs[0]):
        return f"does not take the output of {below[-1].layer.name} as it is"
    taken = [array for level in below for array in (level.weight, level.bias) if array]
    if any(array.overlaps(other) for array in (weight, bias) if array for other in taken):
        return "shares its weight or its bias with a layer below"
    return Level(layer, use, weight, bias)


def _is_made_of(analysis: Analysis, atom: ir.Atom, start: ir.Variable) -> bool:
    """Whether a value is another one, rearranged and mapped element by element by that one's activation."""
    producers = {out: equation for equation in analysis.program.equations for out in equation.outputs}
    while atom is not start:
        equation = producers.get(atom) if isinstance(atom, ir.Variable) else None
        data = [] if equation is None else [a for a in equation.inputs if analysis.of(a).data]
        if equation is None or len(set(data)) != 1 or ir.subprograms(equation):
            return False
        rule = rule_of(equation)
        if not (rule.elementwise or rule.move(equation) is not None):
            return False
        atom = data[0]
    return True
