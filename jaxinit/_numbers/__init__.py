"""Numbers: activations by name, integrals over a Gaussian, gains, critical points, fans.

In: an activation, or a shape. Out: Python numbers, or arrays if the input is a tracer. All functions are pure. To name
a new activation edit `_activations`; what is integrated is in `_gain` and `_critical`, and how in `_quadrature`.
"""

from jaxinit._numbers._activations import NAMES as NAMES
from jaxinit._numbers._activations import Activation as Activation
from jaxinit._numbers._activations import activation_function as activation_function
from jaxinit._numbers._activations import canonical_activation as canonical_activation
from jaxinit._numbers._activations import lecun_tanh as lecun_tanh
from jaxinit._numbers._critical import CriticalPoint as CriticalPoint
from jaxinit._numbers._critical import critical as critical
from jaxinit._numbers._fans import Fans as Fans
from jaxinit._numbers._fans import check_dilation as check_dilation
from jaxinit._numbers._fans import einsum_axes as einsum_axes
from jaxinit._numbers._fans import einsum_fans as einsum_fans
from jaxinit._numbers._fans import fans as fans
from jaxinit._numbers._gain import elementwise as elementwise
from jaxinit._numbers._gain import gain as gain
from jaxinit._numbers._quadrature import evaluate as evaluate
from jaxinit._numbers._quadrature import gaussian_means as gaussian_means
