"""Constants: the same number, or the same array, everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import shown
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike


@initializer
class constant(Initializer):
    """Fills an array with a constant, broadcast to the requested shape.

    Args:
      value: a number or an array that broadcasts to the shape; 0.1 for the biases of ReLU layers keeps their
        units from dying. A numpy array is copied; a JAX array makes the initializer unhashable.
      dtype: default dtype of the result.

    Raises:
      TypeError: when made, if the value is not a number or numeric array.
      ValueError: when called, if the value does not broadcast to the shape.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.constant(0.1)(jax.random.key(0), (3,))
      Array([0.1, 0.1, 0.1], dtype=float32)

    Reference: Goodfellow, Bengio & Courville, Deep Learning, 2016, section 6.3 (0.1 for ReLU biases).
    """

    random = False
    allowed = "any"

    value: Any
    dtype: DTypeLike = None

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, (list, tuple, np.ndarray)):
            try:
                value = np.array(value)
            except ValueError:
                raise TypeError(f"value must be a number or an array of numbers, got {shown(value)}") from None
            value.setflags(write=False)
            object.__setattr__(self, "value", value)
        super().__post_init__()

    def _check(self) -> None:
        dtype = (
            self.value.dtype
            if isinstance(self.value, (np.ndarray, jax.Array))
            else np.result_type(type(self.value) if isinstance(self.value, (bool, int, float, complex)) else object)
        )
        if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)):
            raise TypeError(f"value must be a number or an array of numbers, got {shown(self.value)}")

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if jnp.iscomplexobj(self.value) and not jnp.issubdtype(dtype, np.complexfloating):
            raise TypeError(
                f"{self!r} makes complex numbers, got dtype {dtype.name}; pass a dtype such as jnp.complex64"
            )
        try:
            return jnp.full(shape, self.value, dtype)
        except ValueError as error:
            raise ValueError(
                f"value of shape {np.shape(self.value)} does not broadcast to the shape {shape}"
            ) from error


@initializer
class zeros_init(Initializer):
    """Fills an array with zeros: the usual initial biases, but never the kernels of two consecutive layers.

    `jaxinit.zeros` is one, so both `bias_init=jaxinit.zeros` and `bias_init=jaxinit.zeros_init()` work.

    Args:
      dtype: default dtype of the result.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.zeros(jax.random.key(0), (2,))
      Array([0., 0.], dtype=float32)
    """

    random = False
    allowed = "any"

    dtype: DTypeLike = None

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return jnp.zeros(shape, dtype)


@initializer
class ones_init(Initializer):
    """Fills an array with ones: the usual initial scales of normalization layers.

    `jaxinit.ones` is one, so both `scale_init=jaxinit.ones` and `scale_init=jaxinit.ones_init()` work.

    Args:
      dtype: default dtype of the result.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> jaxinit.ones(jax.random.key(0), (2,))
      Array([1., 1.], dtype=float32)
    """

    random = False
    allowed = "any"

    dtype: DTypeLike = None

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return jnp.ones(shape, dtype)


zeros = zeros_init()
ones = ones_init()
