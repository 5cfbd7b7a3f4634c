"""Programs run stage by stage: equal stages are compiled once, and measurements are computed by NumPy.

In: a function of pytrees of arrays. Out: a function with the same results, to rounding, whose first call takes less
time. A program of a hundred equal layers is compiled as the few layers that differ; what `hosted` marks, and arithmetic
with few numbers, is not compiled. Stages are identified by their equations, shapes and wiring, so a different
function that is traced to the same equations compiles nothing.

This applies to concrete arrays on one CPU device; in all unusual cases the program is compiled as one.

`_cut.py` decides what a stage is, `_keys.py` when two are equal, `_compiled.py` compiles and `_run.py` runs them.
`_ahead.py` compiles whole programs, for given devices. What NumPy computes is in `_numpy.py`, by rules in
`_numpy_elementwise.py` and `_numpy_arrays.py`. `_waiting.py` shows on a terminal that a call takes long. Nothing here
knows what a layer is.
"""

from jaxinit._stages._ahead import Ahead as Ahead
from jaxinit._stages._ahead import Placed as Placed
from jaxinit._stages._hosted import are_made as are_made
from jaxinit._stages._hosted import computed as computed
from jaxinit._stages._hosted import hosted as hosted
from jaxinit._stages._hosted import tracing_once as tracing_once
from jaxinit._stages._run import Plan as Plan
from jaxinit._stages._run import evaluated as evaluated
from jaxinit._stages._run import in_stages as in_stages
from jaxinit._stages._run import kind_of as kind_of
from jaxinit._stages._run import plan_of as plan_of
from jaxinit._stages._waiting import quietly as quietly
from jaxinit._stages._waiting import waiting as waiting
