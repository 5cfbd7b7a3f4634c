"""LSUV: the scale of every weight from one evaluation of the program on a batch.

In: parameters, a function and a batch. Out: parameters of the same structure whose layers' outputs have unit variance,
and an `LsuvReport`. Parameters are never mutated; what cannot be scaled keeps its value and is named with the reason.

`_lsuv.py` is the public function and says what is skipped; `_options.py` checks and resolves the user's options;
`_passes.py` runs one evaluation, and `_attempts.py` repeats it or goes layer by layer; `_visitor.py` decides a scale at
a layer, from the statistics of `_moments.py` and within the bounds of `_limits.py`; `_acceleration.py` makes repeated
uses converge; `_centre.py` finds biases that can centre an output; `_apply.py` writes scales and orthonormal factors
into leaves. `_fit_readout.py` sets the last layer from targets.
"""

from jaxinit._lsuv._fit_readout import fit_readout as fit_readout
from jaxinit._lsuv._lsuv import lsuv as lsuv
from jaxinit._lsuv._passes import deviations as deviations
from jaxinit._lsuv._report import LsuvReport as LsuvReport
