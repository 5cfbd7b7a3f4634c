"""Weight initialization for JAX and Flax: initializers that are values, and that are right where others are wrong.

`jaxinit.he_uniform()` and the others are functions of (key, shape, dtype). `jaxinit.haar` samples orthogonal and
unitary matrices. `jaxinit.gain`, `jaxinit.critical` and `jaxinit.fans` compute the numbers that initializers scale by.
`jaxinit.linen`, `jaxinit.nnx` and `jaxinit.plot` hold everything that needs Flax or Matplotlib.
"""

import lazy_loader

_NEED_MORE = {"linen", "nnx", "plot"}  # loaded when they are named, never by `import *`

# The names are in __init__.pyi.
__getattr__, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in _NEED_MORE]


def __dir__() -> list[str]:
    return list(__all__)
