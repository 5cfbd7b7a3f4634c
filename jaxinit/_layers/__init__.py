"""Finds the layers of any function `apply_fn(params, batch)` in the program that JAX traces it to."""

from jaxinit._layers._table import Layer as Layer
from jaxinit._layers._table import Layers as Layers
from jaxinit._layers._table import Unvisited as Unvisited
from jaxinit._layers._trace import trace_layers as trace_layers
