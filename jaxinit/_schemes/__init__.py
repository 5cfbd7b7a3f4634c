"""Schemes: rules that give every leaf of the parameters its initial value, from how the program uses it.

In: a key, parameters or shapes, a function, a batch and a scheme. Out: parameters, and an `InitializeReport` with the
role, the draw and the reason of each leaf. What no evidence gives a role keeps its value, or is an error.

`_scheme.py` is the base class: one rule for each kind of leaf. A scheme is a class in a file of its kind, which
`register` makes known by its name; what it requires of a model stands in `_requirements.py`. `_roles.py`,
`_matrices.py` and `_vectors.py` say what a rule is asked about, `_incoming.py` what a layer takes, `_drawing.py` and
`_draw.py` draw, and `_made_weights.py` sees to weights that the program makes of a leaf.

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
