"""Programs run piece by piece: equal pieces are compiled once, and what measures is computed by NumPy.

In: a function of pytrees of arrays. Out: a function that gives the same, to rounding, and whose first call waits for
less. A program of a hundred equal layers is compiled as the few layers that differ; what `jaxinit._hosted` marks, and
arithmetic with a few numbers, is not compiled at all. Pieces are known by their equations, shapes and wiring, so that
another function that is traced to the same equations compiles nothing.

That is for arrays that are there, on one CPU device; where anything is unusual the program stays one.

`_cut.py` decides what a piece is, `_keys.py` when two are equal, `_numpy.py` what NumPy computes, `_run.py` compiles
and runs. Nothing here knows what a layer is.
"""

from jaxinit._pieces._hosted import are_made as are_made
from jaxinit._pieces._hosted import computed as computed
from jaxinit._pieces._hosted import hosted as hosted
from jaxinit._pieces._run import Plan as Plan
from jaxinit._pieces._run import evaluated as evaluated
from jaxinit._pieces._run import in_pieces as in_pieces
from jaxinit._pieces._run import kind_of as kind_of
from jaxinit._pieces._run import plan_of as plan_of
