"""What Flax NNX users need beyond the initializers: residual modules, partitioning, and methods that accept models.

Whole-model methods take the model itself; those that change weights change them in place.
"""

from jaxinit._flax.nnx_methods import diagnose as diagnose
from jaxinit._flax.nnx_methods import initialize as initialize
from jaxinit._flax.nnx_methods import lsuv as lsuv
from jaxinit._flax.nnx_methods import split as split
from jaxinit._flax.nnx_methods import trace_layers as trace_layers
from jaxinit._flax.nnx_modules import FixupResidual as FixupResidual
from jaxinit._flax.nnx_modules import ScalarBias as ScalarBias
from jaxinit._flax.nnx_modules import ScalarMultiplier as ScalarMultiplier
from jaxinit._flax.nnx_modules import ScaledResidual as ScaledResidual
from jaxinit._flax.nnx_partitioning import nnx_with_partitioning as nnx_with_partitioning
from jaxinit._flax.nnx_partitioning import with_partitioning as with_partitioning
from jaxinit._typing import Split as Split
