"""Evaluation: a program run once, with a visitor that sees the output of every layer and decides its scale.

In: what was read of a program, the values of its inputs, and a visitor. Out: the outputs, and a state for each weight.
"""

from jaxinit._evaluate._evaluation import Evaluation as Evaluation
from jaxinit._evaluate._measure import measure as measure
from jaxinit._evaluate._measure import stacked as stacked
from jaxinit._evaluate._measure import value_of as value_of
from jaxinit._evaluate._visitor import Watch as Watch
from jaxinit._evaluate._visitor import WeightUse as WeightUse
