"""Attention, found by what it computes: softmax(Q Kᵀ) V, three layers before it and one after it.

When a contraction of data with data has an operand that comes from another such contraction through an exponential, it
mixes values by the probabilities of scores. The layers that the operands come from are the query, key and value
projections, wherever the program cuts them from; the layers that the mixture goes to are output projections.

Both contractions may be inside a loop over blocks of queries or of keys, with the layers around it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._flow import Flow, Followed, Tracks, follow, use_start
from jaxinit._reading._layers import Use
from jaxinit._reading._residual import Skip


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a layer's output: the indices along each dimension of features, None along others."""

    use: Use
    indices: tuple[frozenset[int] | None, ...]

    @classmethod
    def followed(cls, use: Use, track: Followed) -> "Features":
        """The features of the output that a value comes from."""
        features = set(use.geometry.placed.values())
        rank = len(use_start(use).shape)
        return cls(use, tuple(track.indices(d) if d in features else None for d in range(rank)))

    @classmethod
    def whole(cls, use: Use) -> "Features":
        """All of the output."""
        return cls.followed(use, Followed.from_start(use_start(use).shape))


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention: the layers that it consists of.

    Attributes:
      query, key, value: what the operands come from.
      output: the layers that the mixture of values goes to.
      size: the contracted size, of one head.
      cross: whether queries and keys come from different data.
      probabilities: what the values are mixed by.
      summed: the dimensions of the probabilities that belong to the values.
      in_parts: whether a loop around it computes it in parts, of queries or of keys.
    """

    query: tuple[Features, ...]
    key: tuple[Features, ...]
    value: tuple[Features, ...]
    output: tuple[Use, ...]
    size: int
    cross: bool
    probabilities: ir.Atom
    summed: tuple[int, ...]
    in_parts: bool = False


def attentions(flow: Flow, connections: Iterable[Skip]) -> list[Attention]:
    """Every attention of a program, in execution order; the skip connections tell where a block begins."""
    sums = frozenset(skip.sum.outputs[0] for skip in connections)
    return [found for around in _nests(flow.analysis.program) for found in _Attentions(flow, around, sums).found()]


class _Nest(NamedTuple):
    """Nested programs, outermost first, and the equations that hold all but the first."""

    programs: tuple[ir.Program, ...]
    holders: tuple[ir.Equation, ...] = ()


def _nests(program: ir.Program, around: _Nest | None = None) -> Iterator[_Nest]:
    """Every program, with those around it."""
    programs, holders = around or ((), ())
    nest = _Nest((*programs, program), holders)
    yield nest
    for equation in program.holders:
        for inner in ir.subprograms(equation):
            yield from _nests(inner, nest._replace(holders=(*nest.holders, equation)))


class _Attentions:
    """The attention in one program.

    The search stops at layers and at the sums of skip connections, so each search looks at one block.
    """

    def __init__(self, flow: Flow, nest: _Nest, sums: frozenset[ir.Variable]):
        self.flow, self.nest = flow, nest
        program = nest.programs[-1]
        self.mixes: dict[ir.Variable, ir.Equation] = {
            e.outputs[0]: e
            for e in program.equations
            if e.primitive is ir.dot_general_p and all(flow.is_data(a) for a in e.inputs)
        }
        if len(self.mixes) < 2:
            return
        self.numbers = {e: (i, n) for i, inner in enumerate(nest.programs) for e, n in inner.numbers.items()}
        self.uses = [flow.analysis.uses[e] for e in self.numbers if e in flow.analysis.uses]
        self.use_of: dict[ir.Atom, Use] = {use_start(s): s for s in self.uses}
        self.use_of |= {s.finish.outputs[0]: s for s in self.uses}
        self.mixes = {v: e for v, e in self.mixes.items() if v not in self.use_of}
        self.operations = {entry.equation: s for s in self.uses for entry in s.entries}
        self.starts = frozenset(use_start(s) for s in self.uses)
        self.ends = {*self.use_of, *self.mixes, *sums}
        self.far_ends = {*self.starts, *self.mixes, *sums}
        self.nearest_ends = {*self.use_of, *nest.programs[0].inputs, *sums}

    def _between(self, starts: Iterable[ir.Variable], reached: Iterable[ir.Atom], others: bool) -> Tracks:
        """Where the elements of some values go in the equations that make some others."""
        equations: dict[ir.Equation, tuple[int, int]] = {}
        for atom in reached:
            equation = self.flow.producer.get(atom)
            if equation in self.numbers:
                equations[equation] = self.numbers[equation]
            elif equation is None and isinstance(atom, ir.Variable):
                entry = self._entry(atom)
                if entry is not None:
                    equations[entry] = self.levels[atom], -1
        program = self.nest.programs[-1]
        ordered = tuple(sorted(equations, key=equations.__getitem__))
        return follow(self.flow, dataclasses.replace(program, equations=ordered), starts, others=others)

    @functools.cached_property
    def levels(self) -> dict[ir.Variable, int]:
        """The nesting depth of the programs whose inputs values are."""
        return {v: i for i, program in enumerate(self.nest.programs) for v in program.inputs}

    def _entry(self, atom: ir.Variable) -> ir.Equation | None:
        """Treats an input of a loop's or a branch's program as an equation of a value around it, or a slice of one."""
        sources = self.flow.sources(atom)
        if len(sources) != 1 or atom not in self.levels:
            return None
        (outer,) = sources
        sliced = outer.shape != atom.shape
        primitive, params = (ir.squeeze_p, {"dimensions": (0,)}) if sliced else (ir.copy_p, dict[str, Any]())
        return ir.Equation(primitive, params, (outer,), (atom,), None)

    def found(self) -> list[Attention]:
        if len(self.mixes) < 2:
            return []
        results = []
        for mix in self.mixes.values():
            for operand, probabilities in enumerate(mix.inputs):
                score = self._score(probabilities)
                if score is not None:
                    results.append(self._attention(mix, operand, score))
        return [x for x in results if x.query and x.key and x.value]

    def _score(self, probabilities: ir.Atom) -> ir.Equation | None:
        """The contraction that probabilities come from through an exponential, if there is exactly one."""
        passed = list(self.flow.upstream([probabilities], self.ends.__contains__))
        producers = [self.flow.producer.get(a) for a in passed]
        scores = [self.mixes[a] for a in passed if isinstance(a, ir.Variable) and a in self.mixes]
        is_softmax = any(e is not None and e.primitive in (ir.exp_p, ir.exp2_p) for e in producers)
        return scores[0] if is_softmax and len(scores) == 1 else None

    def _attention(self, mix: ir.Equation, operand: int, score: ir.Equation) -> Attention:
        key = self._key_operand(mix, operand, score)
        query = self._features_of(score.inputs[1 - key])
        keys = self._features_of(score.inputs[key])
        (contracted, _), _ = score.params["dimension_numbers"]
        return Attention(
            query,
            keys,
            self._features_of(mix.inputs[1 - operand]),
            self._readers(mix.outputs[0]),
            size=math.prod(score.inputs[0].shape[d] for d in contracted),
            cross=self._nearest(b.use.data for b in query) != self._nearest(b.use.data for b in keys),
            probabilities=mix.inputs[operand],
            summed=tuple(mix.params["dimension_numbers"][0][operand]),
            in_parts=any(b.use.finish not in self.nest.programs[-1].numbers for b in (*query, *keys)),
        )

    def _key_operand(self, mix: ir.Equation, operand: int, score: ir.Equation) -> int:
        """Which operand of the scores is the keys: the one whose positions the mixture sums over."""
        (start,) = score.outputs
        probabilities = mix.inputs[operand]
        passed = list(self.flow.upstream([probabilities], self.ends.__contains__))
        tracks = self._between([start], passed, others=True).get(probabilities, {})  # type: ignore[arg-type]
        if start not in tracks:
            return 1
        track = tracks[start]
        summed = mix.params["dimension_numbers"][0][operand]
        axes = {f.axis for d in summed for f in track.dims[d]}
        (_, (batch, _)) = score.params["dimension_numbers"]
        left = len(score.inputs[0].shape) - len(score.params["dimension_numbers"][0][0])
        return 0 if any(len(batch) <= axis < left for axis in axes) else 1

    def _features_of(self, atom: ir.Atom) -> tuple[Features, ...]:
        """The features of layers' outputs that a value comes from."""
        reached = list(self.flow.upstream([atom], self.far_ends.__contains__))
        starts = [a for a in reached if isinstance(a, ir.Variable) and a in self.starts]
        tracks = self._between(starts, reached, others=False)
        found = self.flow.upstream([atom], lambda a: a in tracks or a in self.use_of)
        blocks: dict[Use, list[Features]] = {}
        for a in found:
            for start, track in tracks[a].items() if isinstance(a, ir.Variable) and a in tracks else ():
                use = self.use_of[start]
                blocks.setdefault(use, []).append(Features.followed(use, track))
        return tuple(joined(parts) for parts in blocks.values())

    def _readers(self, value: ir.Atom) -> tuple[Use, ...]:
        """The layers that a value goes to before it meets a layer, another such contraction or a skip connection."""
        seen: set[ir.Equation] = set()
        pending: list[tuple[ir.Atom, int]] = [(value, len(self.nest.programs) - 1)]
        while pending:
            atom, level = pending.pop()
            for equation in self.nest.programs[level].readers.get(atom, ()):
                if equation is None:
                    pending.extend((v, level - 1) for v in self._leaving(atom, level))
                elif equation not in seen:
                    seen.add(equation)
                    outputs = () if equation in self.operations else equation.outputs
                    pending.extend((v, level) for v in outputs if v not in self.ends and self.flow.is_data(v))
        found = sorted(seen & self.operations.keys(), key=self.numbers.__getitem__)
        return tuple(dict.fromkeys(self.operations[equation] for equation in found))

    def _leaving(self, atom: ir.Atom, level: int) -> list[ir.Variable]:
        """The outputs of a loop or a branch that an output of its program is, or is a slice of."""
        if level == 0 or self.nest.programs[level].outputs.count(atom) == 0:
            return []
        holder = self.nest.holders[level - 1]
        pairs = zip(self.nest.programs[level].outputs, holder.outputs, strict=False)
        return [v for output, v in pairs if output is atom and v not in self.ends and self.flow.is_data(v)]

    def _nearest(self, values: Iterable[ir.Atom]) -> frozenset[ir.Atom]:
        """The nearest layers, skip connections or inputs of the program that values are computed from."""
        ends = self.nearest_ends
        return frozenset(a for a in self.flow.upstream(values, ends.__contains__) if a in ends)


def encoder_uses(flow: Flow, found: Iterable[Attention]) -> frozenset[Use]:
    """The layers that the memory of cross attention is computed from; empty without cross attention."""
    memories = [b.use.data for a in found if a.cross for b in a.key]
    atoms = set(flow.upstream(memories, lambda a: False))
    return frozenset(s for s in flow.analysis.uses.values() if s.finish.outputs[0] in atoms)


def joined(blocks: list[Features]) -> Features:
    """All of some features of one layer."""
    indices = [
        None if dims[0] is None else frozenset().union(*dims) for dims in zip(*(b.indices for b in blocks), strict=True)
    ]
    return Features(blocks[0].use, tuple(indices))
