"""The initializations of low-rank adapters: standard, PiSSA, OLoRA and EVA.

PiSSA and OLoRA move a part of the pretrained weight W into the adapter, and what the sum W + c · A @ B computes stays
the same; the standard initialization and EVA let the adapter start at zero.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxinit._arrays import drawing_dtype
from jaxinit._caches import kept_with_functions, weakly
from jaxinit._checks import check_finite, check_key, check_values
from jaxinit._initializers import draw_from, uniform
from jaxinit._lora._adapters import Adapter, adapters_of
from jaxinit._lora._components import principal_components
from jaxinit._program import is_traced
from jaxinit._reading import Traced, trace
from jaxinit._schemes import key_for
from jaxinit._stages import in_stages, waiting
from jaxinit._typing import Array

_ApplyFn: TypeAlias = Callable[[Any, Any], Any]
_Leaves: TypeAlias = dict[int, Array]


def standard(key: Array, params: Any, apply_fn: _ApplyFn, batch: Any) -> Any:
    r"""Draws the adapters as LoRA does: A uniform, B zero, so that an adapter adds nothing at first.

    .. math:: A \sim U(\pm 1 / \sqrt{\text{fan\_in}}), \qquad B = 0

    Adapters are found in the program: a sum x @ W + c · (x @ A) @ B, in either storage layout and in any framework.
    Matrices that a loop runs over are drawn one by one. What a trained adapter added before is dropped.

    Args:
      key: a typed or raw JAX key.
      params: pytree of arrays, never mutated.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The parameters with new A and B; W and all others are unchanged.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: the program has no adapter, or one that cannot be handled; the error says why.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> params = {"w": jnp.eye(6), "a": jnp.ones((6, 2)), "b": jnp.ones((2, 6))}
      >>> def apply_fn(params, x):
      ...     return x @ params["w"] + 0.5 * (x @ params["a"]) @ params["b"]
      >>> new = jaxinit.lora.standard(jax.random.key(0), params, apply_fn, jnp.ones((1, 6)))
      >>> apply_fn(new, jnp.ones((1, 6)))
      Array([[1., 1., 1., 1., 1., 1.]], dtype=float32)

    Reference: Hu et al., 2021 (arXiv:2106.09685); the distribution is that of the PEFT library.
    """
    key = check_key("lora.standard(key, params, apply_fn, batch)", key)
    return _with_new(_standard, params, apply_fn, batch, key)


def pissa(params: Any, apply_fn: _ApplyFn, batch: Any) -> Any:
    r"""Moves the largest singular values of each pretrained weight W into its adapter (PiSSA).

    .. math::
      W = U S V^\top, \quad A = U_r \sqrt{S_r / c}, \quad B = \sqrt{S_r / c}\, V_r^\top, \quad W \leftarrow W - c A B

    What the layer computes does not change, and training begins in the directions in which W is largest. If the adapter
    is not zero, W is replaced by W + c · A @ B first.

    Args:
      params: pytree of arrays, never mutated.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The parameters with new W, A and B.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: the program has no adapter, or one that cannot be handled, such as one of a weight that is used
        elsewhere too; the error says why. Outside `jit`, also parameters that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> params = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0])), "a": jnp.ones((3, 1)), "b": jnp.zeros((1, 3))}
      >>> def apply_fn(params, x):
      ...     return x @ params["w"] + (x @ params["a"]) @ params["b"]
      >>> jaxinit.lora.pissa(params, apply_fn, jnp.ones((1, 3)))["w"].diagonal()
      Array([0., 2., 1.], dtype=float32)

    Reference: Meng et al., 2024, "PiSSA" (arXiv:2404.02948).
    """
    return _with_new(_pissa, params, apply_fn, batch)


def olora(params: Any, apply_fn: _ApplyFn, batch: Any) -> Any:
    r"""Starts each adapter from the QR decomposition of its pretrained weight W (OLoRA).

    .. math:: W^\top = Q R, \quad A = R_r^\top, \quad B = Q_r^\top, \quad W \leftarrow W - c A B

    The rows of B are orthonormal, and what the layer computes does not change. If the adapter is not zero, W is
    replaced by W + c · A @ B first.

    Args:
      params, apply_fn, batch: as for `pissa`.

    Returns:
      The parameters with new W, A and B.

    Raises:
      TypeError, ValueError: as `pissa`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> params = {"w": jnp.arange(9.0).reshape(3, 3), "a": jnp.ones((3, 1)), "b": jnp.zeros((1, 3))}
      >>> def apply_fn(params, x):
      ...     return x @ params["w"] + (x @ params["a"]) @ params["b"]
      >>> new = jaxinit.lora.olora(params, apply_fn, jnp.ones((1, 3)))
      >>> round(float(jnp.linalg.norm(new["b"])), 5)
      1.0

    Reference: Büyükakyüz, 2024, "OLoRA" (arXiv:2406.01775).
    """
    return _with_new(_olora, params, apply_fn, batch)


def eva(params: Any, apply_fn: _ApplyFn, batch: Any) -> Any:
    r"""Points each adapter at the inputs of its layer: A has their first principal components, B is zero (EVA).

    .. math:: A = (v_1, \ldots, v_r) \text{ of } \operatorname{Cov}(x), \qquad B = 0

    The inputs are those of the adapter's own layer on the batch, over samples and positions, with their mean removed.
    What a trained adapter added before is dropped.

    Args:
      params: pytree of arrays, never mutated.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays; if it has fewer samples than the rank, the other columns of A are orthonormal to theirs.

    Returns:
      The parameters with new A and B; W and all others are unchanged.

    Raises:
      TypeError, ValueError: as `pissa`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxinit
      >>> params = {"w": jnp.eye(3), "a": jnp.ones((3, 1)), "b": jnp.zeros((1, 3))}
      >>> def apply_fn(params, x):
      ...     return x @ params["w"] + (x @ params["a"]) @ params["b"]
      >>> jaxinit.lora.eva(params, apply_fn, jnp.array([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))["a"]
      Array([[0.],
             [1.],
             [0.]], dtype=float32)

    Reference: Paischer et al., 2024, "One initialization to rule them all" (arXiv:2410.07170).
    """
    check_values("lora.eva(params, apply_fn, batch)", batch, "batch")
    return _with_new(_eva, params, apply_fn, batch)


_Method: TypeAlias = Callable[[Traced, Any, Array | None], _Leaves]


def _with_new(method: _Method, params: Any, apply_fn: _ApplyFn, batch: Any, key: Array | None = None) -> Any:
    """The parameters with the leaves that a method makes."""
    caller = f"lora.{method.__name__[1:]}"
    check_values(caller, params, "params")
    old, structure = jax.tree.flatten(params)
    data = jax.tree.leaves(batch)
    if not any(map(is_traced, old)):
        check_finite(caller, params, "params")
    if any(map(is_traced, (*old, *data, key))) or any(isinstance(x, jax.ShapeDtypeStruct) for x in data):
        new = method(trace(params, apply_fn, batch), batch, key)
    else:
        check_finite(caller, batch, "batch")
        with waiting(caller):
            new = _compiled(method, apply_fn)(params, batch, key)
    return jax.tree.unflatten(structure, [new.get(i, x) for i, x in enumerate(old)])


@kept_with_functions(16)
def _compiled(method: _Method, apply_fn: Any) -> Callable[..., _Leaves]:
    function = weakly(apply_fn)

    @in_stages
    def run(params: Any, batch: Any, key: Array | None) -> _Leaves:
        return method(trace(params, function(), batch), batch, key)

    return run


def _standard(traced: Traced, batch: Any, key: Array | None) -> _Leaves:
    assert key is not None

    def drawn(adapter: Adapter) -> Array:
        slices, inputs, rank = adapter.first.shape
        bound = inputs**-0.5
        own = key_for(key, traced.paths[adapter.first.leaf])
        return draw_from(uniform(bound, minval=-bound), own, (slices, inputs, rank), _wide(traced, adapter.first.leaf))

    return _starting_at_zero(traced, adapters_of(traced, "lora.standard", changes_base=False), drawn)


def _eva(traced: Traced, batch: Any, key: Array | None) -> _Leaves:
    adapters = adapters_of(traced, "lora.eva", changes_base=False)
    components = {id(a): x for a, x in zip(adapters, principal_components(traced, batch, adapters), strict=True)}
    return _starting_at_zero(traced, adapters, lambda adapter: components[id(adapter)])


def _starting_at_zero(traced: Traced, adapters: list[Adapter], first: Callable[[Adapter], Array]) -> _Leaves:
    new: _Leaves = {}
    for adapter in adapters:
        for matrix, values in ((adapter.first, first(adapter)), (adapter.second, jnp.zeros(adapter.second.shape))):
            leaf = new.get(matrix.leaf, traced.leaves[matrix.leaf])
            new[matrix.leaf] = matrix.written(leaf, values)
    return new


def _pissa(traced: Traced, batch: Any, key: Array | None) -> _Leaves:
    def split(weights: Array, rank: int, factor: Any) -> tuple[Array, Array]:
        u, s, vh = jnp.linalg.svd(weights, full_matrices=False)
        root = jnp.sqrt(s[..., :rank] / jnp.abs(factor))
        return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :] * jnp.sign(factor)

    return _moved_into_adapters(traced, "lora.pissa", split)


def _olora(traced: Traced, batch: Any, key: Array | None) -> _Leaves:
    def split(weights: Array, rank: int, factor: Any) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(jnp.swapaxes(weights, -1, -2))
        return jnp.swapaxes(r[..., :rank, :], -1, -2), jnp.swapaxes(q[..., :rank], -1, -2)

    return _moved_into_adapters(traced, "lora.olora", split)


def _moved_into_adapters(
    traced: Traced, caller: str, split: Callable[[Array, int, Any], tuple[Array, Array]]
) -> _Leaves:
    """New W, A and B for which base · W + product · A @ B is what it was."""
    new: _Leaves = {}

    def values_of(leaf: int) -> Any:
        return new.get(leaf, traced.leaves[leaf])

    for adapter in adapters_of(traced, caller, changes_base=True):
        assert adapter.changed is not None
        kernel, form = adapter.changed
        matrices = kernel, adapter.first, adapter.second
        dtypes = [jnp.result_type(traced.leaves[matrix.leaf]) for matrix in matrices]
        wide = jnp.result_type(*(drawing_dtype(dtype) for dtype in dtypes))
        w, a, b = (matrix.read(values_of(matrix.leaf)).astype(wide) for matrix in matrices)
        base, product = (jnp.asarray(x, jnp.finfo(wide).dtype) for x in (form.base, form.product))
        columns = slice(*form.columns)
        whole = base * w[..., columns] + product * _times(a, b)
        factors = split(whole, adapter.first.shape[2], product)
        # The rounded factors count, so that the rounding of A and B is in W.
        a, b = (x.astype(dtype).astype(wide) for x, dtype in zip(factors, dtypes[1:], strict=True))
        w = w.at[..., columns].set((whole - product * _times(a, b)) / base)
        for matrix, values in zip(matrices, (w, a, b), strict=True):
            new[matrix.leaf] = matrix.written(values_of(matrix.leaf), values)
    return new


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _wide(traced: Traced, leaf: int) -> Any:
    return drawing_dtype(jnp.result_type(traced.leaves[leaf]))
