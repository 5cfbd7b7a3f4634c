"""Short-time Fourier transforms as convolution kernels: one tap for each sample of a frame, one output a frequency.

A one-dimensional convolution of a signal with these kernels is its spectrogram, real and imaginary parts apart, as the
first layer of audio models that may go on to learn it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_flag
from jaxinit._initializers._base import Initializer, initializer
from jaxinit._typing import Array, DTypeLike


@initializer
class stft(Initializer):
    r"""The kernel of a convolution that computes the real or the imaginary part of a short-time Fourier transform.

    .. math:: W_{t, 0, k} = w_t \cos(2 \pi t k / n) \text{ or } -w_t \sin(2 \pi t k / n), \qquad n = 2 (F - 1)

    for the frequencies k = 0, …, F - 1 of a transform of length n. Outputs are those of `numpy.fft.rfft` of each
    frame times the window w, which `scaling` divides by its norm. This is Keras's `STFT`.

    Args:
      side: "real" or "imag".
      window: the name of a window that `scipy.signal.get_window` knows, its values, or None for none.
      scaling: "density" divides by the root of the sum of squares of the window, "spectrum" by the sum of its absolute
        values, None by nothing.
      periodic: whether a window that is given by name is periodic, or symmetric.
      dtype: default dtype of the result.

    Raises:
      TypeError, ValueError: when made, on an unknown side, window or scaling; when called, on a shape other than
        (frame, 1, frequencies), or one that a window of given values does not fit.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> kernel = jaxinit.stft("real", window=None)(jax.random.key(0), (8, 1, 5))
      >>> signal = jnp.cos(jnp.linspace(0, 2 * jnp.pi, 8, endpoint=False))      # one period in a frame
      >>> abs(jnp.einsum("t,tck->k", signal, kernel).round(3))
      Array([0., 4., 0., 0., 0.], dtype=float32)
    """

    random = False
    allowed = "real"

    side: str
    window: Any = "hann"
    scaling: str | None = "density"
    periodic: bool = False
    dtype: DTypeLike = None

    def _check(self) -> None:
        check_choice("side", self.side, ("real", "imag"))
        check_flag("periodic", self.periodic)
        if self.scaling is not None:
            check_choice("scaling", self.scaling, ("density", "spectrum"))
        if self.window is not None:
            self._window_values(2)

    def _draw(self, key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if len(shape) != 3 or shape[1] != 1:
            raise ValueError(f"{self!r} fills kernels of shape (frame, 1, frequencies), got {shape}")
        frame, _, frequencies = shape
        window, norm = np.ones(frame), 1.0
        if self.window is not None:
            window = self._window_values(frame)
            if window.shape != (frame,):
                raise ValueError(f"the window has {window.size} values, but the shape {shape} has frames of {frame}")
            sizes = {"density": np.sqrt(np.sum(window**2)), "spectrum": np.sum(np.abs(window)), None: 1.0}
            # A symmetric window of two values may be zero everywhere.
            norm = sizes[self.scaling] or 1.0
        # The phase is periodic in the product, which is exact.
        length = max(2 * (frequencies - 1), 1)
        turns = np.outer(np.arange(frame), np.arange(frequencies)) % length / length
        wave = np.cos(2 * np.pi * turns) if self.side == "real" else -np.sin(2 * np.pi * turns)
        return jnp.asarray((wave * (window / norm)[:, None]).reshape(shape), dtype)

    def _window_values(self, frame: int) -> np.ndarray:
        """The window for frames of this length."""
        if isinstance(self.window, str):
            from scipy.signal import get_window

            try:
                return np.asarray(get_window(self.window, frame, fftbins=self.periodic), np.float64)
            except ValueError as error:
                raise ValueError(
                    f"window must be the name of a window that scipy.signal.get_window knows, its values, or None, got "
                    f"{self.window!r}: {error}"
                ) from None
        values = np.asarray(self.window)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)):
            raise TypeError(f"window must be the name of a window, a sequence of numbers, or None, got {self.window!r}")
        return values.astype(np.float64)
