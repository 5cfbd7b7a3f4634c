"""The singular values of the input–output Jacobian, from products with it alone.

J is block-diagonal over samples unless the function lets samples interact, as batch statistics do; if it is
block-diagonal, a few samples show the spectrum. Lanczos on J Jᵀ or Jᵀ J, whichever is smaller,
finds the ends of the spectrum. If it starts from random signs ε, its first product also yields the trace, because
E|J ε|² = tr Jᵀ J.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._arrays import with_automatic_axes
from jaxinit._reading import Traced
from jaxinit._stages import are_made as stages_are_made
from jaxinit._stages import computed, hosted
from jaxinit._typing import Array

SHARE = 64
"""One sample in this many is used, but at least one."""
_FEW = 8
"""Up to how many numbers may take only two values by chance."""


_Map = Callable[[list[Array]], list[Array]]


class Spectrum(NamedTuple):
    """The mean square of the singular values, and the largest over the smallest; infinite if that is zero."""

    mean_square: Array
    condition: Array


def taken(traced: Traced) -> list[bool]:
    """For each leaf of the batch, whether it, or some multiple of it, is directly the input of a layer."""
    return [traced.onwards.enters_a_layer(v) for v in traced.analysis.program.inputs[len(traced.paths) :]]


def spectrum(
    apply_fn: Callable[[Any, Any], Any], params: Any, batch: Any, key: Array, steps: int, taken: Sequence[bool]
) -> Spectrum | None:
    """The spectrum at some samples of the batch; None for a function of integers.

    Inputs with only two values, such as masks, are not numbers that could change a little, unless layers read them.
    """
    if not any(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in jax.tree.leaves(batch)):
        return None
    masks = [_is_mask(x) for x in jax.tree.leaves(batch) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    batch = _some(apply_fn, params, batch)
    leaves, fixed = jax.tree.leaves(batch), jax.tree.leaves(params)
    floating = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    run = ir.as_function(apply_fn, params, batch) if stages_are_made() else ir.repeated(apply_fn, params, batch)

    def function(inputs: list[Array]) -> list[Array]:
        changed = list(leaves)
        for i, x in zip(floating, inputs, strict=True):
            changed[i] = x
        outputs = run(*fixed, *changed) if stages_are_made() else jax.tree.leaves(run(fixed, changed))
        return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.floating)]

    inputs = [jnp.asarray(leaves[i]) for i in floating]
    outputs, push, pull = _both_ways(function, inputs)
    sizes = sum(x.size for x in inputs), sum(y.size for y in outputs)
    if 0 in sizes:
        return None

    def forward(x: Array) -> Array:
        return _joined(push(_cut(counted * x, inputs)))

    def backward(y: Array) -> Array:
        return counted * _joined(pull(_cut(y, outputs)))

    small = min(sizes)
    counted = _counted(inputs, masks, [taken[i] for i in floating])
    start = jax.random.rademacher(key, (small,), jnp.float32) / jnp.float32(small**0.5)
    first, second = (forward, backward) if sizes[0] <= sizes[1] else (backward, forward)
    if sizes[0] <= sizes[1]:
        start = start * counted * jnp.sqrt(small / jnp.maximum(jnp.sum(counted), 1))
    mean_square, values = _lanczos(lambda v: second(first(v)), start, min(small, steps))
    top, lowest = values[-1], jnp.maximum(values[0], 0)
    singular = ~jnp.all(jnp.isfinite(values)) | (lowest <= 1e-10 * jnp.maximum(top, 1e-37))
    condition = jnp.where(singular, jnp.inf, jnp.sqrt(top / jnp.where(singular, 1, lowest)))
    return Spectrum(jnp.where(jnp.isnan(mean_square), jnp.inf, mean_square), condition)


def _is_mask(x: Any) -> Array:
    """Whether numbers, if there are several, have only two values."""

    x = jnp.asarray(x)
    return with_automatic_axes(_has_two_values, x) if x.size > _FEW else jnp.zeros((), bool)


@hosted()
def _has_two_values(x: Array) -> Array:
    low, high = jnp.min(x), jnp.max(x)
    return jnp.all((x == low) | (x == high)) & (low < high)


def _counted(inputs: list[Array], masks: Sequence[Array], taken: Sequence[bool]) -> Array:
    """1 for numbers of the inputs that may change a little, 0 for others."""
    others = ~jnp.all(jnp.stack(masks))
    counts = [~mask | (~others & entered) for mask, entered in zip(masks, taken, strict=True)]
    return jnp.concatenate([jnp.full(x.size, count, jnp.float32) for x, count in zip(inputs, counts, strict=True)])


def _both_ways(function: _Map, inputs: list[Array]) -> tuple[list[Array], _Map, _Map]:
    """The function's value, its derivative, and the transpose of the derivative."""
    if ir.goes_forwards(ir.traced_program(function, inputs)):
        outputs, push = jax.linearize(function, inputs)
        pull = jax.linear_transpose(push, inputs)
        return outputs, push, lambda y: pull(y)[0]
    outputs, backward = jax.vjp(function, inputs)
    forward = jax.linear_transpose(backward, outputs)
    return outputs, lambda x: forward((x,))[0], lambda y: backward(y)[0]


def _lanczos(operator: Callable[[Array], Array], start: Array, steps: int) -> tuple[Array, Array]:
    """The Rayleigh quotient of the initial vector, and the Ritz values of a symmetric operator in ascending order."""

    def step(carry: tuple[Array, Array], i: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, v = carry
        basis, following, alpha, beta = _taken_in(basis, v, operator(v), jnp.asarray(i))
        return (basis, following), (alpha, beta)

    begin = (jnp.zeros((steps, start.size), jnp.float32), start)
    if stages_are_made():
        carry, made = begin, []
        for i in range(steps):
            carry, pair = step(carry, i)
            made.append(pair)
        alphas, betas = (jnp.stack(x) for x in zip(*made, strict=True))
    else:
        _, (alphas, betas) = jax.lax.scan(step, begin, jnp.arange(steps))
    matrix = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    # Once the space is exhausted, further vectors are zero, and their values are not eigenvalues.
    used = jnp.cumprod(jnp.concatenate([jnp.ones(1), jnp.where(betas[:-1] > 0, 1.0, 0.0)]))
    matrix = matrix + jnp.diag(jnp.where(used > 0, 0, alphas[0]))
    (values,) = computed(lambda x: [jnp.linalg.eigvalsh(x)], lambda x: [np.linalg.eigvalsh(x)], [matrix], like=[alphas])
    return alphas[0], values


@hosted()
def _taken_in(basis: Array, v: Array, w: Array, i: Array) -> tuple[Array, Array, Array, Array]:
    """The basis with v as row i, and the results of its product with the operator: the next direction, alpha, beta."""
    basis = jnp.where(jnp.arange(len(basis))[:, None] == i, v[None], basis)
    alpha = jnp.sum(v * w)
    for _ in range(2):  # once would leave rounding as large as the remainder
        w = w - basis.T @ (basis @ w)
    beta = jnp.sqrt(jnp.sum(w * w))
    grows = beta > 1e-6 * jnp.abs(alpha)
    following = jnp.where(grows, w / jnp.where(beta > 0, beta, 1), 0)
    return basis, following, alpha, jnp.where(grows, beta, 0)


def _some(apply_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
    """The first samples, if samples are along the first axis and do not interact; otherwise the whole batch."""
    counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    count = max(counts, default=())
    if len(counts) != 1 or not count or count[0] <= max(1, count[0] // SHARE):
        return batch
    some = max(1, count[0] // SHARE)

    def resized(samples: int) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((samples, *jnp.shape(x)[1:]), jnp.result_type(x)), batch)

    try:
        # The program for the chosen samples is needed anyway, and JAX traces it once; that for one has no such axis.
        fewer = max(some, 2)
        less, more = (ir.traced_program(apply_fn, params, resized(samples)) for samples in (fewer, fewer + 1))
        outputs = [y.shape[:1] for y in jax.tree.leaves(jax.eval_shape(apply_fn, params, resized(some)))]
    except Exception:  # whatever a function raises that was written for this batch size only
        return batch
    if set(outputs) != {(some,)} or _samples_meet(less, more):
        return batch
    return with_automatic_axes(lambda batch: jax.tree.map(lambda x: x[:some], batch), batch)


def _samples_meet(less: ir.Program, more: ir.Program) -> bool:
    """Whether a function reduces several samples to one: some step has their number in its inputs, but not its output.

    Or has it once in its inputs and twice in its output, like the products of all samples with one another. The number
    is recognised as what differs between the programs for this many samples and for one more.
    """
    pairs = list(zip(ir.equations_of(less), ir.equations_of(more), strict=False))
    lengths = {sum(1 for _ in ir.equations_of(program)) for program in (less, more)}
    if len(lengths) > 1 or any(a.primitive is not b.primitive for a, b in pairs):
        return True

    def most(before: Sequence[ir.Atom], after: Sequence[ir.Atom]) -> int:
        shapes = zip(before, after, strict=True)
        return max((sum(m != n for m, n in zip(x.shape, y.shape, strict=True)) for x, y in shapes), default=0)

    steps = [(most(a.inputs, b.inputs), most(a.outputs, b.outputs)) for a, b in pairs if not ir.subprograms(a)]
    ends = most(less.outputs, more.outputs)
    return ends > 1 or any(given and given != made for given, made in steps)


def _joined(arrays: list[Array]) -> Array:
    """All numbers of some arrays as one vector."""

    def join(arrays: list[Array]) -> Array:
        return jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in arrays])

    vector: Array = with_automatic_axes(join, arrays)
    return vector


def _cut(vector: Array, like: list[Array]) -> list[Array]:
    """The vector split into arrays of these shapes and dtypes."""

    def cut(vector: Array) -> list[Array]:
        parts, start = [], 0
        for x in like:
            parts.append(vector[start : start + x.size].reshape(x.shape).astype(x.dtype))
            start += x.size
        return parts

    arrays: list[Array] = with_automatic_axes(cut, vector, like=like)
    return arrays
