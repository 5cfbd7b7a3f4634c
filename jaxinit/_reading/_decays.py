"""Leaves that decide how fast a state decays: their value is a time scale, which no random draw could replace.

Such a leaf multiplies the state of a recurrence, or is multiplied by or added to a value that becomes the exponent of a
decay: of data times a rate, or of a cumulative sum of data along the sequence, exp(Σ a · softplus(x + b)), as in
selective state-space models and gated linear attention (Gu and Dao, 2023, arXiv:2312.00752). The recurrence is a loop
that carries its state, or a divide-and-conquer recurrence, as `associative_scan` writes it out.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._evidence import Evidence, LeafRole, Reader
from jaxinit._reading._products import depends_on

_CUMULATIVE = ir.family("cumsum")
_PACES = "added to a value that decides how fast a state decays"
_MOVES = frozenset(
    {ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.broadcast_p, ir.slice_p, ir.split_p, ir.rev_p, ir.pad_p}
    | {ir.concatenate_p, ir.tile_p, *ir.IDENTITIES}
)


def multiplies_state(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """The role of a leaf that multiplies the state of a recurrence, by itself or through a function of data."""
    products = evidence.products
    product = products.of(reader.equation)
    if _is_walked(evidence, reader):
        return None
    if _multiplies_carry(evidence, reader.equation):
        return LeafRole("decay", "multiplies the state of a recurrence")
    if any(_becomes_decay(evidence, x, _Stage(has_rate=True, is_decay=True)) for x in product.results):
        return LeafRole("decay", "multiplies, through a function of data, the state of a recurrence")
    return None


def _multiplies_carry(evidence: Evidence, equation: ir.Equation, decays: Set[ir.Atom] = frozenset()) -> bool:
    """Whether an equation multiplies the state of a recurrence, where the state is not one of the possible decays."""
    products = evidence.products
    if not products.multiplies(equation):
        return False
    carried = any(products.unmoved_here(x) in evidence.carries for x in products.of(equation).factors)
    return carried or _combines(evidence, equation, decays)


def _combines(evidence: Evidence, equation: ir.Equation, decays: Set[ir.Atom]) -> bool:
    """Whether a product of one part of a value is added to another part of it: b₂ + a₂ b₁, as `associative_scan` does.

    That is a divide-and-conquer recurrence, whose state is the whole value.
    """
    products = evidence.products
    states = [x for x in equation.inputs if evidence.flow.is_data(x) and x not in decays]
    cuts = [cut for x in states if (cut := _cut(evidence, x)) is not None]
    if not cuts:
        return False
    for atom, following in products.moved(equation.outputs[0]):
        others = (
            [x for x in following.inputs if x is not atom] if following.primitive in (ir.add_p, ir.add_any_p) else []
        )
        found = [cut for x in others if (cut := _cut(evidence, x)) is not None]
        if any(a is not b and a.inputs[0] is b.inputs[0] for a in cuts for b in found):
            return True
    return False


def _cut(evidence: Evidence, atom: ir.Atom) -> ir.Equation | None:
    """The equation that has cut a value out of another one, however it has been moved since."""
    while (maker := evidence.flow.producer.get(atom)) is not None and maker.primitive in _MOVES:
        if maker.primitive is ir.slice_p:
            return maker
        atom = maker.inputs[0]
    return None


def _is_walked(evidence: Evidence, reader: Reader) -> bool:
    """Whether a loop uses another slice of a leaf in every step, as with a stack of layers."""
    queue, seen = [reader.atom], set()
    while queue:
        atom = queue.pop()
        if atom in evidence.walked:
            return any(_varies(evidence, x, 0, reader.leaf) for x in evidence.flow.sources(atom))
        if atom not in seen and depends_on(evidence.flow, atom, reader.leaf) and atom in evidence.flow.producer:
            seen.add(atom)
            queue.extend(evidence.flow.sources(atom))
    return False


def _varies(evidence: Evidence, atom: ir.Atom, dimension: int, leaf: int) -> bool:
    """Whether a value has different elements of a leaf along a dimension, not copies of some."""
    while depends_on(evidence.flow, atom, leaf):
        maker = evidence.flow.producer.get(atom)
        if maker is None:
            return True
        source = maker.inputs[0]
        if maker.primitive is ir.broadcast_p:
            kept = maker.params["broadcast_dimensions"]
            if dimension not in kept or source.shape[kept.index(dimension)] == 1:
                return False
            dimension = kept.index(dimension)
        elif maker.primitive is ir.transpose_p:
            dimension = maker.params["permutation"][dimension]
        elif maker.primitive is ir.reshape_p:
            first, last = _run(atom.shape, dimension)
            runs = [_run(source.shape, d) for d in range(len(source.shape))]
            met = [d for d, (start, stop) in enumerate(runs) if max(first, start) < min(last, stop)]
            return any(_varies(evidence, source, d, leaf) for d in met)
        elif maker.primitive in ir.ELEMENTWISE:
            alike_in_shape = [x for x in maker.inputs if x.shape == atom.shape]
            return any(_varies(evidence, x, dimension, leaf) for x in alike_in_shape)
        elif maker.primitive not in ir.IDENTITIES:
            return True
        atom = source
    return False


def _run(shape: Sequence[int], dimension: int) -> tuple[int, int]:
    """How many elements apart neighbours along a dimension are, and how many the dimension spans."""
    inner = math.prod(shape[dimension + 1 :])
    return inner, inner * shape[dimension]


class _Stage(NamedTuple):
    """How far a value has got on its way to becoming a decay.

    Attributes:
      has_rate: whether a leaf multiplies it.
      summed: whether it is a cumulative sum along the sequence.
      is_decay: whether it is a decay: the exponential of a value that has a rate.
    """

    has_rate: bool = False
    summed: bool = False
    is_decay: bool = False


def paces_state(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """The role of a leaf that is added to a value that becomes the exponent of a decay."""
    return LeafRole("decay", _PACES) if _becomes_decay(evidence, reader.equation.outputs[0], _Stage()) else None


def _becomes_decay(evidence: Evidence, start: ir.Atom, stage: _Stage) -> bool:
    """Whether a value, from a stage on, becomes a decay that multiplies a state."""
    stages: dict[ir.Atom, _Stage] = {start: stage}
    pending: list[tuple[int, int, ir.Equation]] = []

    def enter(atom: ir.Atom) -> None:
        for following in evidence.products.readers.get(atom, ()):
            outputs = [evidence.products.order[v] for v in following.outputs]
            heapq.heappush(pending, (min(outputs, default=0), id(following), following))

    enter(start)
    seen: set[ir.Equation] = set()
    while pending:
        *_, following = heapq.heappop(pending)
        if following in seen:
            continue
        seen.add(following)
        stage = _joined([stages[x] for x in following.inputs if x in stages])
        if following.primitive is ir.exp_p and stage.summed:
            return True
        decays = {x for x in following.inputs if x in stages and stages[x].is_decay}
        if decays and _multiplies_carry(evidence, following, decays):
            return True
        for atom, after in _next(evidence, following, stages, stage):
            stages[atom] = after
            enter(atom)
    return False


def _joined(stages: Sequence[_Stage]) -> _Stage:
    return _Stage(*(any(flags) for flags in zip(*stages, strict=True)))


def _next(
    evidence: Evidence, following: ir.Equation, stages: Mapping[ir.Atom, _Stage], stage: _Stage
) -> Iterator[tuple[ir.Atom, _Stage]]:
    """The values that an equation turns others into, each with its stage."""
    if ir.subprograms(following):
        pairs = (pair for entered in ir.entrances(following) for pair in entered)
        yield from ((v, stages[outside]) for v, outside in pairs if outside in stages)
        return
    strange = [x for x in following.inputs if evidence.flow.is_data(x) and x not in stages]
    if following.primitive in _CUMULATIVE:
        stage = stage._replace(summed=True)
    elif following.primitive is ir.exp_p and stage.has_rate:
        stage = stage._replace(is_decay=True)
    elif following.primitive in ir.ELEMENTWISE:
        # The input of the state may be added to cumulative sums before the exponential.
        if strange and not (stage.summed and following.primitive in ir.ADDITIONS):
            return
        rate = evidence.products.multiplies(following) and any(_is_rate(evidence, x) for x in following.inputs)
        stage = stage._replace(has_rate=stage.has_rate or rate)
    elif following.primitive not in _MOVES:
        return
    yield from ((v, stage) for v in following.outputs)


def _is_rate(evidence: Evidence, atom: ir.Atom) -> bool:
    """Whether a value is a function of parameters."""
    found = evidence.analysis.of(atom)
    return not found.data and any(part.degrees for part in found.parts)
