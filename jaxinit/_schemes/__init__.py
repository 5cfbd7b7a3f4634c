"""Whole-model schemes: rules that give every leaf of the parameters its start, from how the program uses it.

All modules are imported here, because a scheme is known by its name once its module is.
"""

from jaxinit._schemes import _admin as _admin
from jaxinit._schemes import _auto as _auto
from jaxinit._schemes import _defaults as _defaults
from jaxinit._schemes import _looks_linear as _looks_linear
from jaxinit._schemes import _mimetic as _mimetic
from jaxinit._schemes import _mup as _mup
from jaxinit._schemes import _recurrent as _recurrent
from jaxinit._schemes import _residual_schemes as _residual_schemes
from jaxinit._schemes import _signal as _signal
from jaxinit._schemes import _transformers as _transformers
from jaxinit._schemes._initialize import InitializeReport as InitializeReport
from jaxinit._schemes._initialize import initialize as initialize
from jaxinit._schemes._scalar_labels import scalar_labels as scalar_labels
