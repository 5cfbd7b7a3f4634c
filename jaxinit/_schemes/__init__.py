"""Schemes: rules that draw every leaf of the parameters, according to how the program uses it.

In: a key, parameters or shapes, a function, a batch and a scheme. Out: parameters, and an `InitializeReport` with the
role, the draw and the reason of each leaf. A leaf whose role the program does not show keeps its value, or is an error.

`_scheme.py` is the base class: one rule for each kind of leaf. A scheme is a class in a file of its kind, which
`register` makes available by name; its requirements of a model are in `_requirements.py`. `_roles.py`,
`_matrices.py` and `_vectors.py` define the arguments of rules, `_incoming.py` computes the input of each layer,
`_drawing.py` and `_draw.py` draw, and `_made_weights.py` handles weights that the program makes of a leaf.
"""

from jaxinit._schemes._admin import admin as admin
from jaxinit._schemes._auto import auto as auto
from jaxinit._schemes._closed import closed as closed
from jaxinit._schemes._coordinates import CoordinateReport as CoordinateReport
from jaxinit._schemes._coordinates import coordinate_check as coordinate_check
from jaxinit._schemes._defaults import flax_default as flax_default
from jaxinit._schemes._defaults import keras_default as keras_default
from jaxinit._schemes._defaults import torch_default as torch_default
from jaxinit._schemes._draw import key_for as key_for
from jaxinit._schemes._initialize import InitializeReport as InitializeReport
from jaxinit._schemes._initialize import initialize as initialize
from jaxinit._schemes._language_models import transformer as transformer
from jaxinit._schemes._mimetic import mimetic as mimetic
from jaxinit._schemes._mup import mup as mup
from jaxinit._schemes._recurrent import irnn as irnn
from jaxinit._schemes._recurrent import recurrent as recurrent
from jaxinit._schemes._requirements import MisfitError as MisfitError
from jaxinit._schemes._residual_schemes import fixup as fixup
from jaxinit._schemes._residual_schemes import gpt2 as gpt2
from jaxinit._schemes._residual_schemes import rezero as rezero
from jaxinit._schemes._residual_schemes import skip_init as skip_init
from jaxinit._schemes._roles import Model as Model
from jaxinit._schemes._roles import roles as roles
from jaxinit._schemes._scalar_labels import scalar_labels as scalar_labels
from jaxinit._schemes._scheme import SCHEMES as SCHEMES
from jaxinit._schemes._scheme import Rule as Rule
from jaxinit._schemes._scheme import Scheme as Scheme
from jaxinit._schemes._scheme import from_config as from_config
from jaxinit._schemes._scheme import register as register
from jaxinit._schemes._signal import looks_linear as looks_linear
from jaxinit._schemes._signal import orthogonal_critical as orthogonal_critical
from jaxinit._schemes._signal import random_walk as random_walk
from jaxinit._schemes._signal import sparse as sparse
from jaxinit._schemes._transformers import deepnorm as deepnorm
from jaxinit._schemes._transformers import deepnorm_constants as deepnorm_constants
from jaxinit._schemes._transformers import t_fixup as t_fixup
