"""Schemes for recurrent networks: the state is kept, by its kernel or by its gates."""

import dataclasses

from jaxinit._checks import check_number
from jaxinit._initializers import chrono, constant, glorot_uniform, identity, normal, zeros
from jaxinit._schemes._requirements import check_cells, check_plain_cells
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._scheme import Rule, Scheme, register
from jaxinit._schemes._signal import orthogonal_matrix


@register
@dataclasses.dataclass(frozen=True)
class recurrent(Scheme):
    r"""Orthogonal recurrent kernels, gate by gate, and forget gates that are open initially.

    .. math:: U_g^\top U_g = I, \qquad b_f = \text{forget} \quad \text{or} \quad
        b_f \sim \log U(1, T - 1), \; b_i = -b_f

    Input kernels are Glorot's. The second form, chrono, spreads the time scales of the gates up to T. Gates are found
    by what the program does with them: what multiplies the state on its way to the next one is a forget gate (in a GRU,
    the update gate, if it is written so), and what multiplies the candidate that is added is an input gate. If the
    program itself adds a constant to a gate, the bias is smaller by that constant.

    Args:
      forget: bias of the forget gates.
      max_timescale: T, the longest dependency in steps; None for the first form.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.recurrent(max_timescale=100)
      recurrent(forget=1.0, max_timescale=100)

    Reference: Saxe et al., 2014 (arXiv:1312.6120); Jozefowicz, Zaremba & Sutskever, 2015; Tallec & Ollivier, 2018
    (arXiv:1804.11188).
    """

    forget: float = 1.0
    max_timescale: float | None = None

    def _check_fields(self) -> None:
        check_number("forget", self.forget)
        if self.max_timescale is not None:
            check_number("max_timescale", self.max_timescale, minimum=2.0)

    def check(self, model: Model) -> None:
        check_cells(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.meets_state:
            return Rule(orthogonal_matrix(1.0, matrix.layer), "meets the state: orthogonal")
        if matrix.cell is not None:
            return Rule(glorot_uniform(), "input kernel of a cell: Glorot")
        return super().weight(matrix, model)

    def vector(self, vector: Vector, model: Model) -> Rule:
        gate = vector.gate
        if gate is None or gate.role not in ("forget", "input"):
            return super().vector(vector, model)
        if self.max_timescale is None:
            if gate.role == "input":
                return super().vector(vector, model)
            return Rule(constant(self.forget - gate.open), "forget gate, initially open")
        # Both gates of a cell draw with one key: the input gate is minus the forget gate.
        shared = f"chrono biases of cell {gate.cell}"
        init = chrono(self.max_timescale, gates=gate.role[0])
        return Rule(init, f"{gate.role} gate: time scales up to {self.max_timescale:g}", shared)


@register
@dataclasses.dataclass(frozen=True)
class irnn(Scheme):
    r"""IRNN: a rectified recurrent network that initially adds its input to its state.

    .. math:: U = I, \qquad b = 0, \qquad W \sim N(0, \sigma^2)

    Args:
      stddev: σ of the input kernels.

    Example:
      >>> import jaxinit.schemes
      >>> jaxinit.schemes.irnn()
      irnn(stddev=0.001)

    Reference: Le, Jaitly & Hinton, 2015 (arXiv:1504.00941).
    """

    stddev: float = 0.001

    def _check_fields(self) -> None:
        check_number("stddev", self.stddev, nonnegative=True)

    def check(self, model: Model) -> None:
        check_plain_cells(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        if matrix.meets_state:
            return Rule(identity(), "meets the state: the identity")
        if matrix.cell is not None:
            return Rule(normal(self.stddev), "input kernel of a cell: small")
        return super().weight(matrix, model)

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role == "bias":
            return Rule(zeros, "bias")
        return super().vector(vector, model)
