"""The last layer fitted to the targets: its bias is their mean in the units of the loss, its kernel is small enough.

With a bias of log class frequencies, and no influence of the data yet, the first loss is the entropy of the labels. The
random influence of the data adds to it: a kernel whose outputs have variance v adds about v·p(1 - p)/2 for two classes.
So the kernel is scaled down as far as necessary, but not to zero, where no gradient would reach the layers below.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinit import _program as ir
from jaxinit._caches import kept_with_functions, weakly
from jaxinit._checks import check_choice, check_finite, check_number, check_values, shown
from jaxinit._lsuv._centre import Centre, centres
from jaxinit._lsuv._moments import wide
from jaxinit._program import is_traced
from jaxinit._reading import Traced, Weight, part_of, trace, with_part
from jaxinit._stages import in_stages, waiting
from jaxinit._typing import Array

_LOSSES = ("softmax", "sigmoid", "squared")
_UNSEEN = 1e-3
"""The share of the probability that is spread over all classes, so that those without labels are not impossible."""
_HALVINGS = 12
_ROUNDS = 8
"""How often a bias is corrected; each round removes most of the remaining error."""


class _Readout(NamedTuple):
    """The last layer: its weight, its bias, and its number of outputs."""

    weight: Weight
    centre: Centre
    units: int


def fit_readout(
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    targets: Any,
    loss: Literal["softmax", "sigmoid", "squared"] = "softmax",
    *,
    tolerance: float | None = 0.01,
) -> Any:
    r"""Sets the last layer so that the first loss is that of the best constant prediction: the entropy of the labels.

    The bias b of the readout solves, for its outputs s·u + b on the batch,

    .. math:: \operatorname{mean} \operatorname{softmax}(s u + b) = p

    with p the class frequencies (for "sigmoid" unit by unit; for "squared" the mean of outputs is the mean of targets).
    The kernel is multiplied by the largest s up to 1 at which the loss is within `tolerance` of the best constant's.
    Without this, a network first learns the class frequencies, with large gradients from every sample.

    Args:
      params: pytree of arrays, never mutated.
      apply_fn: function of (params, batch) whose output, one array, comes from a layer with a bias: logits, or
        predictions, with classes or units along the last axis.
      batch: pytree of arrays.
      targets: for "softmax" integer labels in the shape of the output without its last axis, or probabilities in the
        shape of the output; for the others numbers in the shape of the output, for "sigmoid" between 0 and 1.
      loss: what the network is trained with: "softmax" (cross-entropy), "sigmoid" (binary cross-entropy of each unit)
        or "squared".
      tolerance: by what share the first loss may exceed that of the best constant; None leaves the kernel unchanged.

    Returns:
      The new parameters: the readout has a new bias and a scaled kernel, and everything else is unchanged.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: `loss` is unknown, the output is not that of a layer with a bias of its own, or targets do not have
        its shape, or are not labels or probabilities. Inside a trace, labels beyond the last class are ignored.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxinit
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["kernel"] + params["bias"][None]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"hidden": jax.random.normal(keys[0], (8, 32)), "kernel": jax.random.normal(keys[1], (32, 2))}
      >>> params["bias"] = jnp.zeros(2)
      >>> x, labels = jax.random.normal(keys[2], (1000, 8)), (jnp.arange(1000) % 100 == 0).astype(int)
      >>> def first_loss(params):
      ...     logits = apply_fn(params, x)
      ...     return float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
      >>> fitted = jaxinit.fit_readout(params, apply_fn, x, labels)
      >>> first_loss(params) > 1, round(first_loss(fitted), 3)      # the entropy is .056
      (True, 0.057)

    Reference: Karpathy, 2019, "A recipe for training neural networks"; the bias as in Lin et al., 2017
    (arXiv:1708.02002), there for a prior of one in a hundred.
    """
    check_choice("loss", loss, _LOSSES)
    if tolerance is not None:
        check_number("tolerance", tolerance, nonnegative=True)
    for name, tree in (("params", params), ("batch", batch), ("targets", targets)):
        check_values("fit_readout(params, apply_fn, batch, targets)", tree, name)
    targets = jnp.asarray(targets)
    if any(is_traced(x) for x in jax.tree.leaves((params, batch, targets))):
        return _fitted(params, batch, targets, apply_fn, loss, tolerance)[0]
    for name, tree in (("params", params), ("batch", batch), ("targets", targets)):
        check_finite("fit_readout", tree, name)
    _check_values_of(targets, loss)
    with waiting("fit_readout"):
        new, units = _compiled(apply_fn, loss, tolerance)(params, batch, targets)
    if _are_labels(targets, loss) and targets.size and int(targets.max()) >= max(int(units), 2):
        raise ValueError(f"targets must be labels from 0 to {int(units) - 1}, got labels up to {int(targets.max())}")
    return new


@kept_with_functions(16)
def _compiled(apply_fn: Any, loss: str, tolerance: float | None) -> Callable[..., Any]:
    function = weakly(apply_fn)

    @in_stages
    def run(params: Any, batch: Any, targets: Array) -> Any:
        return _fitted(params, batch, targets, function(), loss, tolerance)

    return run


def _fitted(
    params: Any, batch: Any, targets: Array, apply_fn: Any, loss: str, tolerance: float | None
) -> tuple[Any, Array]:
    """The new parameters, and how many units the readout has."""
    traced = trace(params, apply_fn, batch)
    readout = _readout(traced)
    (output,) = jax.tree.leaves(apply_fn(params, batch))
    outputs = wide(output)
    wanted = _as_wanted(targets, output, readout.units, loss).astype(outputs.dtype)
    leaves = list(traced.leaves)
    leaf = readout.centre.leaf
    bias = jnp.asarray(leaves[leaf])
    u = outputs.reshape(-1, readout.units) - readout.centre.sign * bias.reshape(1, -1).astype(outputs.dtype)
    scale, new = _solved(u, wanted, loss, tolerance)
    leaves[leaf] = (readout.centre.sign * new).reshape(bias.shape).astype(bias.dtype)
    for at in readout.weight.regions:
        own = readout.weight.seen_in(at)
        part = part_of(leaves[at], own)
        leaves[at] = with_part(leaves[at], own, (part * scale.astype(part.dtype)).astype(part.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves), jnp.int32(readout.units)


def _readout(traced: Traced) -> _Readout:
    """The layer whose output is that of the program.

    Raises:
      ValueError: there is no such layer, or its bias cannot be set.
    """
    program = traced.analysis.program
    finishes = {use.finish.outputs[0]: use for use in traced.analysis.uses.values()}
    if len(program.outputs) != 1:
        raise ValueError(
            f"fit_readout needs an apply_fn that returns one array, got {len(program.outputs)}; return the logits alone"
        )
    atom = program.outputs[0]
    while atom not in finishes:
        equation = traced.flow.producer.get(atom)
        if equation is None or not _keeps_units(equation):
            by = "" if equation is None else f", but of {equation.primitive}"
            raise ValueError(
                f"fit_readout needs an apply_fn whose output is that of a layer{by}; leave out what follows the "
                "last layer, such as a softmax, or a division by a temperature"
            )
        atom = equation.inputs[0]
    use = finishes[atom]
    units = atom.shape[-1] if atom.shape else 1
    (weight, *others) = dict.fromkeys(component.weight for component in use.components)
    name = traced.paths[weight.leaf]
    found, refused = centres(traced, frozenset({weight}))
    if others or weight not in found:
        reason = refused.get(weight, "several weights make its output").removeprefix("not centred: ")
        raise ValueError(f"fit_readout cannot set the bias of the last layer, {name}: {reason}")
    centre = found[weight]
    flipped = any(f.flipped for dim in centre.origin.dims for f in dim)
    if np.size(traced.leaves[centre.leaf]) != units or not use.bias_dims <= {len(atom.shape) - 1} or flipped:
        raise ValueError(
            f"fit_readout needs classes or units along the last axis of the output, but the bias "
            f"{traced.paths[centre.leaf]} of {name} has shape {jnp.shape(traced.leaves[centre.leaf])} for outputs of "
            f"shape {atom.shape}"
        )
    return _Readout(weight, centre, units)


def _keeps_units(equation: ir.Equation) -> bool:
    """Whether an equation leaves values unchanged, with units along the last axis."""
    (old, *_), (new, *_) = equation.inputs, equation.outputs
    if equation.primitive in (ir.reshape_p, ir.squeeze_p):
        units = old.shape[-1] if old.shape else 1
        return units == 1 or new.shape[-1:] == (units,)
    return equation.primitive in ir.IDENTITIES


def _as_wanted(targets: Array, output: Array, units: int, loss: str) -> Array:
    """The targets as (samples, units).

    Raises:
      ValueError: their shape is neither that of the output nor, for labels, that without its last axis.
    """
    whole = output.reshape(-1, units).shape
    if _are_labels(targets, loss) and targets.shape == output.shape[:-1] and units > 1:
        return jax.nn.one_hot(targets.reshape(-1), units)
    if targets.shape != output.shape:
        labels = f", or labels of shape {output.shape[:-1]}" if loss == "softmax" else ""
        raise ValueError(
            f"targets must have the shape of the output, {output.shape}{labels}, got {shown(targets)} for loss={loss!r}"
        )
    return targets.reshape(whole)


def _are_labels(targets: Array, loss: str) -> bool:
    return loss == "softmax" and bool(jnp.issubdtype(targets.dtype, jnp.integer))


def _check_values_of(targets: Array, loss: str) -> None:
    """Check that labels are not negative, or that probabilities are between 0 and 1."""
    values = np.asarray(targets)
    if loss == "squared" or not values.size:
        return
    low, high = values.min(), values.max()
    if low < 0 or (high > 1 and not _are_labels(targets, loss)):
        kind = "labels from 0 on" if _are_labels(targets, loss) else "probabilities between 0 and 1"
        raise ValueError(f"targets must be {kind} for loss={loss!r}, got values from {low} to {high}")


def _solved(u: Array, wanted: Array, loss: str, tolerance: float | None) -> tuple[Array, Array]:
    """The factor of the kernel, and the bias."""
    one = jnp.ones((), u.dtype)
    if tolerance is None:
        return one, _bias(one * u, wanted, loss)
    best = _loss(jnp.broadcast_to(_bias(0 * u, wanted, loss)[None], u.shape), wanted, loss)
    most = (1 + tolerance) * best + jnp.finfo(u.dtype).tiny

    def within(scale: Array) -> Array:
        outputs = scale * u
        return _loss(outputs + _bias(outputs, wanted, loss)[None], wanted, loss) <= most

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = within(middle)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low, _ = lax.fori_loop(0, _HALVINGS, halved, (0 * one, one))
    scale = jnp.where(within(one), one, low)
    return scale, _bias(scale * u, wanted, loss)


def _bias(outputs: Array, wanted: Array, loss: str) -> Array:
    """The best bias for these outputs."""
    mean = jnp.mean(wanted, 0)
    if loss == "squared":
        return mean - jnp.mean(outputs, 0)
    units = outputs.shape[-1] if loss == "softmax" else 2
    mean = (1 - _UNSEEN) * mean + _UNSEEN / units

    def corrected(_: Any, bias: Array) -> Array:
        logits = outputs + bias[None]
        if loss == "softmax":
            return bias + jnp.log(mean) - jnp.log(jnp.mean(jax.nn.softmax(logits), 0))
        return bias + _logit(mean) - _logit(jnp.mean(jax.nn.sigmoid(logits), 0))

    start = jnp.log(mean) if loss == "softmax" else _logit(mean)
    return lax.fori_loop(0, _ROUNDS, corrected, start - jnp.mean(outputs, 0))


def _logit(p: Array) -> Array:
    tiny = jnp.finfo(p.dtype).eps
    p = jnp.clip(p, tiny, 1 - tiny)
    return jnp.log(p) - jnp.log1p(-p)


def _loss(outputs: Array, wanted: Array, loss: str) -> Array:
    if loss == "squared":
        return jnp.mean(jnp.square(outputs - wanted))
    if loss == "softmax":
        return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(outputs), -1))
    return -jnp.mean(wanted * jax.nn.log_sigmoid(outputs) + (1 - wanted) * jax.nn.log_sigmoid(-outputs))
