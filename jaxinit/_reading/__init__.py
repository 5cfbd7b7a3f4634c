"""Reading: the layers of any function `apply_fn(params, batch)`, and what each leaf is to them.

In: a program. Out: its weights, layers, roles, activations, branches, attention and cells. Nothing is computed: shapes
are enough.

What a primitive does is one rule in `_rules/`, in files by family. `_analysis.py` walks through the program once and
finds what each value depends on (`_dependence.py`, `_origin.py`), where data meets a weight (`_layers.py`,
`_uses.py`), where a layer ends (`_regions.py` over `_partials.py`, `_sums.py`, `_bias.py`), and which uses share a
weight (`_weights.py`, `_grouping.py`). Based on that, `_following.py` and `_activated.py` find activations,
`_residual.py` over `_paths.py` skip connections, `_closing.py` what closes their branches, `_attention.py` attention,
`_cells.py` recurrent cells, `_blocks.py` the blocks of fused weights, and `_depth.py` depth. The role of a leaf that is
not the weight of a layer is decided in `_roles.py` and `_decays.py`, by the evidence of `_evidence.py`. `_trace.py`
brings everything together, and `_table.py` is the table that users see.
"""

from jaxinit._reading._activated import ActivationInput as ActivationInput
from jaxinit._reading._attention import Attention as Attention
from jaxinit._reading._blocks import Block as Block
from jaxinit._reading._closing import closings as closings
from jaxinit._reading._concatenated_relu import is_concatenated_relu as is_concatenated_relu
from jaxinit._reading._dependence import Dependence as Dependence
from jaxinit._reading._dependence import of_constant as of_constant
from jaxinit._reading._depth import Depth as Depth
from jaxinit._reading._evidence import LeafRole as LeafRole
from jaxinit._reading._layers import Analysis as Analysis
from jaxinit._reading._layers import Component as Component
from jaxinit._reading._layers import Use as Use
from jaxinit._reading._layers import Weight as Weight
from jaxinit._reading._low_rank import LowRankPair as LowRankPair
from jaxinit._reading._low_rank import is_one_product as is_one_product
from jaxinit._reading._low_rank import low_rank_pairs as low_rank_pairs
from jaxinit._reading._low_rank_form import LowRankForm as LowRankForm
from jaxinit._reading._low_rank_form import UnreadableError as UnreadableError
from jaxinit._reading._low_rank_form import dims_of as dims_of
from jaxinit._reading._low_rank_form import low_rank_form as low_rank_form
from jaxinit._reading._made import is_made as is_made
from jaxinit._reading._made import weights_made as weights_made
from jaxinit._reading._normalizations import normalizations as normalizations
from jaxinit._reading._onwards import Onwards as Onwards
from jaxinit._reading._origin import FOREIGN as FOREIGN
from jaxinit._reading._origin import Factor as Factor
from jaxinit._reading._origin import Origin as Origin
from jaxinit._reading._origin import overlap as overlap
from jaxinit._reading._residual import Skip as Skip
from jaxinit._reading._roles import FROZEN as FROZEN
from jaxinit._reading._roles import KEPT as KEPT
from jaxinit._reading._rows import divides_by as divides_by
from jaxinit._reading._rules import rearrangement as rearrangement
from jaxinit._reading._rules import rule_of as rule_of
from jaxinit._reading._table import UNREAD as UNREAD
from jaxinit._reading._table import Layer as Layer
from jaxinit._reading._table import Layers as Layers
from jaxinit._reading._table import Unvisited as Unvisited
from jaxinit._reading._trace import Traced as Traced
from jaxinit._reading._trace import layers_of as layers_of
from jaxinit._reading._trace import trace as trace
from jaxinit._reading._trace import trace_layers as trace_layers
from jaxinit._reading._trace import unvisited as unvisited
from jaxinit._reading._trace import weight_growth as weight_growth
from jaxinit._reading._traced_activation import TracedActivation as TracedActivation
from jaxinit._reading._views import View as View
from jaxinit._reading._views import axis_factors as axis_factors
from jaxinit._reading._views import in_order_of_leaf as in_order_of_leaf
from jaxinit._reading._views import in_order_of_view as in_order_of_view
from jaxinit._reading._views import other_factors as other_factors
from jaxinit._reading._views import part_name as part_name
from jaxinit._reading._views import part_of as part_of
from jaxinit._reading._views import per_slice as per_slice
from jaxinit._reading._views import scale_factors as scale_factors
from jaxinit._reading._views import slice_indices as slice_indices
from jaxinit._reading._views import spread as spread
from jaxinit._reading._views import spread_over_leaf as spread_over_leaf
from jaxinit._reading._views import stacked_size as stacked_size
from jaxinit._reading._views import view as view
from jaxinit._reading._views import weight_name as weight_name
from jaxinit._reading._views import with_part as with_part
