"""Programs: a function traced by JAX, as one flat list of equations in execution order.

In: a function and its arguments, arrays or shapes. Out: a `Program` without dead code, in which stacks that a loop
indexes by its counter have become inputs that it scans over. Nothing here knows what a weight is.

This room is the only contact with JAX's extension API. To support a new primitive, name it in `_primitives.py`. The
representation is `_ir.py`, tracing and inlining `_tracing.py`, dead code `_dead_code.py`, stacks `_stacks.py`, loops
over several leaves `_unrolled.py`, recurrences that a Python loop wrote out `_rolled.py`. `_replaced.py` runs a
function with another computation in place of a primitive; `_repeated.py` runs one whose equal parts are traced once.
"""

from jaxinit._program._dead_code import traced_program as traced_program
from jaxinit._program._ir import Atom as Atom
from jaxinit._program._ir import Call as Call
from jaxinit._program._ir import Constant as Constant
from jaxinit._program._ir import Equation as Equation
from jaxinit._program._ir import Program as Program
from jaxinit._program._ir import Recomputed as Recomputed
from jaxinit._program._ir import Scan as Scan
from jaxinit._program._ir import Switch as Switch
from jaxinit._program._ir import Variable as Variable
from jaxinit._program._ir import While as While
from jaxinit._program._ir import entrances as entrances
from jaxinit._program._ir import equations_of as equations_of
from jaxinit._program._ir import fills as fills
from jaxinit._program._ir import goes_forwards as goes_forwards
from jaxinit._program._ir import holds_program as holds_program
from jaxinit._program._ir import is_floating as is_floating
from jaxinit._program._ir import is_integer as is_integer
from jaxinit._program._ir import is_key as is_key
from jaxinit._program._ir import is_known as is_known
from jaxinit._program._ir import is_opaque as is_opaque
from jaxinit._program._ir import is_traced as is_traced
from jaxinit._program._ir import subprograms as subprograms
from jaxinit._program._primitives import *  # noqa: F403
from jaxinit._program._repeated import repeated as repeated
from jaxinit._program._replaced import replacing as replacing
from jaxinit._program._rolled import rolled as rolled
from jaxinit._program._stacks import with_stacks as with_stacks
from jaxinit._program._tracing import as_function as as_function
from jaxinit._program._tracing import flat as flat
from jaxinit._program._tracing import flat_program as flat_program
from jaxinit._program._tracing import shape_of as shape_of
from jaxinit._program._tracing import trace as trace
from jaxinit._program._tracing import uncollected as uncollected
from jaxinit._program._unrolled import unrolled as unrolled
