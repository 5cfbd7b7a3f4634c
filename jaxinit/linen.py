"""What Flax Linen users need beyond the initializers: residual modules, and whole-model methods that accept modules."""

from jaxinit._flax.linen_methods import diagnose as diagnose
from jaxinit._flax.linen_methods import initialize as initialize
from jaxinit._flax.linen_methods import lsuv as lsuv
from jaxinit._flax.linen_methods import split as split
from jaxinit._flax.linen_methods import trace_layers as trace_layers
from jaxinit._flax.linen_modules import FixupResidual as FixupResidual
from jaxinit._flax.linen_modules import ScalarBias as ScalarBias
from jaxinit._flax.linen_modules import ScalarMultiplier as ScalarMultiplier
from jaxinit._flax.linen_modules import ScaledResidual as ScaledResidual
from jaxinit._typing import Split as Split
