"""Decays, frequencies and step sizes of linear recurrences, x_t = λ x_{t-1} + ..., in the parametrisations in use.

A recurrence remembers for about -1/ln|λ| steps, so its eigenvalues are spread over the range that the data may need:
over a ring in the complex plane (LRU, RG-LRU), or over time scales and frequencies of a discretized continuous system
(S4D, Mamba). The parameter is never λ itself but the input of a function that yields λ; that function is inverted here.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import as_scalar, random
from jaxinit._checks import check_choice, check_number, check_ordered, check_rank
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike, Scalar


@initializer
class log_uniform(Initializer):
    r"""Step sizes spread over orders of magnitude, converted to the units of the parameter.

    .. math::
        \ln \Delta \sim U(\ln \text{low}, \ln \text{high}), \qquad w = g^{-1}(\Delta)

    where g is the function that the program applies to the parameter: the identity, exp (S4D, S5) or softplus (Mamba).

    Args:
      low, high: bounds of the step sizes, positive; JAX scalars may be traced.
      through: g, one of "identity", "exp" and "softplus".
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: low or high is not a positive number, low is above high, or g is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> bias = jaxinit.log_uniform(1e-3, 1e-1, through="softplus")(jax.random.key(0), (1000,))
      >>> steps = jax.nn.softplus(bias)
      >>> bool((steps > 0.999e-3).all() & (steps < 1.001e-1).all()), round(float(jnp.median(steps)), 2)
      (True, 0.01)

    Reference: Gu, Gupta, Goel & Ré, 2022 (arXiv:2206.11893); Gu & Dao, 2023 (arXiv:2312.00752).
    """

    allowed = "real"

    low: Scalar
    high: Scalar
    through: str = "identity"
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_number("low", self.low, positive=True)
        check_number("high", self.high, positive=True)
        check_ordered("low", self.low, "high", self.high)
        check_choice("through", self.through, ("identity", "exp", "softplus"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        low, high = as_scalar(self.low, dtype), as_scalar(self.high, dtype)
        above = jnp.log(high / low) * random.uniform(key, shape, dtype)
        if self.through == "exp":
            return jnp.log(low) + above
        step = low * jnp.exp(above)
        return step if self.through == "identity" else step + jnp.log(-jnp.expm1(-step))


@initializer
class lru_ring(Initializer):
    r"""The parameters of the Linear Recurrent Unit, with eigenvalues uniform on a ring in the complex plane.

    .. math::
        \lambda = \exp(-e^\nu + i e^\theta), \qquad |\lambda|^2 \sim U(r_0^2, r_1^2), \qquad
        \arg \lambda \sim U(0, \varphi), \qquad \gamma = \ln \sqrt{1 - |\lambda|^2}

    "gamma" drawn with the key of "nu" normalises the inputs for the same eigenvalues.

    Args:
      r_min, r_max: the radii r₀ and r₁ of the ring, from 0 to 1.
      max_phase: φ, the largest angle; small ones suit long inputs.
      part: which parameter is drawn: "nu", "theta" or "gamma".
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: a radius is not in [0, 1], r_min is above r_max, φ is not positive, or the part is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> nu = jaxinit.lru_ring(0.9, 0.999)(jax.random.key(0), (1000,))
      >>> modulus = jnp.exp(-jnp.exp(nu))
      >>> bool((modulus > 0.899).all() & (modulus < 1).all())
      True

    Reference: Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De, 2023 (arXiv:2303.06349).
    """

    allowed = "real"

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi
    part: str = "nu"
    dtype: DTypeLike = None

    def _check(self) -> None:
        _check_ring(self.r_min, self.r_max)
        check_number("max_phase", self.max_phase, positive=True)
        check_choice("part", self.part, ("nu", "theta", "gamma"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if self.part == "theta":
            return jnp.log(as_scalar(self.max_phase, dtype) * _inside(random.uniform(key, shape, dtype)))
        square = _squared_modulus(key, shape, dtype, self.r_min, self.r_max)
        return jnp.log(-jnp.log(square) / 2) if self.part == "nu" else jnp.log1p(-square) / 2


@initializer
class rg_lru(Initializer):
    r"""The decays of the Real-Gated Linear Recurrent Unit (Griffin), uniform in the square of the modulus.

    .. math::
        a = e^{-\mathrm{softplus}(w)}, \qquad a^2 \sim U(r_0^2, r_1^2)

    The recurrence raises them to the power c·r, with c = 8 and a gate r.

    Args:
      r_min, r_max: the bounds r₀ and r₁ of a, from 0 to 1.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: a bound is not in [0, 1], or r_min is above r_max.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> decay = jax.numpy.exp(-jax.nn.softplus(jaxinit.rg_lru()(jax.random.key(0), (1000,))))
      >>> bool((decay > 0.899).all() & (decay < 1).all())
      True

    Reference: De, Smith, Fernando, Botev et al., 2024 (arXiv:2402.19427).
    """

    allowed = "real"

    r_min: float = 0.9
    r_max: float = 0.999
    dtype: DTypeLike = None

    def _check(self) -> None:
        _check_ring(self.r_min, self.r_max)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        rate = -jnp.log(_squared_modulus(key, shape, dtype, self.r_min, self.r_max)) / 2
        return rate + jnp.log(-jnp.expm1(-rate))  # the inverse of softplus


@initializer
class s4d(Initializer):
    r"""The diagonal state matrix of S4D, or its real or its imaginary part in the units of the parameter.

    .. math::
        A_n = -\tfrac12 + i \pi n \ (\text{lin}), \qquad
        A_n = -\tfrac12 + i \tfrac{N}{\pi} \Bigl( \tfrac{N}{2n + 1} - 1 \Bigr) \ (\text{inv}), \qquad
        A_n = -(n + 1) \ (\text{real})

    for n = 0 ... N - 1 along the last axis. "real" is Mamba's, whose A_log is the part "log_decay".

    Args:
      variant: "lin", "inv" or "real".
      part: "log_decay", ln(-Re A); "frequency", Im A; or "A" itself, for complex dtypes, and for "real" for any dtype.
      dtype: default dtype of the result.

    Raises:
      ValueError: an unknown variant or part; when called, a shape without axes, or "A" of a complex variant in a real
        dtype.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.s4d("real", "A")(jax.random.key(0), (4,))
      Array([-1., -2., -3., -4.], dtype=float32)
      >>> (jaxinit.s4d(part="frequency")(jax.random.key(0), (3,)) / jax.numpy.pi).round()
      Array([0., 1., 2.], dtype=float32)

    Reference: Gu, Gupta, Goel & Ré, 2022 (arXiv:2206.11893).
    """

    random = False

    variant: str = "lin"
    part: str = "log_decay"
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_choice("variant", self.variant, ("lin", "inv", "real"))
        check_choice("part", self.part, ("log_decay", "frequency", "A"))

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        check_rank(self, shape, 1, "(*batch, N)")
        size = shape[-1]
        n = np.arange(size, dtype=np.float64)
        decay = n + 1 if self.variant == "real" else np.full(size, 0.5)
        frequency = {"lin": np.pi * n, "inv": size / np.pi * (size / (2 * n + 1) - 1), "real": 0 * n}[self.variant]
        if self.part == "A":
            if self.variant != "real" and not jnp.issubdtype(dtype, jnp.complexfloating):
                raise ValueError(f"{self!r} is complex, and needs a complex dtype, got {dtype.name}")
            found = -decay + 1j * frequency if jnp.issubdtype(dtype, jnp.complexfloating) else -decay
        else:
            found = np.log(decay) if self.part == "log_decay" else frequency
        return jnp.broadcast_to(jnp.asarray(found.astype(dtype)), shape)


def _check_ring(r_min: Any, r_max: Any) -> None:
    for name, value in (("r_min", r_min), ("r_max", r_max)):
        check_number(name, value, nonnegative=True)
        if value > 1:
            raise ValueError(f"{name} must be 1 or less, since the recurrence would grow, got {value}")
    if r_max == 0:
        raise ValueError("r_max must be above 0: eigenvalues at 0 have no logarithm")
    check_ordered("r_min", r_min, "r_max", r_max)


def _squared_modulus(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any], r_min: float, r_max: float) -> Array:
    return _inside(random.uniform(key, shape, dtype, dtype.type(r_min**2), dtype.type(r_max**2)))


def _inside(u: Array) -> Array:
    """Numbers in [0, 1] moved away from the ends, where logarithms are infinite."""
    info = jnp.finfo(u.dtype)
    return jax.lax.clamp(jnp.asarray(info.tiny, u.dtype), u, jnp.asarray(1 - info.epsneg, u.dtype))
