"""Plots of initializations, with Matplotlib (`pip install jaxinit[plot]`); every function takes and returns axes."""

from jaxinit._plots import activations as activations
from jaxinit._plots import eigenvalues as eigenvalues
from jaxinit._plots import jacobian as jacobian
from jaxinit._plots import learning_curves as learning_curves
from jaxinit._plots import outcomes as outcomes
from jaxinit._plots import over_depth as over_depth
from jaxinit._plots import phase_diagram as phase_diagram
from jaxinit._plots import signals as signals
from jaxinit._plots import singular_values as singular_values
