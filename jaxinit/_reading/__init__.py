"""Reading: the layers of any function `apply_fn(params, batch)`, and what each leaf is to them.

In: a program. Out: its weights, layers, roles, activations, branches, attention and cells. Nothing is computed: shapes
are enough.
"""

from jaxinit._reading._table import Layer as Layer
from jaxinit._reading._table import Layers as Layers
from jaxinit._reading._table import Unvisited as Unvisited
from jaxinit._reading._trace import trace_layers as trace_layers
