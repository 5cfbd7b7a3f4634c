"""Propagation: one walk through a program, with samples of a few elements for every value."""

import dataclasses
import functools
from collections.abc import Callable, Container, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import whole_array
from jaxinit._moments import _moves, _sums
from jaxinit._moments._elementwise import BY_PRIMITIVE, elementwise
from jaxinit._moments._indexed import SCATTERS, gathered, scattered
from jaxinit._moments._joined import Joined
from jaxinit._moments._layers import Incoming, gaussian, output
from jaxinit._moments._masks import Masks
from jaxinit._moments._samples import (
    ALIKE,
    CHANCE,
    Samples,
    aligned,
    constant,
    is_array,
    is_one_number,
    mean_square,
    numbers,
    of_array,
    of_constant,
    random,
)
from jaxinit._moments._softmax import normalized_by_sum, softmax
from jaxinit._moments._streams import COUNT, Streams
from jaxinit._moments._turns import Turns
from jaxinit._moments._variances import variance, variances
from jaxinit._reading import Analysis, Use, Weight, normalizations, rule_of

_STEPS = 8
"""How many steps of a loop are simulated; more for a loop over a stack of weights."""
_STACK_STEPS = 64
_NORMALIZED = (0.5, 2.0)
"""Between these is the mean square of what has been divided by the root of its own."""
_MOST_CLASSES = 64
"""Integers of which only the shape is known are below this; two of them are as rarely equal as elements are alike."""

Variance = Callable[[Use, Incoming], float]
Later = Callable[[], Samples]


def propagate(
    analysis: Analysis, leaves: Sequence[Callable[[], Samples | None]], batch: Sequence[Any], variance: Variance
) -> Mapping[Weight, Incoming]:
    """The second moments of the input of each weight.

    Args:
      analysis: of the program.
      leaves: of the parameters, as far as they are known; others count as standard normal. Only leaves that are more
        than a layer's weight are needed.
      batch: the leaves of the batch, arrays or shapes; the numbers of arrays are used, unless they are all equal.
      variance: of a layer's output, as a function of the layer's input.
    """
    walk = _Propagation(analysis, variance)
    program = analysis.program
    shapes = program.inputs
    inputs: list[Later] = [functools.partial(walk.leaf, v, x) for v, x in zip(shapes, leaves, strict=False)]
    inputs += [functools.partial(walk.data, v, x) for v, x in zip(shapes[len(leaves) :], batch, strict=True)]
    with np.errstate(all="ignore"):
        walk.run(program, inputs, _integers(shapes[len(leaves) :], batch))
    return walk.turns.by_weight()


def _integers(variables: Sequence[ir.Variable], batch: Sequence[Any]) -> dict[ir.Atom, np.ndarray]:
    """The leaves of the batch that are integers or booleans with known values."""
    found = zip(variables, batch, strict=True)
    return {v: numbers(whole_array(x)) for v, x in found if not ir.is_floating(v) and not ir.is_key(v) and is_array(x)}


class _Propagation:
    """One walk; `turns` holds the inputs of each layer so far."""

    def __init__(self, analysis: Analysis, variance: Variance):
        self.analysis, self.variance = analysis, variance
        self.streams = Streams()
        self.uses = {use.equation: use for use in analysis.uses.values()}
        self.stacked = {leaf for weight in analysis.weights if weight.stack for leaf in weight.regions}
        self.turns = Turns(analysis)
        self.normalizing = {e for e in normalizations(analysis) if all(map(self._is_data, e.inputs))}

    def _is_data(self, atom: ir.Atom) -> bool:
        return isinstance(atom, ir.Variable) and self.analysis.of(atom).data

    def unknown(self, atom: ir.Atom) -> Samples:
        """A value of which nothing is known."""
        if ir.is_key(atom) or not ir.is_floating(atom):
            return dataclasses.replace(constant(0, atom.shape), known=False)
        return random(self.streams, atom.shape, known=False)

    def leaf(self, variable: ir.Variable, known: Callable[[], Samples | None]) -> Samples:
        """A leaf of the parameters."""
        found = known()
        return self.unknown(variable) if found is None else found

    def data(self, variable: ir.Variable, leaf: Any) -> Samples:
        """A leaf of the batch."""
        if ir.is_key(variable):
            return constant(0, variable.shape)
        if is_array(leaf):
            array = numbers(whole_array(leaf))
            if not is_one_number(array) and np.isfinite(mean_square(array)):
                return of_array(array)
        if ir.is_floating(variable):
            return random(self.streams, variable.shape, alike=ALIKE)
        if not ir.is_integer(variable):
            return constant(True, variable.shape)
        drawn = random(self.streams, variable.shape)
        uniform = self.streams.uniforms(*drawn.values.shape[1:])
        return dataclasses.replace(drawn, values=(uniform * _MOST_CLASSES).astype(np.dtype(variable.dtype)))

    def run(
        self,
        program: ir.Program,
        inputs: "Sequence[Samples | Later]",
        integers: Mapping[ir.Atom, np.ndarray] = MappingProxyType({}),
    ) -> list[Samples]:
        """The outputs of a program, some of whose inputs are known integers."""
        given = dict(zip(program.inputs, inputs, strict=True))
        values: dict[ir.Atom, Samples] = {v: x for v, x in given.items() if isinstance(x, Samples)}
        divisions, spreads = normalized_by_sum(program), variances(program)
        masks, joined = Masks(integers), Joined()

        def read(atom: ir.Atom) -> Samples:
            if isinstance(atom, ir.Constant):
                return of_constant(atom) or self.unknown(atom)
            if atom not in values:
                later = given[atom]
                values[atom] = later if isinstance(later, Samples) else later()
            return values[atom]

        for equation in program.equations:
            masks.visit(equation)
            pieces = joined.pieces(equation)
            use = self.uses.get(equation)
            if use is not None and use.entries[0].equation is equation:
                values[equation.outputs[0]] = self._layer(use, read(use.entries[0].data))
                continue
            taken = [read(atom) for atom in equation.inputs]
            if any(0 in v.shape for v in equation.outputs):
                found = [constant(0, v.shape) for v in equation.outputs]
            elif equation in divisions and taken[0].marks:
                counts = masks.counts(equation.inputs[0], divisions[equation])
                found = [softmax(self.streams, taken[0], divisions[equation], counts)]
            elif equation in spreads:
                elements, total, axes = spreads[equation]
                both, rank = (read(elements), read(total.outputs[0])), len(equation.outputs[0].shape)
                found = [variance(self.streams, *both, axes, rank)]
            elif pieces:
                found = [piece.of(self.streams, read(piece.atom)) for piece in pieces]
            elif (array := masks.counted(equation)) is not None:
                found = [of_array(array)]
            elif equation.primitive in SCATTERS:
                added = scattered(self.streams, equation, taken, masks.known(equation.inputs[1]))
                found = [self.unknown(equation.outputs[0]) if added is None else added]
            else:
                found = self._outputs(equation, taken, values)
            for variable, x in zip(equation.outputs, found, strict=True):
                values[variable] = x if x.shape == variable.shape else self.unknown(variable)
        return [read(atom) for atom in program.outputs]

    def _outputs(
        self, equation: ir.Equation, inputs: list[Samples], values: Mapping[ir.Atom, Samples]
    ) -> list[Samples]:
        match equation:
            case ir.Scan():
                return self._scan(equation, inputs)
            case ir.Switch():
                return self._switch(equation, inputs)
            case ir.While():
                return self._while(equation, inputs)
        found = self._primitive(equation, inputs)
        if found is None:
            found = [self.unknown(v) for v in equation.outputs]
        results = [found] if isinstance(found, Samples) else list(found)
        if equation in self.normalizing and _NORMALIZED[0] < results[0].second_moment() < _NORMALIZED[1]:
            # Of whatever size the value was, it is not any more.
            results = [dataclasses.replace(results[0], known=True)]
        if equation in self.uses:
            return [self._spelled_out(self.uses[equation], results[0], values)]
        return results

    def _layer(self, use: Use, data: Samples) -> Samples:
        incoming = Incoming.of(use, data)
        self.turns.add(use, incoming)
        return output(self.streams, use, data, self.variance(use, incoming))

    def _spelled_out(self, use: Use, found: Samples, values: Mapping[ir.Atom, Samples]) -> Samples:
        """The outputs of a layer that consists of several equations, with the variance that it should have."""
        met = [Incoming.of(use, values[entry.data]) for entry in use.entries if entry.data in values]
        if not met:
            return found
        incoming = Incoming.mean(met)
        self.turns.add(use, incoming)
        return gaussian(self.streams, use, found, self.variance(use, incoming))

    def _primitive(self, equation: ir.Equation, inputs: list[Samples]) -> Samples | list[Samples] | None:
        primitive = equation.primitive
        if primitive is ir.random_bits_p:
            drawn = random(self.streams, equation.outputs[0].shape)
            dtype = np.dtype(equation.outputs[0].dtype)
            uniform = self.streams.uniforms(*drawn.values.shape[1:])
            return dataclasses.replace(drawn, values=(uniform * 2.0 ** (8 * dtype.itemsize)).astype(dtype))
        if any(map(ir.is_key, (*equation.inputs, *equation.outputs))):
            return None
        if primitive is ir.gather_p:
            return gathered(self.streams, equation, inputs[0])
        if primitive in _moves.RULES:
            return _moves.RULES[primitive](self.streams, equation, inputs)
        if primitive in _sums.RULES:
            return _sums.RULES[primitive](self.streams, equation, inputs)
        if rule_of(equation).elementwise or primitive in ir.ELEMENTWISE | ir.IDENTITIES | BY_PRIMITIVE.keys():
            if len(equation.outputs) > 1:
                return inputs
            return elementwise(equation, inputs)
        return None

    def _scan(self, equation: ir.Scan, inputs: list[Samples]) -> list[Samples]:
        first, second = equation.num_consts, equation.num_consts + equation.num_carry
        consts, carry, walked = inputs[:first], inputs[first:second], inputs[second:]
        is_stack = not self.stacked.isdisjoint(self.turns.walked(equation))
        rows: list[list[Samples]] = []
        for step in range(min(equation.length, _STACK_STEPS if is_stack else _STEPS)):
            slices = [self._entry(x, step) for x in walked]
            self.turns.now.append((equation, step))
            results = self.run(equation.body, [*consts, *carry, *slices])
            self.turns.now.pop()
            carry = results[: equation.num_carry]
            rows.append(results[equation.num_carry :])
        outputs = equation.outputs[equation.num_carry :]
        if not rows:
            return [*carry, *map(self.unknown, outputs)]
        return [*carry, *(_stacked([row[i] for row in rows], v.shape[0]) for i, v in enumerate(outputs))]

    def _entry(self, stack: Samples, step: int) -> Samples:
        """The slice for one step of a value that a loop runs over."""
        found = _moves.cut(self.streams, stack, 0, step, 1)
        return dataclasses.replace(found, factors=found.factors[1:])

    def _switch(self, equation: ir.Switch, inputs: list[Samples]) -> list[Samples]:
        branches = [self.run(branch, inputs[1:]) for branch in equation.branches]
        return [_either(cases) for cases in zip(*branches, strict=True)]

    def _while(self, equation: ir.While, inputs: list[Samples]) -> list[Samples]:
        first, second = equation.condition_consts, equation.condition_consts + equation.body_consts
        carry = inputs[second:]
        for _ in range(_STEPS):
            carry = self.run(equation.body, [*inputs[first:second], *carry])
        return carry


def _stacked(steps: Sequence[Samples], length: int) -> Samples:
    """The last steps, repeated to represent all of a stack."""
    wide = [dataclasses.replace(x, factors=((), *x.factors)) for x in steps[-2:]]
    if length == 1:
        return wide[-1]
    arrays, factors = aligned(wide)
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    pair = np.stack([np.broadcast_to(a, shape) for a in (arrays[0], arrays[-1])], 1)
    marks = 0
    for x in wide:
        marks |= x.marks
    return Samples(pair, ((length,), *factors[1:]), marks, all(x.known for x in wide))


def _either(cases: Sequence[Samples]) -> Samples:
    """A mixture of several values in equal shares."""
    arrays, factors = aligned(cases)
    chosen = np.random.default_rng(len(cases)).permutation(np.arange(COUNT) % len(cases))
    values, marks = arrays[0], CHANCE
    for i, (array, case) in enumerate(zip(arrays, cases, strict=True)):
        values = np.where(chosen.reshape(-1, *[1] * (array.ndim - 1)) == i, array, values)
        marks |= case.marks
    return Samples(values, factors, marks, all(x.known for x in cases))


def terms(analysis: Analysis, joins: Container[ir.Equation], apart: Set[Use]) -> dict[Use, int]:
    """How many layers are added in the sum that a layer's output goes into, except for sums that end branches.

    Args:
      analysis: of the program.
      joins: the equations that add residual branches to their skip connections.
      apart: layers that do not count.
    """
    found: dict[ir.Atom, frozenset[Use]] = {}
    counts = dict.fromkeys(analysis.uses.values(), 1)
    for equation in ir.equations_of(analysis.program):
        use = analysis.uses.get(equation)
        if use is not None:
            found[equation.outputs[0]] = frozenset([use])
            continue
        operands = [found.get(atom, frozenset()) for atom in equation.inputs]
        if equation.primitive in ir.ADDITIONS and all(operands) and equation not in joins:
            summed = frozenset.union(*operands)
            found[equation.outputs[0]] = summed
            for member in summed:
                counts[member] = max(counts[member], len(summed - apart))
        elif operands and operands[0] and rule_of(equation).rearranges and len(equation.outputs) == 1:
            found[equation.outputs[0]] = operands[0]
    return counts
