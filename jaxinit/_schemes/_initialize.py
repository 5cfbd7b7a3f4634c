"""`initialize`: every leaf of the parameters drawn by a scheme's rules, and a table of what was drawn and why."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxinit._initializers import zeros
from jaxinit._layers import Layer
from jaxinit._layers._jaxpr import is_traced
from jaxinit._layers._trace import trace
from jaxinit._layers._views import with_part
from jaxinit._patterns import check_patterns, first_match
from jaxinit._schemes._draw import draw_weight, key_for
from jaxinit._schemes._roles import Model, roles
from jaxinit._schemes._scheme import REGISTRY, Rule, Scheme
from jaxinit._tabular import Tabular
from jaxinit._typing import Array

Init: TypeAlias = Callable[..., Array]
Overrides: TypeAlias = Mapping[str, Init] | Callable[[str, Layer | None], Init | None] | None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one leaf, or a part of one, was drawn from, and why."""

    path: str
    role: str
    shape: tuple[int, ...]
    init: str
    reason: str


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class InitializeReport(Tabular):
    """One row for every leaf of the parameters; a pytree of static data."""

    scheme: str
    rows: tuple[Drawn, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"scheme": self.scheme, "rows": [dataclasses.asdict(row) for row in self.rows]}

    def _shown(self) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"initialized by {self.scheme}")
        for column in ("leaf", "role", "shape", "drawn from", "why"):
            table.add_column(column)
        for row in self.rows:
            table.add_row(row.path, row.role, "×".join(map(str, row.shape)) or "–", row.init, row.reason)
        yield table


def initialize(
    key: Array,
    params: Any,
    apply_fn: Callable[[Any, Any], Any],
    batch: Any,
    scheme: str | Scheme = "auto",
    *,
    overrides: Overrides = None,
    return_report: bool = False,
) -> Any:
    """Draws every leaf of the parameters anew, by a rule that knows how the program uses it.

    Layers are found in the program (see `trace_layers`), so fans, groups, heads and stacked layers are those of use,
    whatever the framework; each independent matrix is drawn by itself. Keys are derived from paths: adding a layer
    changes no other.

    Args:
      key: a typed or raw JAX key.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter. Leaves that are no
        floating-point numbers are kept if they are arrays, and zero if they are shapes.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.
      scheme: a name ("auto", "torch_default", ...) or a value of `jaxinit.schemes`.
      overrides: other initializers for some leaves: a mapping from path patterns, as in `fnmatch`, to initializers, the
        first match counts; or a function of (path, layer or None) that returns an initializer or None. They are called
        with the leaf's shape as it is stored, or for a layer's matrix in the layout (*taps, fan-in, fan-out).
      return_report: also return an `InitializeReport`, the table of what was drawn and why.

    Returns:
      The new parameters; with `return_report=True` a pair with the report.

    Raises:
      ValueError: an unknown scheme, a scheme that does not fit the model (the layer that breaks its assumption is
        named), or a pattern that matches no leaf.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> shapes = {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32), "b": jax.ShapeDtypeStruct((32,), jnp.float32)}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"])
      >>> x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
      >>> params, report = jaxinit.initialize(jax.random.key(0), shapes, apply_fn, x, return_report=True)
      >>> [(row.path, row.role, row.reason) for row in report.rows]
      [('b', 'bias', 'bias'), ('w', 'dense', 'gain of relu')]
    """
    chosen = _scheme(scheme)
    model = roles(trace(params, apply_fn, batch))
    chosen.check(model)
    traced = model.traced
    if isinstance(overrides, Mapping):
        check_patterns("overrides", overrides, traced.paths, "leaf", "leaves")
    leaves: list[Any] = []
    rows: list[Drawn] = []
    weights: dict[int, list[Any]] = {}
    for layer, unit in model.layers:
        weights.setdefault(unit.leaf, []).append((layer, unit))
    for leaf, (path, old) in enumerate(zip(traced.paths, traced.leaves, strict=True)):
        shape, dtype = tuple(jnp.shape(old)), jnp.result_type(old)
        if leaf in weights:
            new = jnp.zeros(shape, dtype)
            for layer, unit in weights[leaf]:
                init, reason = _overridden(overrides, path, layer) or _weight_rule(chosen, layer, model)
                part = draw_weight(init, key_for(key, layer.name), layer, dtype)
                new = with_part(new, unit, part)
                rows.append(Drawn(layer.name, layer.kind, layer.shape, repr(init), reason))
        elif leaf in model.vectors:
            vector = model.vectors[leaf]
            init, reason = _overridden(overrides, path, vector.layer) or chosen.vector(vector, model)
            new = init(key_for(key, path), shape, dtype)
            rows.append(Drawn(path, vector.role, shape, repr(init), reason))
        elif isinstance(old, jax.ShapeDtypeStruct):
            new = zeros(key, shape, dtype)
            rows.append(Drawn(path, "integer", shape, "zeros", "no floating-point numbers"))
        else:
            new = old
            rows.append(Drawn(path, "integer", shape, "kept", "no floating-point numbers"))
        leaves.append(_placed(new, old))
    result = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return (result, InitializeReport(repr(chosen), tuple(rows))) if return_report else result


def _placed(new: Array, old: Any) -> Array:
    """The new leaf where the old one was."""
    sharding = getattr(old, "sharding", None)
    if is_traced(new) or is_traced(old) or not isinstance(sharding, jax.sharding.NamedSharding):
        return new
    return jax.device_put(new, sharding)


def _weight_rule(scheme: Scheme, layer: Layer, model: Model) -> Rule:
    if layer.kind == "embed":
        return scheme.embedding(layer, model)
    if len([n for n in layer.shape if n > 1]) - (layer.stacked > 1) <= 1:
        return scheme.gain(layer, model)
    init, reason = scheme.weight(layer, model)
    if layer.view is None:
        reason += "; in the layout (..., in, out), since the program mixes its elements"
    return init, reason


def _scheme(scheme: str | Scheme) -> Scheme:
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str) or scheme not in REGISTRY:
        raise ValueError(f"scheme must be one of {sorted(REGISTRY)} or a value of jaxinit.schemes, got {scheme!r}")
    return REGISTRY[scheme]()


def _overridden(overrides: Overrides, path: str, layer: Layer | None) -> tuple[Init, str] | None:
    if overrides is None:
        return None
    found = first_match(overrides, path, None) if isinstance(overrides, Mapping) else overrides(path, layer)
    return None if found is None else (found, "override")
