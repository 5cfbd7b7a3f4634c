"""Whole-model schemes for `jaxinit.initialize`: values that compare and print like the initializers."""

from jaxinit._schemes import CoordinateReport as CoordinateReport
from jaxinit._schemes import MisfitError as MisfitError
from jaxinit._schemes import Rule as Rule
from jaxinit._schemes import Scheme as Scheme
from jaxinit._schemes import admin as admin
from jaxinit._schemes import auto as auto
from jaxinit._schemes import coordinate_check as coordinate_check
from jaxinit._schemes import deepnorm as deepnorm
from jaxinit._schemes import deepnorm_constants as deepnorm_constants
from jaxinit._schemes import fixup as fixup
from jaxinit._schemes import flax_default as flax_default
from jaxinit._schemes import gpt2 as gpt2
from jaxinit._schemes import irnn as irnn
from jaxinit._schemes import keras_default as keras_default
from jaxinit._schemes import looks_linear as looks_linear
from jaxinit._schemes import mimetic as mimetic
from jaxinit._schemes import mup as mup
from jaxinit._schemes import orthogonal_critical as orthogonal_critical
from jaxinit._schemes import random_walk as random_walk
from jaxinit._schemes import recurrent as recurrent
from jaxinit._schemes import register as register
from jaxinit._schemes import rezero as rezero
from jaxinit._schemes import skip_init as skip_init
from jaxinit._schemes import sparse as sparse
from jaxinit._schemes import t_fixup as t_fixup
from jaxinit._schemes import torch_default as torch_default
