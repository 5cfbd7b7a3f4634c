"""Whole-model schemes for `jaxinit.initialize`: values that compare and print like the initializers."""

from jaxinit._schemes._auto import auto as auto
from jaxinit._schemes._defaults import flax_default as flax_default
from jaxinit._schemes._defaults import keras_default as keras_default
from jaxinit._schemes._defaults import torch_default as torch_default
from jaxinit._schemes._residual_schemes import fixup as fixup
from jaxinit._schemes._residual_schemes import gpt2 as gpt2
from jaxinit._schemes._scheme import MisfitError as MisfitError
from jaxinit._schemes._scheme import Scheme as Scheme
from jaxinit._schemes._signal import looks_linear as looks_linear
from jaxinit._schemes._signal import orthogonal_critical as orthogonal_critical
from jaxinit._schemes._signal import random_walk as random_walk
from jaxinit._schemes._signal import sparse as sparse
