"""The outputs of layers: Gaussian over the weights, with covariances that follow from the layer's input."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxinit import _program as ir
from jaxinit._moments._elements import of_covariance
from jaxinit._moments._moves import resized
from jaxinit._moments._samples import ALIKE, Samples, constant
from jaxinit._moments._streams import Streams
from jaxinit._reading import Use


@dataclasses.dataclass(frozen=True)
class Incoming:
    """The input of a layer.

    Attributes:
      second_moment: the mean square of an input, over all uses; inputs that a convolution pads with are zeros.
      variance: of the inputs of one unit around their own mean, which is what weights that sum to zero see.
      known: whether all primitives that computed it are understood.
      slices: the same for each slice of a stack, in the order of loops over it; empty if unknown.
    """

    second_moment: float
    variance: float
    known: bool
    slices: "tuple[Incoming, ...]" = ()

    @staticmethod
    def of(use: Use, data: Samples) -> "Incoming":
        """For a single use."""
        share = _inside(use)
        second = data.second_moment() * share
        kept = _kept(use)
        inner = [a for d in range(len(data.factors)) if d not in kept for a in data.axes(d)]
        within = data.values
        for axis in inner:
            within = within.mean(axis, keepdims=True)
        shared = float(np.mean(np.abs(within) ** 2)) if inner else 0.0
        # Two elements along each axis: their mean has half of the part that they do not share.
        pairs = 2 ** sum(data.values.shape[a] == 2 for a in inner)
        variance = (second - shared * share) * pairs / (pairs - 1) if pairs > 1 else second
        return Incoming(second, max(variance, 0.0), data.known and math.isfinite(second))

    @staticmethod
    def mean(uses: "Sequence[Incoming]", slices: "tuple[Incoming, ...]" = (), multiplied: bool = False) -> "Incoming":
        """For several uses; if one follows another, the geometric mean."""
        found = []
        for name in ("second_moment", "variance"):
            values = np.array([getattr(x, name) for x in uses])
            geometric = multiplied and bool(np.all(values > 0))
            found.append(float(np.exp(np.mean(np.log(values))) if geometric else np.mean(values)))
        return Incoming(found[0], found[1], all(x.known for x in uses), slices)


def output(streams: Streams, use: Use, data: Samples, variance: float) -> Samples:
    """The output of a layer whose units have a given variance.

    Dimensions that come from the data vary as the data does; those that come from the weight vary independently.
    """
    out, kept = use.equation.outputs[0], _kept(use)
    target_of = {target: d for d, target in kept.items()}
    axes = [a for d in kept for a in data.axes(d)]
    others = [a for a in range(1, data.values.ndim) if a not in axes]
    rows = math.prod(data.values.shape[a] for a in axes)
    covariance = _covariance(use, data.values.transpose([0, *others, *axes]).reshape(-1, rows))
    own = [d for d in range(len(out.shape)) if d not in target_of and out.shape[d] > 1]
    factors = tuple(
        data.factors[target_of[d]] if d in target_of else (n,) if n != 1 else () for d, n in enumerate(out.shape)
    )
    if covariance is None:
        return constant(0.0, out.shape)
    drawn = _drawn(streams, use, covariance, 2 ** len(own)) * math.sqrt(variance)
    drawn = drawn.reshape(len(drawn), *(data.values.shape[a] for a in axes), *[2] * len(own))
    # From the order (dimensions of the data, dimensions of the weight) to that of the output.
    place: dict[int, list[int]] = {}
    axis = 1
    for d in kept:
        place[kept[d]] = list(range(axis, axis + len(data.axes(d))))
        axis += len(data.axes(d))
    for d in own:
        place[d] = [axis]
        axis += 1
    order = [a for d in range(len(out.shape)) for a in place.get(d, [])]
    found = Samples(drawn.transpose([0, *order]), factors, streams.mark(), True)
    # A convolution may have fewer or more outputs along a dimension than inputs.
    for d, size in enumerate(out.shape):
        found = resized(found, d, size)
    return found


def gaussian(streams: Streams, use: Use, found: Samples, variance: float) -> Samples:
    """The output of a layer that consists of several equations, where `found` shows how elements are correlated.

    Over the weights it is Gaussian, and independent along their dimensions, however few samples represent them.
    """
    own = [d for d in use.geometry.placed.values() if math.prod(found.factors[d]) > 1]
    others = [d for d in range(len(found.factors)) if d not in own]
    axes = [a for d in others for a in found.axes(d)]
    along = [a for a in range(1, found.values.ndim) if a not in axes]
    lengths = [found.values.shape[a] for a in axes]
    elements = found.values.transpose([0, *along, *axes]).reshape(-1, math.prod(lengths))
    covariance = (elements.conj().T @ elements).real / len(elements)
    if not np.isfinite(covariance).all() or not np.trace(covariance) > 0:
        return found
    drawn = _drawn(streams, use, covariance, 2 ** len(own)) * math.sqrt(variance)
    drawn = drawn.reshape(len(drawn), *lengths, *[2] * len(own))
    place = dict(zip(own, range(1 + len(axes), drawn.ndim), strict=True))
    order = [
        a
        for d in range(len(found.factors))
        for a in ([place[d]] if d in own else [1 + axes.index(a) for a in found.axes(d)])
    ]
    factors = tuple((math.prod(f),) if d in own else f for d, f in enumerate(found.factors))
    return Samples(drawn.transpose([0, *order]), factors, found.marks | streams.mark(), True)


def _drawn(streams: Streams, use: Use, covariance: np.ndarray, columns: int) -> np.ndarray:
    """Normal numbers with these covariances up to scale; a complex number has half of its variance in each part."""
    drawn = of_covariance(streams, covariance, columns)
    if np.dtype(use.equation.outputs[0].dtype).kind != "c":
        return drawn
    return np.asarray((drawn + 1j * of_covariance(streams, covariance, columns)) * math.sqrt(0.5))


def _covariance(use: Use, elements: np.ndarray) -> np.ndarray | None:
    """E[x_i x_j] over the inputs of a unit, for elements i and j of the dimensions that remain in the output."""
    if use.geometry.kind == "embed":
        # Two lookups return the same row, or independent ones.
        found = np.mean(elements[:, :, None] == elements[:, None, :], 0) if elements.dtype.kind in "iu" else None
        size = elements.shape[1]
        return np.asarray(found) if found is not None else (1 - ALIKE) * np.eye(size) + ALIKE
    found = np.asarray((elements.conj().T @ elements).real / len(elements), float)
    if not np.isfinite(found).all():
        return np.eye(len(found))
    return found if np.trace(found) > 0 else None


def _kept(use: Use) -> dict[int, int]:
    """Dimension of the data → dimension of the layer's output, for those that the weight does not vary along."""
    entry = use.entries[0]
    equation, data = entry.equation, entry.data
    out = use.equation.outputs[0].shape
    if equation.primitive is ir.dot_general_p and equation is use.equation:
        contracted, batched = equation.params["dimension_numbers"]
        i = 1 - entry.weight
        free = [d for d in range(len(data.shape)) if d not in (*contracted[i], *batched[i])]
        first = len(batched[0]) if i == 0 else len(out) - len(free)
        return {d: first + k for k, d in enumerate(free)}
    if equation.primitive is ir.conv_p and equation is use.equation:
        numbers = equation.params["dimension_numbers"]
        pairs = zip(numbers.lhs_spec, numbers.out_spec, strict=True)
        return {d: target for place, (d, target) in enumerate(pairs) if place != 1}
    if equation.primitive is ir.ragged_dot_p:
        return {0: 0}
    if equation.primitive is ir.gather_p and equation is use.equation:
        targets = [d for d in range(len(out)) if d not in equation.params["dimension_numbers"].offset_dims]
        return dict(zip(range(len(data.shape) - 1), targets, strict=False))
    if equation.primitive is ir.dynamic_slice_p or len(data.shape) != len(out):
        return {}
    placed = set(use.geometry.placed.values())
    return {d: d for d in range(len(out)) if d not in placed and data.shape[d] == out[d]}


def _inside(use: Use) -> float:
    """The share of the taps of a convolution that meet data, not padding."""
    equation = use.entries[0].equation
    if equation.primitive is not ir.conv_p:
        return 1.0
    numbers, share = equation.params["dimension_numbers"], 1.0
    data, kernel, out = (x.shape for x in (*equation.inputs, equation.outputs[0]))
    for k, (low, _) in enumerate(equation.params["padding"]):
        size, taps, steps = (s[spec[2 + k]] for s, spec in zip((data, kernel, out), numbers, strict=True))
        spread, stride = equation.params["lhs_dilation"][k], equation.params["window_strides"][k]
        if spread != 1:
            continue
        tap = np.arange(taps) * equation.params["rhs_dilation"][k]
        places = np.arange(steps)[:, None] * stride + tap - low
        share *= float(np.mean((places >= 0) & (places < size)))
    return share
