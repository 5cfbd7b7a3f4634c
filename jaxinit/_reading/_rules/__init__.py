"""What is known of each primitive, one registered `Rule` for each, in files by family.

To support a new primitive, name it in `_program/_primitives.py` and register its rule in the file of its
family here: rearranging and indexing; arithmetic, sums and contractions. Control flow is handled by `_analysis.py`.
"""

from jaxinit._reading._rules import _arithmetic as _arithmetic
from jaxinit._reading._rules._rearranging import cuts as cuts
from jaxinit._reading._rules._rule import Move as Move
from jaxinit._reading._rules._rule import PrimitiveRule as PrimitiveRule
from jaxinit._reading._rules._rule import apply as apply
from jaxinit._reading._rules._rule import is_free as is_free
from jaxinit._reading._rules._rule import rearrangement as rearrangement
from jaxinit._reading._rules._rule import rule_of as rule_of
