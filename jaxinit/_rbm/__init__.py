"""Restricted Boltzmann machines: each layer of a stack of sigmoids starts as a model of what comes into it."""

from jaxinit._rbm._pretrain import rbm_pretrain as rbm_pretrain
from jaxinit._rbm._report import RbmReport as RbmReport
