"""Restricted Boltzmann machines: each layer of a stack of sigmoids is pretrained as a model of its input.

In: a key, parameters, a function and a batch. Out: parameters with the stack pretrained, and an `RbmReport`.
`_stack.py` finds the stack in the program and says why other layers are not in it, `_leaf_array.py` reads and writes
the leaves, and `_contrastive_divergence.py` trains one machine.
"""

from jaxinit._rbm._pretrain import rbm_pretrain as rbm_pretrain
from jaxinit._rbm._report import RbmReport as RbmReport
