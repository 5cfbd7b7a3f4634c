"""`recommend`: which initialization to use, with reason and source in words, from a description or the program."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_flag, check_no_module, check_number
from jaxinit._initializers import (
    Initializer,
    glorot_uniform,
    he_normal,
    lecun_normal,
    sparse,
    variance_scaling,
)
from jaxinit._numbers import NAMES, Activation, activation_function, canonical_activation, critical, gain
from jaxinit._reading import normalizations, part_of, trace
from jaxinit._schemes import (
    MisfitError,
    Model,
    Scheme,
    auto,
    fixup,
    gpt2,
    initialize,
    irnn,
    looks_linear,
    orthogonal_critical,
    recurrent,
    roles,
    t_fixup,
)
from jaxinit._tabular import Tabular

ARCHITECTURES = ("mlp", "cnn", "rnn", "residual", "transformer", "autoencoder", "self_normalizing", "sparse")
DEEP = 30
"""With at least this many plain layers, random weights lose the signal, whatever their variance."""

_RECTIFIED = {"relu", "leaky_relu"}
_SATURATING = {"tanh", "sigmoid", "hard_tanh", "hard_sigmoid", "soft_sign"}

_HE = "He et al., 2015 (arXiv:1502.01852)"
_GLOROT = "Glorot & Bengio, 2010"


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """An initialization, ready for use.

    Attributes:
      start: an initializer, for `kernel_init=`; or a scheme, for `jaxinit.initialize`.
      reason: why this one, in words.
      source: authors, year, arXiv id.
    """

    start: Initializer | Scheme
    reason: str
    source: str

    def __str__(self) -> str:
        how = "as kernel_init" if isinstance(self.start, Initializer) else "with jaxinit.initialize"
        return f"{self.start!r} ({how}): {self.reason}. {self.source}."


@dataclasses.dataclass(frozen=True)
class LayerAdvice:
    """The present and the recommended initialization of one layer.

    Attributes:
      name, activation: of the layer.
      now, then: fan-in × variance of the weight, as it is (None for shapes) and as recommended.
      init, reason: what it would be drawn from, and why.
    """

    name: str
    activation: str | None
    now: float | None
    then: float
    init: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ModelRecommendation(Tabular, Recommendation):
    """A scheme for a model, and what it would do to each layer."""

    rows: tuple[LayerAdvice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"start": repr(self.start), "reason": self.reason, "source": self.source, "rows": rows}

    def __str__(self) -> str:
        return Tabular.__str__(self)

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        yield Recommendation.__str__(self)
        table = Table(title="fan-in × variance of the weights")
        for column in ("layer", "activation", "now", "recommended", "drawn from", "why"):
            table.add_column(column)
        for row in self.rows:
            now = "–" if row.now is None else f"{row.now:.3g}"
            table.add_row(row.name, row.activation or "–", now, f"{row.then:.3g}", row.init, row.reason)
        yield table


def recommend(
    activation: Any = None,
    architecture: Any = None,
    depth: Any = None,
    normalized: bool | None = None,
) -> Recommendation:
    """Recommends an initialization, with the reason and the source.

    In the first form you describe the network; every part of the description may be omitted. In the second,
    `recommend(params, apply_fn, batch)`, everything is read from the program, and the result is a table of present and
    recommended weights, layer by layer.

    Args:
      activation: a name or an elementwise function.
      architecture: "mlp", "cnn", "rnn", "residual", "transformer", "autoencoder", "self_normalizing" or "sparse".
      depth: number of layers.
      normalized: whether the network has normalization layers.

    Returns:
      A `Recommendation`, whose `start` is an initializer for `kernel_init=`, or a scheme for `jaxinit.initialize`; in
      the second form a `ModelRecommendation`.

    Raises:
      ValueError: an unknown architecture or activation, or a depth below 1.
      TypeError: an argument has the wrong type, or parameters come without a function or without a batch.

    Example:
      >>> import jaxinit
      >>> jaxinit.recommend("relu").start
      he_normal()
      >>> print(jaxinit.recommend("tanh", depth=100))
      orthogonal_critical(bias_variance=0.0) (with jaxinit.initialize): 100 plain layers: ...
      >>> jaxinit.recommend(architecture="transformer", normalized=False).start
      t_fixup()
    """
    check_no_module("recommend(params, apply_fn, batch)", activation, "params or an activation")
    if callable(architecture) or _is_tree(activation):
        if not callable(architecture) or depth is None:
            raise TypeError(
                "to read a program, recommend takes (params, apply_fn, batch), got "
                f"({', '.join(type(x).__name__ for x in (activation, architecture, depth))}); to go by a description, "
                "the name of an activation or an elementwise function, such as 'relu'"
            )
        return _of_program(activation, architecture, depth)
    if architecture is not None:
        check_choice("architecture", architecture, ARCHITECTURES)
    if depth is not None:
        check_number("depth", depth)
    if depth is not None and not depth >= 1:
        raise ValueError(f"depth must be a number of layers, at least 1, got {depth!r}")
    if normalized is not None:
        check_flag("normalized", normalized)
    by_architecture = _by_architecture(activation, architecture, depth, normalized)
    return by_architecture or _by_activation(activation)


def _is_tree(x: Any) -> bool:
    """Whether it is a pytree of parameters; that may be callable, but an activation holds no arrays."""
    leaves = jax.tree.leaves(x)
    return not (x is None or isinstance(x, str)) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves
    )


def _name(activation: Activation | None) -> str | None:
    if activation is None:
        return None
    activation_function(activation)
    found = canonical_activation(activation)
    return found if isinstance(found, str) else "other"


def _by_architecture(
    activation: Activation | None, architecture: str | None, depth: int | None, normalized: bool | None
) -> Recommendation | None:
    name = _name(activation)
    match architecture:
        case "sparse":
            reason = "a fixed number of connections into each unit keeps units different at any width"
            return Recommendation(sparse(15, 1.0), reason, "Martens, 2010")
        case "rnn" if name == "relu":
            reason = "the identity keeps the state of a rectified recurrent network"
            return Recommendation(irnn(), reason, "Le, Jaitly & Hinton, 2015 (arXiv:1504.00941)")
        case "rnn":
            reason = "orthogonal recurrent kernels keep norms over time, and open forget gates keep the state"
            source = "Saxe et al., 2014 (arXiv:1312.6120); Jozefowicz, Zaremba & Sutskever, 2015"
            return Recommendation(recurrent(), reason, source)
        case "transformer" if normalized is False:
            reason = "without layer normalization, values, outputs and feed-forward weights must shrink with depth"
            return Recommendation(t_fixup(), reason, "Huang et al., 2020")
        case "transformer":
            reason = "residual projections divided by the root of their number keep the residual stream at one size"
            return Recommendation(gpt2(), reason, "Radford et al., 2019")
        case "residual" if normalized is False:
            reason = "without normalization, branches must start at zero, and their updates must shrink with depth"
            return Recommendation(fixup(), reason, "Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321)")
        case "residual":
            reason = "unit variance for pre-activations; last layers of branches divided by the root of their number"
            return Recommendation(auto(), reason, f"{_HE}; Zhang, Dauphin & Ma, 2019 (arXiv:1901.09321)")
        case "autoencoder":
            reason = "encoder and decoder mirror each other, so forward and backward variance count alike"
            return Recommendation(glorot_uniform(), reason, _GLOROT)
        case "self_normalizing":
            return _selu()
    if depth is not None and depth > DEEP and not normalized and name is not None:
        if name == "relu":
            reason = f"{depth} plain layers: mirrored pairs of units make a rectified network exactly linear initially"
            return Recommendation(looks_linear(), reason, "Balduzzi et al., 2017 (arXiv:1702.08591)")
        if name != "linear" and activation is not None and _has_critical_point(activation):
            reason = (
                f"{depth} plain layers: orthogonal weights at the edge of chaos carry signals and gradients through"
            )
            source = "Pennington, Schoenholz & Ganguli, 2017 (arXiv:1711.04735); Xiao et al., 2018 (arXiv:1806.05393)"
            return Recommendation(orthogonal_critical(), reason, source)
    return None


def _has_critical_point(activation: Activation) -> bool:
    try:
        critical(activation)
    except ValueError:
        return False
    return True


def _selu() -> Recommendation:
    reason = "with variance 1 / fan-in, mean 0 and variance 1 are the fixed point that SELU draws activations to"
    return Recommendation(lecun_normal(), reason, "Klambauer et al., 2017 (arXiv:1706.02515)")


def _by_activation(activation: Activation | None) -> Recommendation:
    name = _name(activation)
    if name is None:
        reason = "the variance of each weight compensates for the mean square of its input, read from the program"
        return Recommendation(auto(), reason, _HE)
    if name == "selu":
        return _selu()
    if name in _RECTIFIED:
        return Recommendation(
            he_normal(), f"{name} removes half of the variance, and a factor of 2 compensates for that", _HE
        )
    if name in _SATURATING:
        reason = f"{name} is linear around zero, where a compromise between both fans keeps signals and gradients"
        if name == "sigmoid":
            reason += "; even so, gradients are multiplied by at most 1/4 per layer"
        return Recommendation(glorot_uniform(), reason, _GLOROT)
    if name == "linear":
        return Recommendation(glorot_uniform(), "without an activation, both fans count alike", _GLOROT)
    assert activation is not None
    factor = float(gain(activation))
    shown = name if name != "other" else getattr(activation, "__name__", "this function")
    reason = f"{shown} has the gain {factor:.4g}, found by quadrature, which keeps pre-activations at unit variance"
    if not _has_critical_point(activation):
        reason += "; beyond about ten layers no initialization keeps both signals and gradients: normalize or add skips"
    return Recommendation(variance_scaling(factor**2, "fan_in", "normal"), reason, _HE)


def _of_program(params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any) -> ModelRecommendation:
    model = roles(trace(params, apply_fn, batch))
    found = _by_structure(model)
    if isinstance(found.start, Initializer):
        found = dataclasses.replace(found, start=auto())
    assert isinstance(found.start, Scheme)
    try:
        found.start.check(model)
    except MisfitError:
        found = _by_activation(None)
    new, report = initialize(jax.random.key(0), params, apply_fn, batch, found.start, return_report=True)  # type: ignore[arg-type]
    drawn = {row.path: row for row in report.rows}
    leaves = jax.tree.leaves(new)
    rows = []
    for (layer, weight), matrices in zip(model.layers, model.matrices, strict=True):
        row = drawn.get(layer.name) or drawn[matrices[0].layer.name]
        old = model.traced.leaves[weight.leaf]
        now = (
            None
            if isinstance(old, jax.ShapeDtypeStruct)
            else _variance(part_of(jnp.asarray(old), weight), layer.fan_in)
        )
        name = layer.activation.name if layer.activation else None
        then = _variance(part_of(leaves[weight.leaf], weight), layer.fan_in)
        rows.append(LayerAdvice(layer.name, name, now, then, row.init, row.reason))
    return ModelRecommendation(found.start, found.reason, found.source, tuple(rows))


def _variance(weight: Any, fan_in: float) -> float:
    if not weight.is_fully_addressable:  # it stays where it is
        return float(fan_in * jnp.var(weight))
    return float(fan_in * np.var(np.asarray(weight, np.float64 if not np.iscomplexobj(weight) else None)))


def _by_structure(model: Model) -> Recommendation:
    """What the program shows of architecture, depth, activation and normalization."""
    structure = model.traced.structure
    normalized = any(True for _ in normalizations(model.traced.analysis))
    activations = [layer.activation for layer, _ in model.layers if layer.activation]
    names = [a.name if a.name in NAMES else a for a in activations]
    name = max(names, key=names.count) if names else None
    architecture = None
    if structure.attentions and model.branches:
        architecture = "transformer"
    elif structure.cells:
        gated = any(cell.forget for cell in structure.cells)
        return _by_architecture(None if gated else name, "rnn", model.depth, normalized) or _by_activation(None)
    elif model.branches:
        architecture = "residual"
    return _by_architecture(name, architecture, model.depth, normalized) or _by_activation(None)
