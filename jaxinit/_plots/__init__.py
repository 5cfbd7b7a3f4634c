"""Plots, one file per kind: every function accepts a report or arrays and Matplotlib axes, and returns the axes."""

from jaxinit._plots._activations import activations as activations
from jaxinit._plots._phase import phase_diagram as phase_diagram
from jaxinit._plots._signals import signals as signals
from jaxinit._plots._spectra import eigenvalues as eigenvalues
from jaxinit._plots._spectra import jacobian as jacobian
from jaxinit._plots._spectra import singular_values as singular_values
from jaxinit._plots._studies import learning_curves as learning_curves
from jaxinit._plots._studies import outcomes as outcomes
from jaxinit._plots._studies import over_depth as over_depth
