"""`rbm_pretrain`: greedy layer-wise pretraining of any JAX function, with which deep learning began.

Each layer of a stack of sigmoids is a restricted Boltzmann machine over the layer below. The machines are trained one
after the other, each on the outputs of those below, and were the first initialization that made deep nets trainable.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit._arrays import drawing_dtype
from jaxinit._checks import check_integer, check_key, check_number
from jaxinit._program import is_traced
from jaxinit._rbm._contrastive_divergence import trained
from jaxinit._rbm._report import RbmReport
from jaxinit._rbm._stack import stack_of
from jaxinit._reading import trace
from jaxinit._schemes import MisfitError, key_for, roles
from jaxinit._typing import Array, Scalar


def rbm_pretrain(
    key: Array,
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    *,
    steps: int = 1000,
    learning_rate: Scalar = 0.1,
    momentum: Scalar = 0.9,
    minibatch: int = 64,
    cd_steps: int = 1,
    return_report: bool = False,
) -> Any:
    r"""Pretrains a stack of sigmoid layers as restricted Boltzmann machines, one after the other, on a batch.

    Let v be the input of a layer, W its weight and c its bias, initially N(0, 0.01²) and zero. Each step adds

    .. math::
        \Delta W &= \varepsilon (v^\top p_h - v'^\top p'_h) / B, \qquad
        \Delta c = \varepsilon \, \mathrm{mean}(p_h - p'_h), \qquad
        \Delta b = \varepsilon \, \mathrm{mean}(v - v'), \\
        p_h &= \sigma(c + v W), \quad h \sim \mathrm{Bernoulli}(p_h), \quad
        v' = \sigma(b + h W^\top), \quad p'_h = \sigma(c + v' W)

    with momentum: contrastive divergence, here of one step. The visible biases b are initially log(p / (1 − p)), where
    p is the mean of v. The next layer's input is what the program computes from σ(c + vW) with the trained weights.

    Layers are found in the program (see `trace_layers`). The chain begins with the first layer and continues as long
    as layers are dense, followed by a sigmoid, and read the output of the one before. Other layers, such as the
    readout, are not changed and are named in the report.

    Args:
      key: a typed or raw JAX key. Each layer has a key of its own, derived from its path.
      params: pytree of arrays, never mutated. For the layers of the chain only shapes and dtypes matter.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays, all the data to learn from. The input of the first layer must be in [0, 1], as
        probabilities.
      steps: updates for each layer.
      learning_rate: ε.
      momentum: the share of the last update that is kept in the next one, from 0 to below 1.
      minibatch: samples drawn from the batch for each update.
      cd_steps: steps of the Gibbs chain from the data to v'. More come closer to the gradient of the likelihood.
      return_report: also return an `RbmReport`, with reconstruction errors and visible biases.

    Returns:
      The new parameters, of the same structure and dtypes; with `return_report=True` a pair with the report.

    Raises:
      jaxinit.schemes.MisfitError: the first layer is not dense and followed by a sigmoid; the error says what it is.
      ValueError: an option is out of range, or, outside `jit`, the input of the first layer is not in [0, 1].
      TypeError: `apply_fn` is not callable, `key` is not a key, or a leaf of the parameters is not an array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> x = jnp.repeat(jnp.eye(2), 8, axis=1)[jnp.arange(32) % 2]
      >>> params = {"hidden": jnp.zeros((16, 4)), "bias": jnp.zeros(4), "out": jnp.ones((4, 2))}
      >>> def apply_fn(params, x):
      ...     return jax.nn.sigmoid(x @ params["hidden"] + params["bias"][None]) @ params["out"]
      >>> new, report = jaxinit.rbm_pretrain(jax.random.key(0), params, apply_fn, x, return_report=True)
      >>> report.paths, round(float(report.before[0]), 2), bool(report.after[0] < 0.01)
      (('hidden',), 0.25, True)

    Reference: Hinton, Osindero & Teh, 2006, "A fast learning algorithm for deep belief nets"; Hinton & Salakhutdinov,
    2006, "Reducing the dimensionality of data with neural networks"; Hinton, 2010, "A practical guide to training
    restricted Boltzmann machines".
    """
    key = check_key("rbm_pretrain(key, params, apply_fn, batch)", key)
    for name, count in (("steps", steps), ("minibatch", minibatch), ("cd_steps", cd_steps)):
        check_integer(name, count, 1)
    check_number("learning_rate", learning_rate, positive=True)
    check_number("momentum", momentum, nonnegative=True)
    if not is_traced(momentum) and float(momentum) >= 1:
        raise ValueError(f"momentum must be below 1, or updates never fade; got {momentum}")
    traced = trace(params, apply_fn, batch)
    _check_arrays(traced.paths, traced.leaves)
    stack, others = stack_of(roles(traced))
    if not stack:
        reason = " ".join(others[0]) if others else "the program has no layers"
        raise MisfitError(
            "rbm_pretrain is for programs that begin with dense layers, each followed by a sigmoid; "
            f"the first layer does not qualify: {reason}. See also jaxinit.initialize and jaxinit.lsuv"
        )
    leaves, data = list(traced.leaves), jax.tree.leaves(batch)
    results = []
    for level in stack:
        weight = leaves[level.weight.leaf]
        visible = level.visible(traced.analysis.program, [*leaves, *data])
        if level is stack[0]:
            _check_probabilities(level.layer.name, visible)
        machine, before, after = trained(
            key_for(key, level.layer.name),
            visible.astype(drawing_dtype(jnp.result_type(weight))),
            learning_rate,
            momentum,
            hidden=int(level.layer.fan_out),
            has_bias=level.bias is not None,
            steps=int(steps),
            minibatch=int(minibatch),
            cd_steps=int(cd_steps),
        )
        leaves[level.weight.leaf] = level.weight.written(weight, machine.weight)
        if level.bias is not None:
            leaves[level.bias.leaf] = level.bias.written(leaves[level.bias.leaf], machine.hidden_bias)
        results.append((machine, before, after))
    new = jax.tree.unflatten(jax.tree.structure(params), leaves)
    if not return_report:
        return new
    return new, RbmReport(
        paths=tuple(level.layer.name for level in stack),
        sizes=tuple((machine.weight.shape[-2], machine.weight.shape[-1]) for machine, _, _ in results),
        before=tuple(before for _, before, _ in results),
        after=tuple(after for _, _, after in results),
        visible_bias=tuple(machine.visible_bias for machine, _, _ in results),
        others=tuple(others),
    )


def _check_arrays(paths: tuple[str, ...], leaves: tuple[Any, ...]) -> None:
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"rbm_pretrain needs params made of arrays, since some are not changed, but {path} is a "
                "ShapeDtypeStruct; make arrays of these shapes with jaxinit.initialize"
            )


def _check_probabilities(name: str, visible: Array) -> None:
    """Outside of traces, raises for data that are not probabilities."""
    if visible.size == 0:
        raise ValueError(f"rbm_pretrain needs data, but the input of {name} is empty, of shape {visible.shape}")
    if is_traced(visible):
        return
    low, high = float(jnp.min(visible)), float(jnp.max(visible))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"rbm_pretrain treats the input of {name} as probabilities, in [0, 1], but it is between {low:g} and "
            f"{high:g}; rescale the batch, as by (x - x.min()) / (x.max() - x.min())"
        )
