"""Whole-model schemes: rules that give every leaf of the parameters its start, from how the program uses it."""

from jaxinit._schemes._initialize import InitializeReport as InitializeReport
from jaxinit._schemes._initialize import initialize as initialize
