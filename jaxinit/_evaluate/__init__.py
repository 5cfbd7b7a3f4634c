"""Evaluation: a program run once, with a visitor that sees the output of every layer and decides its scale.

In: what was read of a program, the values of its inputs, and a visitor. Out: the outputs, and a state for each weight.
`_visitor.py` defines what a visitor must answer, `_evaluation.py` runs equations in order and `_control_flow.py` loops
and branches; `_biases.py` adds up what is added to an output. `_scaling.py` applies scales to values computed from
weights, `_rounding.py` finds values that vary only by rounding, and `measure` in `_measure.py` is the evaluation that
measures and changes nothing.
"""

from jaxinit._evaluate._evaluation import Evaluation as Evaluation
from jaxinit._evaluate._measure import measure as measure
from jaxinit._evaluate._measure import stacked as stacked
from jaxinit._evaluate._measure import value_of as value_of
from jaxinit._evaluate._visitor import Watch as Watch
from jaxinit._evaluate._visitor import WeightUse as WeightUse
