"""Moments: how large the numbers of a program are at the start, from its shapes.

In: what was read of a program, what is known of its inputs, and the variance that each layer's output is to have. Out:
for each layer the second moment of what it is applied to. Nothing is run on data: a value is a handful of its elements,
drawn a thousand times from the distribution that they have over the weights.

What a value is stands in `_samples.py`, the numbers that it is drawn from in `_streams.py`. How primitives act on
values is told by family: `_elementwise.py`, `_moves.py`, `_indexed.py`, `_sums.py`, and `_softmax.py` with `_masks.py`.
`_layers.py` gives the outputs of layers, `_propagation.py` walks through the program, its loops and branches, and
`_turns.py` sorts what layers took by the slices of their weights.
"""

from jaxinit._moments._layers import Incoming as Incoming
from jaxinit._moments._propagation import propagate as propagate
from jaxinit._moments._propagation import terms as terms
from jaxinit._moments._samples import Samples as Samples
from jaxinit._moments._samples import constant as constant
from jaxinit._moments._samples import mean_square as mean_square
from jaxinit._moments._samples import normal_samples as normal_samples
from jaxinit._moments._samples import of_array as of_array
