"""Initializers: frozen values that are called with (key, shape, dtype) and draw one array.

In: a key, a shape and a dtype. Out: an array. Everything that all initializers share (keys, shapes, dtypes,
shardings, equality, printing) is in `_base.py`. A subclass, in a file of its kind, names its hyperparameters, checks
them, and draws. `_config.py` turns values into data and back, and `_draws.py` holds draws in the order of JAX's own.
"""

from jaxinit._initializers._base import INITIALIZERS as INITIALIZERS
from jaxinit._initializers._base import Initializer as Initializer
from jaxinit._initializers._base import draw_from as draw_from
from jaxinit._initializers._base import initializer as initializer
from jaxinit._initializers._combinators import blocked as blocked
from jaxinit._initializers._combinators import scaled as scaled
from jaxinit._initializers._config import from_config as from_config
from jaxinit._initializers._constants import constant as constant
from jaxinit._initializers._constants import ones as ones
from jaxinit._initializers._constants import ones_init as ones_init
from jaxinit._initializers._constants import zeros as zeros
from jaxinit._initializers._constants import zeros_init as zeros_init
from jaxinit._initializers._delta_orthogonal import delta_orthogonal as delta_orthogonal
from jaxinit._initializers._delta_orthogonal import scaled_uniform_orthogonal as scaled_uniform_orthogonal
from jaxinit._initializers._distributions import normal as normal
from jaxinit._initializers._distributions import truncated_normal as truncated_normal
from jaxinit._initializers._distributions import uniform as uniform
from jaxinit._initializers._gate_biases import chrono as chrono
from jaxinit._initializers._gate_biases import lstm_bias as lstm_bias
from jaxinit._initializers._hippo import hippo_legs as hippo_legs
from jaxinit._initializers._identity import dirac as dirac
from jaxinit._initializers._identity import identity as identity
from jaxinit._initializers._linear_recurrences import log_uniform as log_uniform
from jaxinit._initializers._linear_recurrences import lru_ring as lru_ring
from jaxinit._initializers._linear_recurrences import rg_lru as rg_lru
from jaxinit._initializers._linear_recurrences import s4d as s4d
from jaxinit._initializers._looks_linear import looks_linear as looks_linear
from jaxinit._initializers._orthogonal import orthogonal as orthogonal
from jaxinit._initializers._orthogonal import unitary as unitary
from jaxinit._initializers._partitioning import Partitioning as Partitioning
from jaxinit._initializers._partitioning import with_partitioning as with_partitioning
from jaxinit._initializers._random_walk import random_walk as random_walk
from jaxinit._initializers._siren import siren as siren
from jaxinit._initializers._sparse import sparse as sparse
from jaxinit._initializers._stft import stft as stft
from jaxinit._initializers._variance_scaling import VarianceScaling as VarianceScaling
from jaxinit._initializers._variance_scaling import variance_scaling as variance_scaling
from jaxinit._initializers._variance_scaling_members import glorot_normal as glorot_normal
from jaxinit._initializers._variance_scaling_members import glorot_uniform as glorot_uniform
from jaxinit._initializers._variance_scaling_members import he_normal as he_normal
from jaxinit._initializers._variance_scaling_members import he_uniform as he_uniform
from jaxinit._initializers._variance_scaling_members import kaiming_normal as kaiming_normal
from jaxinit._initializers._variance_scaling_members import kaiming_uniform as kaiming_uniform
from jaxinit._initializers._variance_scaling_members import lecun_normal as lecun_normal
from jaxinit._initializers._variance_scaling_members import lecun_uniform as lecun_uniform
from jaxinit._initializers._variance_scaling_members import xavier_normal as xavier_normal
from jaxinit._initializers._variance_scaling_members import xavier_uniform as xavier_uniform
from jaxinit._initializers._zero_hadamard import zero_hadamard as zero_hadamard
