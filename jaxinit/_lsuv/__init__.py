"""LSUV: the scale of every weight from one evaluation of the program on a batch."""

from jaxinit._lsuv._lsuv import lsuv as lsuv
from jaxinit._lsuv._passes import deviations as deviations
from jaxinit._lsuv._report import LsuvReport as LsuvReport
