"""Sums of layers: which layers' outputs are added before anything else is done with them, as those of a cell are."""

from collections.abc import Container

from jaxinit import _program as ir
from jaxinit._reading import Analysis, Use, rule_of


def terms(analysis: Analysis, joins: Container[ir.Equation]) -> dict[Use, int]:
    """How many layers the sum consists of that a layer's output goes into; sums at the ends of branches aside.

    Args:
      analysis: of the program.
      joins: the equations that add residual branches to what goes past them.
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
                counts[member] = max(counts[member], len(summed))
        elif operands and operands[0] and rule_of(equation).rearranges and len(equation.outputs) == 1:
            found[equation.outputs[0]] = operands[0]
    return counts
