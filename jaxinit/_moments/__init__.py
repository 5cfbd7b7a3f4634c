"""Moments: how large the numbers of a program are at initialization, computed from its shapes.

In: what was read of a program, what is known of its inputs, and the variance that each layer's output should have. Out:
for each layer the second moment of its input. Nothing is run on data: a value is represented by a few of its elements,
drawn a thousand times from their distribution over the weights.

`_samples.py` defines such values, `_streams.py` the random numbers that they are drawn from. The rules for primitives
are grouped by family: `_elementwise.py`, `_moves.py`, `_indexed.py`, `_sums.py`, and `_softmax.py` with `_masks.py`.
`_joined.py` finds the parts that a program cuts out of joined values, `_layers.py` computes the outputs of layers,
`_propagation.py` walks through the program, its loops and branches, and `_turns.py` sorts the inputs of layers by the
slices of their weights.
"""

from jaxinit._moments._layers import Incoming as Incoming
from jaxinit._moments._propagation import propagate as propagate
from jaxinit._moments._propagation import terms as terms
from jaxinit._moments._samples import Samples as Samples
from jaxinit._moments._samples import constant as constant
from jaxinit._moments._samples import mean_square as mean_square
from jaxinit._moments._samples import normal_samples as normal_samples
from jaxinit._moments._samples import of_array as of_array
