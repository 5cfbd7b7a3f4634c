"""Measuring: what initial weights do to signals and gradients, at every layer of any JAX function.

In: parameters, a function, a batch and a key. Out: `Measurements`, a frozen pytree of arrays with one entry for each
row, and rows with what is known of each layer from tracing. Nothing is judged here.

`_measure.py` runs the program once forward and once backward. Measurements at a layer are in `_probe.py`, those beside
layers in `_beside_layers.py`, at activations in `_activity.py`, of the Jacobian in `_jacobian.py`, of units in
`_units.py`. `_rows.py` holds what is known of a layer from tracing, `_measurements.py` what was measured and what was
not read, and `_alike.py` decides which rows may be compared.
"""

from jaxinit._measuring._alike import TINY as TINY
from jaxinit._measuring._alike import alike as alike
from jaxinit._measuring._alike import counted as counted
from jaxinit._measuring._alike import ends_branch as ends_branch
from jaxinit._measuring._alike import form as form
from jaxinit._measuring._alike import gains as gains
from jaxinit._measuring._alike import reads_out as reads_out
from jaxinit._measuring._alike import spans as spans
from jaxinit._measuring._measure import Loss as Loss
from jaxinit._measuring._measure import measured as measured
from jaxinit._measuring._measurements import Measurements as Measurements
from jaxinit._measuring._rows import Row as Row
