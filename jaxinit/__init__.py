"""Weight initialization for JAX and Flax: initializers that are values, and right where others are wrong.

`jaxinit.he_uniform()` and its kin are functions of (key, shape, dtype); `jaxinit.haar` samples orthogonal and unitary
matrices; `jaxinit.gain`, `jaxinit.critical` and `jaxinit.fans` compute what they scale by. `jaxinit.nnx`, imported by
itself, has what only NNX needs.
"""

from jaxinit import haar as haar
from jaxinit import schemes as schemes
from jaxinit._activations import lecun_tanh as lecun_tanh
from jaxinit._critical import CriticalPoint as CriticalPoint
from jaxinit._critical import critical as critical
from jaxinit._fans import Fans as Fans
from jaxinit._fans import einsum_axes as einsum_axes
from jaxinit._fans import einsum_fans as einsum_fans
from jaxinit._fans import fans as fans
from jaxinit._gain import gain as gain
from jaxinit._initializers import Initializer as Initializer
from jaxinit._initializers import blocked as blocked
from jaxinit._initializers import chrono as chrono
from jaxinit._initializers import constant as constant
from jaxinit._initializers import delta_orthogonal as delta_orthogonal
from jaxinit._initializers import dirac as dirac
from jaxinit._initializers import from_config as from_config
from jaxinit._initializers import glorot_normal as glorot_normal
from jaxinit._initializers import glorot_uniform as glorot_uniform
from jaxinit._initializers import he_normal as he_normal
from jaxinit._initializers import he_uniform as he_uniform
from jaxinit._initializers import hippo_legs as hippo_legs
from jaxinit._initializers import identity as identity
from jaxinit._initializers import kaiming_normal as kaiming_normal
from jaxinit._initializers import kaiming_uniform as kaiming_uniform
from jaxinit._initializers import lecun_normal as lecun_normal
from jaxinit._initializers import lecun_uniform as lecun_uniform
from jaxinit._initializers import looks_linear as looks_linear
from jaxinit._initializers import lstm_bias as lstm_bias
from jaxinit._initializers import normal as normal
from jaxinit._initializers import ones as ones
from jaxinit._initializers import ones_init as ones_init
from jaxinit._initializers import orthogonal as orthogonal
from jaxinit._initializers import random_walk as random_walk
from jaxinit._initializers import scaled as scaled
from jaxinit._initializers import scaled_uniform_orthogonal as scaled_uniform_orthogonal
from jaxinit._initializers import siren as siren
from jaxinit._initializers import sparse as sparse
from jaxinit._initializers import truncated_normal as truncated_normal
from jaxinit._initializers import uniform as uniform
from jaxinit._initializers import unitary as unitary
from jaxinit._initializers import variance_scaling as variance_scaling
from jaxinit._initializers import with_partitioning as with_partitioning
from jaxinit._initializers import xavier_normal as xavier_normal
from jaxinit._initializers import xavier_uniform as xavier_uniform
from jaxinit._initializers import zero_hadamard as zero_hadamard
from jaxinit._initializers import zeros as zeros
from jaxinit._initializers import zeros_init as zeros_init
from jaxinit._layers import Layer as Layer
from jaxinit._layers import Layers as Layers
from jaxinit._layers import trace_layers as trace_layers
from jaxinit._lsuv import LsuvReport as LsuvReport
from jaxinit._lsuv import lsuv as lsuv
from jaxinit._orthonormalize import orthonormalize as orthonormalize
from jaxinit._schemes import InitializeReport as InitializeReport
from jaxinit._schemes import initialize as initialize
from jaxinit._study import StudyResult as StudyResult
from jaxinit._study import study as study
from jaxinit._version import __version__ as __version__
