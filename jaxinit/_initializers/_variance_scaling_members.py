"""Glorot (Xavier), He (Kaiming) and LeCun: variance scaling with a fixed scale, mode and distribution.

What their docstrings share is written once, and inserted before each reference.
"""

import dataclasses
from typing import TypeVar

from jaxinit._initializers._base import INITIALIZERS, initializer
from jaxinit._initializers._variance_scaling import VarianceScaling
from jaxinit._typing import Axis, DTypeLike


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Member(VarianceScaling):
    """A member of the family: scale, mode and distribution belong to its class."""

    in_axis: Axis = -2
    out_axis: Axis = -1
    batch_axis: Axis = ()
    dtype: DTypeLike = None
    feature_group_count: int = dataclasses.field(default=1, kw_only=True)
    transpose: bool = dataclasses.field(default=False, kw_only=True)
    lhs_dilation: Axis = dataclasses.field(default=1, kw_only=True)


_IN_COMMON = """Args:
      in_axis, out_axis, batch_axis, dtype, feature_group_count, transpose, lhs_dilation: as in
        `variance_scaling`, of which this is the special case ({scale}, "{mode}", "{distribution}").

    Raises:
      TypeError, ValueError: as `variance_scaling`.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.{name}()(jax.random.key(0), (3, 3, 16, 32)).shape
      (3, 3, 16, 32)

    Reference:"""

_M = TypeVar("_M", bound=type[_Member])


def _described(member: _M) -> _M:
    """Adds the sections that all members share to a docstring, between its formula and its reference."""
    case = {"scale": member.scale, "mode": member.mode, "distribution": member.distribution}
    member.__doc__ = (member.__doc__ or "").replace("Reference:", _IN_COMMON.format(name=member.__name__, **case))
    return member


@initializer
@_described
class glorot_uniform(_Member):
    r"""Glorot's uniform weights, also called Xavier's: for tanh and sigmoid.

    .. math::
        w \sim U(-a, a), \qquad a = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}

    Reference: Glorot & Bengio, Understanding the difficulty of training deep feedforward networks, 2010.
    """

    scale = 1.0
    mode = "fan_avg"
    distribution = "uniform"


@initializer
@_described
class glorot_normal(_Member):
    r"""Glorot's weights from a normal truncated at two standard deviations: for tanh and sigmoid.

    .. math::
        \operatorname{Var} w = \frac{2}{\text{fan\_in} + \text{fan\_out}}

    Reference: Glorot & Bengio, Understanding the difficulty of training deep feedforward networks, 2010.
    """

    scale = 1.0
    mode = "fan_avg"
    distribution = "truncated_normal"


@initializer
@_described
class lecun_uniform(_Member):
    r"""LeCun's uniform weights: for linear layers and SELU.

    .. math::
        w \sim U\left(-\sqrt{3 / \text{fan\_in}},\; \sqrt{3 / \text{fan\_in}}\right)

    Reference: LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998; Klambauer et al., 2017 (arXiv:1706.02515).
    """

    scale = 1.0
    mode = "fan_in"
    distribution = "uniform"


@initializer
@_described
class lecun_normal(_Member):
    r"""LeCun's weights from a normal truncated at two standard deviations: for linear layers and SELU.

    .. math::
        \operatorname{Var} w = \frac{1}{\text{fan\_in}}

    Reference: LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998; Klambauer et al., 2017 (arXiv:1706.02515).
    """

    scale = 1.0
    mode = "fan_in"
    distribution = "truncated_normal"


@initializer
@_described
class he_uniform(_Member):
    r"""He's uniform weights, also called Kaiming's: for ReLU and similar activations.

    .. math::
        w \sim U\left(-\sqrt{6 / \text{fan\_in}},\; \sqrt{6 / \text{fan\_in}}\right)

    Reference: He, Zhang, Ren & Sun, 2015 (arXiv:1502.01852).
    """

    scale = 2.0
    mode = "fan_in"
    distribution = "uniform"


@initializer
@_described
class he_normal(_Member):
    r"""He's weights from a normal truncated at two standard deviations: for ReLU and similar activations.

    .. math::
        \operatorname{Var} w = \frac{2}{\text{fan\_in}}

    Reference: He, Zhang, Ren & Sun, 2015 (arXiv:1502.01852).
    """

    scale = 2.0
    mode = "fan_in"
    distribution = "truncated_normal"


xavier_uniform = glorot_uniform
xavier_normal = glorot_normal
kaiming_uniform = he_uniform
kaiming_normal = he_normal

INITIALIZERS.update(
    xavier_uniform=xavier_uniform,
    xavier_normal=xavier_normal,
    kaiming_uniform=kaiming_uniform,
    kaiming_normal=kaiming_normal,
)
