"""Initializers made of initializers: blocks drawn one by one, and a factor on the whole weight."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import as_scalar, axis_indices
from jaxinit._checks import check_initializer, check_integer, check_number
from jaxinit._initializers._base import Initializer, draw_with, initializer
from jaxinit._typing import Array, DTypeLike, Scalar


class Combinator(Initializer):
    """The base of wrappers, which share the randomness and dtypes of the initializer they wrap."""

    init: Callable[..., Array]

    def _check(self) -> None:
        check_initializer("init", self.init)
        if getattr(self.init, "boxes", False) and not self.boxes:
            raise TypeError(f"{self.init!r} must be outermost: wrap its inner initializer in {type(self).__name__}")

    boxes = False
    """Whether the result is wrapped with metadata, so that one cannot compute with it."""

    @property
    def random(self) -> bool:  # type: ignore[override]
        return getattr(self.init, "random", True)

    @property
    def allowed(self) -> Any:  # type: ignore[override]
        return getattr(self.init, "allowed", "any")

    @property
    def dtype(self) -> DTypeLike:  # type: ignore[override]
        return getattr(self.init, "dtype", None)


@initializer
class scaled(Combinator):
    r"""Multiplies another initializer's weights by a factor.

    .. math:: W = \text{factor} \cdot W_\text{init}

    Args:
      init: an initializer, of this package or any function (key, shape, dtype) -> Array.
      factor: a finite number; a JAX scalar may be traced.

    Raises:
      TypeError, ValueError: init is not an initializer, or factor is not a finite number.

    Examples:
      >>> import jaxinit
      >>> jaxinit.scaled(jaxinit.he_normal(), 0.1)
      scaled(init=he_normal(), factor=0.1)

    Reference: depth-scaled initializations put such factors on residual branches, e.g. Zhang et al., 2019
    (arXiv:1901.09321).
    """

    init: Callable[..., Array]
    factor: Scalar

    def _check(self) -> None:
        super()._check()
        check_number("factor", self.factor)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return draw_with(self.init, key, shape, dtype) * as_scalar(self.factor, dtype)


@initializer
class blocked(Combinator):
    """Draws the blocks of a fused kernel independently, each as a kernel of its own shape.

    A single kernel for the four gates of an LSTM, for queries, keys and values, or for all heads has the fan-out
    of several layers together (and, if orthogonal, their common frame). Drawn block by block, each has its own.

    Args:
      init: an initializer, of this package or any function (key, shape, dtype) -> Array.
      axis: the axis along which the blocks are concatenated.
      blocks: how many blocks of equal size, or their sizes (queries, keys and values of grouped-query attention).

    Raises:
      TypeError, ValueError: when made, if init is not an initializer or blocks are not positive integers; when called,
        if the blocks do not fill the axis.

    Examples:
      >>> import jax
      >>> import jaxinit
      >>> gates = jaxinit.blocked(jaxinit.glorot_uniform(), axis=-1, blocks=4)
      >>> gates(jax.random.key(0), (32, 4 * 64)).shape
      (32, 256)

    Reference: the Glorot bound of a fused kernel is that of Glorot & Bengio, 2010, for each of its blocks.
    """

    init: Callable[..., Array]
    axis: int
    blocks: int | tuple[int, ...]

    def _check(self) -> None:
        super()._check()
        check_integer("axis", self.axis, -64)
        for size in self.blocks if isinstance(self.blocks, tuple) else (self.blocks,):
            check_integer("blocks", size, 1)
        if self.blocks == ():
            raise ValueError("blocks must hold at least one size, got ()")

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        (axis,) = axis_indices("axis", self.axis, shape)
        sizes = self._sizes(shape[axis], shape)
        keys = jax.random.split(key, len(sizes)) if self.random else [key] * len(sizes)

        def draw(block_key: Array, size: int) -> Array:
            return draw_with(self.init, block_key, (*shape[:axis], size, *shape[axis + 1 :]), dtype)

        if self.random and len(set(sizes)) == 1:
            # One program for all blocks, regardless of their number: (blocks, *before, size, *after) -> fused.
            stacked = jax.vmap(lambda block_key: draw(block_key, sizes[0]))(keys)
            return jnp.moveaxis(stacked, 0, axis).reshape(shape)
        return jnp.concatenate([draw(k, size) for k, size in zip(keys, sizes, strict=True)], axis)

    def _sizes(self, total: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the blocks along an axis of this length."""
        sizes = self.blocks if isinstance(self.blocks, tuple) else (total // self.blocks,) * self.blocks
        if sum(sizes) != total:
            raise ValueError(
                f"blocks={self.blocks} does not fill axis {self.axis} of the shape {shape}, which has {total} entries"
            )
        return sizes
