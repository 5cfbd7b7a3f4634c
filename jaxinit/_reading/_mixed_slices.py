"""Which slices of a leaf a value is computed from, if its elements are mixed: `w + w.T` in the body of a loop.

A loop over a leaf passes one slice to its body in each step, and a loop in Python cuts it out. Whatever is computed
from it is computed from that slice, unless the leaf, or some of it, is used in another way too.
"""

from collections.abc import Callable, Iterable, Mapping

from jaxinit import _program as ir
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._origin import Origin


class MixedSlices:
    """The slices behind the values of a program that is being walked.

    Args:
      producers: for each value met so far, its equation.
      of: what a value depends on.
    """

    def __init__(self, producers: Mapping[ir.Atom, ir.Equation], of: Callable[[ir.Atom], Dependence]):
        self.producers, self.of = producers, of
        self.outside: dict[ir.Atom, ir.Atom] = {}

    def enter(self, equation: ir.Equation) -> None:
        """Records which values the programs of a loop or a branch use as a whole, not slice by slice."""
        for entered in ir.entrances(equation):
            self.outside.update((v, atom) for v, atom in entered if v.shape == atom.shape)

    def walked(self, atoms: Iterable[ir.Atom], leaf: int) -> Origin | None:
        """The origin of the slice of a leaf that all of these values are computed from; None if there is no such slice.

        Only its `stack` and `region` are meaningful, since the elements of the slice are mixed. The slice may be all of
        the leaf.
        """
        found: list[Origin] = []
        seen: set[ir.Atom] = set()
        queue = list(atoms)
        while queue:
            atom = queue.pop()
            value = self.of(atom)
            if atom in seen or leaf not in value.degrees:
                continue
            seen.add(atom)
            origin, maker = value.origins.get(leaf), self.producers.get(atom)
            if origin is not None:
                found.append(origin)
            elif maker is not None and not ir.subprograms(maker):
                queue.extend(maker.inputs)
            elif atom in self.outside:
                queue.append(self.outside[atom])
            else:
                return None
        return found[0] if len({(o.stack, o.region) for o in found}) == 1 else None
