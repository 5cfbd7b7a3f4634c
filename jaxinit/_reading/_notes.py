"""What a walk records beside layers: other uses of leaves by data, and which leaves are not the weight of a layer."""

from collections.abc import Sequence, Set

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._layers import Read, Use
from jaxinit._reading._mixed_slices import MixedSlices
from jaxinit._reading._partials import is_outer
from jaxinit._reading._weights import UNSCALABLE

_JOINED = "data multiplies it together with others, element by element"


class Notes:
    """What is recorded, while `recording`.

    Attributes:
      uses: the layers so far, by the equation that finishes each.
      opaque: leaves that are not the weight of a layer though data meets them as one, and why.
      reads: where else data meets a leaf.
      read_leaves: the leaves that an output depends on.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], slices: MixedSlices):
        self.shapes, self.slices = shapes, slices
        self.uses: dict[ir.Equation, Use] = {}
        self.opaque: list[tuple[int, str]] = []
        self.read_leaves: set[int] = set()
        self.reads: list[Read] = []
        self.recording = True

    def activation_input(
        self,
        equation: ir.Equation,
        arguments: list[Dependence],
        weight: int | None = None,
        weights: Set[int] = frozenset(),
    ) -> None:
        """Records which leaves data meets here, other than these as the weight of a layer."""
        if not self.recording:
            return
        self.hidden(equation, arguments)
        for i, value in enumerate(arguments):
            self.read_leaves |= set(value.degrees)
            if weight is None and equation.primitive in ir.CONTRACTIONS and not is_outer(equation):
                self.opaque.extend((leaf, UNSCALABLE[degree == 0]) for leaf, degree in value.degrees.items())
            elif value.segments is not None and weight is None:
                matrices = (leaf for leaf in value.degrees if sum(n > 1 for n in self.shapes[leaf]) > 1)
                self.opaque.extend((leaf, _JOINED) for leaf in matrices)
            for part in value.parts:
                for leaf, degree in part.degrees.items():
                    if degree != 0 and not (i == weight and leaf in weights):
                        origin, alone = part.origins.get(leaf), part.degree(leaf)
                        slices = origin or self.slices.walked([equation.inputs[i]], leaf)
                        stack = slices.stack if slices else ()
                        self.reads.append(Read(leaf, origin, alone, len(self.uses), stack, equation.primitive))

    def hidden(self, equation: ir.Equation, arguments: list[Dependence]) -> None:
        """Records an equation that hides the leaves that enter it."""
        leaves = [leaf for value in arguments for leaf, degree in value.degrees.items() if degree != 0]
        if self.recording and leaves and ir.is_opaque(equation):
            reason = f"it enters {equation.primitive}, whose program is not read"
            self.opaque.extend((leaf, reason) for leaf in leaves)

    def mixed(self, before: Sequence[Dependence], after: Sequence[Dependence]) -> None:
        """A carry or a branch that begins as parameters and continues as data reads the parameters."""
        for x, y in zip(before, after, strict=True):
            if y.data and not x.data:
                self.read(x)

    def decisions(self, decision: Dependence, results: Sequence[Dependence]) -> None:
        """Records parameters that decide how data goes on, which counts as reading them."""
        if any(x.data for x in results):
            self.read(decision)

    def read(self, x: Dependence) -> None:
        """Records that data meets all leaves of a value."""
        if self.recording:
            self.read_leaves |= set(x.degrees)
            origins = {leaf: x.origins.get(leaf) for leaf, d in x.degrees.items() if d != 0}
            self.reads.extend(
                Read(leaf, o, x.degrees[leaf], len(self.uses), o.stack if o else ()) for leaf, o in origins.items()
            )
