"""Initial weights of low-rank adapters: x @ W + c · (x @ A) @ B next to a pretrained weight W.

In: parameters, a function and a batch. Out: parameters in which A and B, and for some methods W, are new.
`_adapters.py` finds the adapters and reads and writes their matrices; `_methods.py` has one function for each
method, and `_components.py` measures the inputs of layers.
"""

from jaxinit._lora._methods import eva as eva
from jaxinit._lora._methods import olora as olora
from jaxinit._lora._methods import pissa as pissa
from jaxinit._lora._methods import standard as standard
