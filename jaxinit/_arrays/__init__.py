"""Arrays: random draws, dtypes, axes and shapes, sharding, and computation outside of a trace.

In: shapes, dtypes, keys. Out: arrays, or their canonical descriptions. `random` draws the numbers of `jax.random`, bit
for bit, in fewer kernels. Nothing here depends on what a weight is.
"""

from jaxinit._arrays._axes import axis_indices as axis_indices
from jaxinit._arrays._axes import canonical_axis as canonical_axis
from jaxinit._arrays._axes import canonical_shape as canonical_shape
from jaxinit._arrays._axes import layout as layout
from jaxinit._arrays._dtypes import as_scalar as as_scalar
from jaxinit._arrays._dtypes import canonical_dtype as canonical_dtype
from jaxinit._arrays._dtypes import drawing_dtype as drawing_dtype
from jaxinit._arrays._dtypes import output_dtype as output_dtype
from jaxinit._arrays._dtypes import round_to as round_to
from jaxinit._arrays._eager import jitted_alone as jitted_alone
from jaxinit._arrays._eager import outside_traces as outside_traces
from jaxinit._arrays._sharding import sharded as sharded
from jaxinit._arrays._sharding import whole_array as whole_array
from jaxinit._arrays._sharding import with_automatic_axes as with_automatic_axes
from jaxinit._arrays._threefry import first_words as first_words
from jaxinit._arrays._threefry import folded_in as folded_in
from jaxinit._arrays._threefry import stored as stored
from jaxinit._arrays._threefry import threefry2x32 as threefry2x32
