"""Leaves that decide how fast a state decays: their value is a time scale, and says more than any draw could.

Such a leaf multiplies the state that a loop carries, or is added to what becomes the exponent of a decay: of data times
a rate, or of data summed up along the sequence, exp(Σ a · softplus(x + b)), as in selective state-space models and
gated linear attention (Gu and Dao, 2023, arXiv:2312.00752).
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxinit import _program as ir
from jaxinit._reading._evidence import Evidence, LeafRole, Reader
from jaxinit._reading._products import depends_on

_CUMULATIVE = ir.family("cumsum")
_PACES = "added to what decides how fast a state decays"
_MOVES = frozenset(
    {ir.reshape_p, ir.transpose_p, ir.squeeze_p, ir.broadcast_p, ir.slice_p, ir.split_p, ir.rev_p, ir.pad_p}
    | {ir.concatenate_p, ir.tile_p, *ir.IDENTITIES}
)


def multiplies_state(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """The role of a leaf that multiplies the state that a loop carries, by itself or through a function of data."""
    products = evidence.products
    product = products.of(reader.equation)
    if _is_walked(evidence, reader):
        return None
    if any(products.unmoved_here(x) in evidence.carries for x in product.factors):
        return LeafRole("decay", "multiplies the state that a loop carries")
    for equation in (e for x in product.results for e in products.onwards(x)):
        if _multiplies_carry(evidence, equation):
            return LeafRole("decay", "multiplies, through a function of data, the state that a loop carries")
    return None


def _multiplies_carry(evidence: Evidence, equation: ir.Equation) -> bool:
    products = evidence.products
    return products.multiplies(equation) and any(
        products.unmoved_here(x) in evidence.carries for x in products.of(equation).factors
    )


def _is_walked(evidence: Evidence, reader: Reader) -> bool:
    """Whether a loop takes another slice of a leaf in every step, as of a stack of layers."""
    queue, seen = [reader.atom], set()
    while queue:
        atom = queue.pop()
        if atom in evidence.walked:
            return True
        if atom not in seen and depends_on(evidence.flow, atom, reader.leaf) and atom in evidence.flow.producer:
            seen.add(atom)
            queue.extend(evidence.flow.sources(atom))
    return False


class _Stage(NamedTuple):
    """How far a value is on its way to a decay.

    Attributes:
      has_rate: whether a leaf multiplies it.
      summed: whether it is summed up along the sequence.
      is_decay: whether it is a decay: the exponential of one that has a rate.
    """

    has_rate: bool = False
    summed: bool = False
    is_decay: bool = False


def paces_state(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """The role of a leaf that is added to what becomes the exponent of a decay."""
    start = reader.equation.outputs[0]
    stages: dict[ir.Atom, _Stage] = {start: _Stage()}
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
            return LeafRole("decay", _PACES)
        if stage.is_decay and _multiplies_carry(evidence, following):
            return LeafRole("decay", _PACES)
        for atom, after in _next(evidence, following, stages, stage):
            stages[atom] = after
            enter(atom)
    return None


def _joined(stages: Sequence[_Stage]) -> _Stage:
    return _Stage(*(any(flags) for flags in zip(*stages, strict=True)))


def _next(
    evidence: Evidence, following: ir.Equation, stages: Mapping[ir.Atom, _Stage], stage: _Stage
) -> Iterator[tuple[ir.Atom, _Stage]]:
    """The values that an equation hands others on as, each with its stage."""
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
        # To sums along the sequence what the state takes in may be added before the exponential.
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
