"""Biases of gated recurrent cells: what a cell remembers before it has learned anything.

A forget gate that is initially open lets gradients through time; chrono spreads the gates over time scales.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import as_scalar, random
from jaxinit._checks import check_number, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike, Scalar


def _check_gates(gates: Any) -> None:
    if not isinstance(gates, str) or not gates or len(set(gates)) < len(gates):
        raise ValueError(
            f"gates must name each gate by one letter, in the order in which the bias holds them, such as "
            f"'ifgo', or a single gate, got {gates!r}"
        )
    if len(gates) > 1 and "f" not in gates:
        raise ValueError(f"gates must contain the forget gate 'f' unless it names a single gate, got {gates!r}")


def _by_gate(
    caller: object, gates: str, segments: dict[str, Array], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """The fused bias: the block of each given gate, zeros elsewhere."""
    zero = jnp.zeros(_gate_shape(caller, gates, shape), dtype)
    return jnp.concatenate([segments.get(gate, zero) for gate in gates], axis=-1)


def _gate_shape(caller: object, gates: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    check_rank(caller, shape, 1, "(*batch, gates * features)")
    if shape[-1] % len(gates):
        raise ValueError(
            f"{caller!r} fuses {len(gates)} gates, which must divide the last axis, got the shape {shape}; "
            "for a cell that keeps one bias per gate pass gates='f' (or 'i', 'g', 'o')"
        )
    return (*shape[:-1], shape[-1] // len(gates))


@initializer
class lstm_bias(Initializer):
    r"""LSTM biases: `forget` for the forget gate, zero for the others.

    .. math:: b_f = \text{forget}, \qquad b_i = b_g = b_o = 0

    Args:
      forget: the forget gate's bias; a JAX scalar may be traced. PyTorch adds two biases: halve it there.
      gates: the gates that the bias vector holds, one letter each in their order: "ifgo" for PyTorch, "ifco"
        for Keras. A single gate, "f" or another, for cells that keep one bias per gate, as Flax's do.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: forget is not a finite number, or gates repeat or lack "f"; when called, the gates do
        not divide the last axis.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.lstm_bias()(jax.random.key(0), (8,))
      Array([0., 0., 1., 1., 0., 0., 0., 0.], dtype=float32)

    Reference: Gers, Schmidhuber & Cummins, 2000; Jozefowicz, Zaremba & Sutskever, 2015.
    """

    random = False

    forget: Scalar = 1.0
    gates: str = "ifgo"
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("forget", self.forget)
        _check_gates(self.gates)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        open_gate = jnp.full(_gate_shape(self, self.gates, shape), as_scalar(self.forget, dtype))
        return _by_gate(self, self.gates, {"f": open_gate}, shape, dtype)


@initializer
class chrono(Initializer):
    r"""Chrono biases: the time scales of the forget gates are spread over the range that the data may need.

    .. math:: b_f \sim \log U(1, T - 1), \qquad b_i = -b_f, \qquad b_g = b_o = 0

    A single gate drawn with the same key as another matches it: "i" is minus "f".

    Args:
      max_timescale: T, the longest dependency in steps, at least 2; a JAX scalar may be traced.
      gates: the gates that the bias vector holds, as in `lstm_bias`.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: T is not a number or below 2, or gates repeat or lack "f"; when called, the gates do
        not divide the last axis.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> bias = jaxinit.chrono(100)(jax.random.key(0), (8,))
      >>> bool((bias[0:2] == -bias[2:4]).all())
      True

    Reference: Tallec & Ollivier, 2018 (arXiv:1804.11188).
    """

    allowed = "real"

    max_timescale: Scalar
    gates: str = "ifgo"
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("max_timescale", self.max_timescale, minimum=2.0)
        _check_gates(self.gates)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        longest = as_scalar(self.max_timescale, dtype) - dtype.type(1)
        steps = random.uniform(key, _gate_shape(self, self.gates, shape), dtype, 1, longest)
        forget = jnp.log(steps)
        return _by_gate(self, self.gates, {"f": forget, "i": -forget}, shape, dtype)
