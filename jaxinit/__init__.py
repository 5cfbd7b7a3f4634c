"""Weight initialization for JAX and Flax: initializers that are values, and right where others are wrong.

`jaxinit.he_uniform()` and its kin are functions of (key, shape, dtype); `jaxinit.haar` samples orthogonal and unitary
matrices; `jaxinit.gain`, `jaxinit.critical` and `jaxinit.fans` compute what they scale by. `jaxinit.nnx`, imported by
itself, has what only NNX needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are in __init__.pyi
