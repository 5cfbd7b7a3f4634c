"""`initialize`: every leaf of the parameters drawn by a scheme's rules, and a table of what was drawn and why."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice
from jaxinit._initializers import constant, scaled
from jaxinit._initializers._base import draw_from
from jaxinit._keys import check_key
from jaxinit._program import is_traced
from jaxinit._reading import FROZEN, Layer, LeafRole, Weight, other_factors, part_name, trace, with_part
from jaxinit._schemes._draw import Draw, draw_weight, key_for
from jaxinit._schemes._made_weights import REMARK, corrected, is_corrected
from jaxinit._schemes._overrides import Overrides, check_overrides, overridden
from jaxinit._schemes._roles import Matrix, Model, Vector, roles
from jaxinit._schemes._scheme import Rule, Scheme, as_scheme
from jaxinit._tabular import Tabular, add_path_column
from jaxinit._typing import Array


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
        add_path_column(table, "leaf")
        for column in ("role", "shape", "drawn from", "why"):
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
    unread: str = "keep",
    return_report: bool = False,
) -> Any:
    """Draws every leaf of the parameters anew, by a rule that knows how the program uses it.

    Layers are found in the program (see `trace_layers`), so fans, groups, heads and stacked layers are those of use,
    whatever the framework; each independent matrix is drawn by itself. Keys are derived from paths: adding a layer
    changes no other.

    A leaf that is no layer's weight is drawn by its role, which must show in the program: a bias, the scale of a
    normalised value or of a residual branch, an offset, positions. A leaf of another role, or without evidence for any,
    keeps its value, and the report says why: running statistics and other state that the function returns, decays of a
    recurrence, slopes, quantisation scales, what it reads behind `stop_gradient` only, and what it does not read.

    Args:
      key: a typed or raw JAX key.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s. Of leaves that are drawn only shapes and dtypes matter; those
        that are kept must be arrays. So must leaves that are no floating-point numbers.
      apply_fn: function of (params, batch), for a Linen module `module.apply`.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.
      scheme: a name ("auto", "torch_default", ...) or a value of `jaxinit.schemes`.
      overrides: other initializers for some leaves: a mapping from path patterns, as in `fnmatch`, to initializers, the
        first match counts; or a function of (path, layer or None) that returns an initializer or None. They are called
        with the leaf's shape as it is stored, or for a layer's matrix in the layout (*taps, fan-in, fan-out).
      unread: what becomes of leaves that no output depends on, such as those of a decoder when only the encoder is
        called: "keep" leaves their values; "draw" draws those with two axes or more as kernels in Flax's layout.
      return_report: also return an `InitializeReport`, the table of what was drawn and why.

    Returns:
      The new parameters; with `return_report=True` a pair with the report.

    Raises:
      TypeError: `key` is no key, `apply_fn` no function of two arguments, `scheme` no scheme, or an override no
        initializer.
      ValueError: an unknown scheme, a scheme that does not fit the model (the layer that breaks its assumption is
        named), a pattern that matches no leaf, or a leaf that is to be kept but has only a shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxinit
      >>> shapes = {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32), "b": jax.ShapeDtypeStruct((32,), jnp.float32)}
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"][None])
      >>> x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
      >>> params, report = jaxinit.initialize(jax.random.key(0), shapes, apply_fn, x, return_report=True)
      >>> [(row.path, row.role, row.reason) for row in report.rows]
      [('b', 'bias', 'bias'), ('w', 'dense', 'inputs of mean square 1')]
    """
    key = check_key("initialize(key, params, apply_fn, batch)", key)
    check_choice("unread", unread, ("keep", "draw"))
    chosen = as_scheme(scheme)
    model = roles(trace(params, apply_fn, batch), chosen.fused, batch)
    chosen.check(model)
    traced = model.traced
    check_overrides(overrides, traced.paths)
    _check_products(model, overrides)
    if unread == "draw":
        model = _with_unread(model)
    _check_kept(model, overrides)
    draw = _Drawing(key, chosen, model, overrides)
    leaves = draw.corrected([draw.leaf(i, old) for i, old in enumerate(traced.leaves)])
    if chosen.measures:
        for i, (new, reason) in chosen.finish(leaves, batch, model).items():
            leaves[i] = new
            draw.rows = [dataclasses.replace(r, reason=reason) if r.path == traced.paths[i] else r for r in draw.rows]
    placed = [_placed(new, old) for new, old in zip(leaves, traced.leaves, strict=True)]
    result = jax.tree.unflatten(jax.tree.structure(params), placed)
    return (result, InitializeReport(repr(chosen), tuple(draw.rows))) if return_report else result


def _check_products(model: Model, overrides: Overrides) -> None:
    """Of a weight and its mask the program does not say which is which, and to draw a mask anew would destroy it.

    Raises:
      ValueError: the user does not say it either.
    """
    traced = model.traced
    for layer, weight in model.layers:
        shape = np.shape(traced.leaves[weight.leaf])
        for other in other_factors(weight):
            paths = traced.paths[weight.leaf], traced.paths[other]
            told = any(overridden(overrides, path, layer) is not None for path in paths)
            if layer.view is not None and np.shape(traced.leaves[other]) == shape and not told:
                raise ValueError(
                    f"{paths[0]} and {paths[1]} are multiplied element by element, so the program does not say which "
                    "of them is the weight and which its mask; say what one of them is, for instance "
                    f"overrides={{{paths[1]!r}: lambda key, shape, dtype: mask}}"
                )


def _with_unread(model: Model) -> Model:
    """The same model, with kernels among the leaves that the program does not read."""
    vectors, kept = dict(model.vectors), dict(model.kept)
    for leaf, role in model.kept.items():
        shape = tuple(jnp.shape(model.traced.leaves[leaf]))
        if role.name == "unread" and len(shape) >= 2:
            vectors[leaf] = Vector(model.traced.paths[leaf], shape, "kernel", "the program does not read it")
            del kept[leaf]
    return dataclasses.replace(model, vectors=vectors, kept=kept)


def _check_kept(model: Model, overrides: Overrides) -> None:
    """Leaves that keep their values must have some.

    Raises:
      ValueError: some are shapes.
    """
    traced = model.traced
    missing = [
        (traced.paths[leaf], role)
        for leaf, role in model.kept.items()
        if isinstance(traced.leaves[leaf], jax.ShapeDtypeStruct)
        and role.start is None
        and overridden(overrides, traced.paths[leaf], None) is None
    ]
    if missing:
        listed = "; ".join(f"{path} ({role.name}: {role.reason})" for path, role in missing)
        unread = any(role.name == "unread" for _, role in missing)
        raise ValueError(
            f"no rule draws these leaves, and they have shapes but no values to keep: {listed}. Pass "
            "arrays for them in params, as the model's own initialization makes them, or say what they are, for "
            f"instance overrides={{{missing[0][0]!r}: jaxinit.zeros}}"
            + ('; unread="draw" draws kernels among those that are not read' if unread else "")
        )


class _Drawing:
    """Draws leaf after leaf, and keeps the rows of the report."""

    def __init__(self, key: Array, scheme: Scheme, model: Model, overrides: Overrides):
        self.key, self.scheme, self.model, self.overrides = key, scheme, model, overrides
        self.rows: list[Drawn] = []
        self.weights: dict[int, list[tuple[Layer, Weight, tuple[Matrix, ...]]]] = {}
        for (layer, weight), matrices in zip(model.layers, model.matrices, strict=True):
            for leaf in filter(weight.is_alike, weight.regions):
                seen = (
                    (layer, weight, matrices) if not weight.members else _seen_in(model, leaf, layer, weight, matrices)
                )
                self.weights.setdefault(leaf, []).append(seen)

    def leaf(self, index: int, old: Any) -> Array:
        """A new leaf for an old one, or for its shape."""
        path, shape, dtype = self.model.traced.paths[index], tuple(jnp.shape(old)), jnp.result_type(old)
        vector, kept, weights = self.model.vectors.get(index), self.model.kept.get(index), self.weights.get(index, ())
        slices = self.model.slices.get(index, ())
        if slices and (override := overridden(self.overrides, path, None)) is not None:
            return self._drawn(Vector(path, shape, "several"), Rule(override, "override"), dtype)
        if vector is not None:
            new = self._vector(index, vector, dtype)
        elif kept is None:
            new = jnp.zeros(shape, dtype)
        elif (override := overridden(self.overrides, path, None)) is not None:
            return self._drawn(Vector(path, shape, kept.name), Rule(override, "override"), dtype)
        else:
            new = self._kept(path, kept, old)
            weights = () if kept.name in FROZEN else weights
        for part in slices:
            rule = self.scheme.vector(part, self.model)
            new = (
                jnp.asarray(new)
                .at[tuple(slice(*bounds) for bounds in part.region or ())]
                .set(self._drawn(part, rule, dtype))
            )
        for layer, weight, matrices in weights:
            new = with_part(
                jnp.asarray(new), weight, self._weight(path, layer, matrices, _terms(weight, layer, dtype), dtype)
            )
        return new

    def _kept(self, path: str, role: LeafRole, old: Any) -> Array:
        """The leaf as it was; state of which only the shape is known, as it changes nothing."""
        shape, is_shape = tuple(jnp.shape(old)), isinstance(old, jax.ShapeDtypeStruct)
        start = role.start or 0.0
        init = repr(constant(start)) if is_shape else "kept"
        self.rows.append(Drawn(path, role.name, shape, init, role.reason))
        return jnp.full(shape, start, old.dtype) if is_shape else old

    def _weight(self, path: str, layer: Layer, matrices: tuple[Matrix, ...], terms: int, dtype: Any) -> Array:
        override = overridden(self.overrides, path, layer)
        if override is not None:
            whole = dataclasses.replace(matrices[0], layer=layer, rows=None, columns=None)
            self.rows.append(Drawn(layer.name, layer.kind, layer.shape, repr(override), "override"))
            return draw_weight([Draw(override, key_for(self.key, layer.name), whole, is_rule=False)], layer, dtype)
        draws = []
        for matrix in matrices:
            init, reason, shared = _weight_rule(self.scheme, matrix, self.model)
            if terms > 1:
                init, reason = scaled(init, terms**-0.5), f"{reason}; one of {terms} terms: variance / {terms}"
            name = matrix.layer.name
            role = f"{layer.kind}, {matrix.role}" if matrix.role else layer.kind
            self.rows.append(Drawn(name, role, layer.shape, repr(init), reason))
            draws.append(Draw(init, key_for(self.key, shared or name), matrix))
        return draw_weight(draws, layer, dtype)

    def corrected(self, leaves: list[Any]) -> list[Any]:
        """The leaves, those of which the program makes weights multiplied so that these have the variance meant."""
        for (layer, weight), matrices in zip(self.model.layers, self.model.matrices, strict=True):
            told = overridden(self.overrides, layer.path, layer) is not None
            if told or not is_corrected(weight, matrices, self.model.kept.__contains__):
                continue
            rule = self.scheme.weight(matrices[0], self.model)
            leaves = corrected(
                leaves, self.model, weight, matrices[0], rule.init, key_for(self.key, layer.name), self.scheme.centred
            )
            paths = layer.paths
            self.rows = [
                dataclasses.replace(r, reason=f"{r.reason}, {REMARK}") if r.path in paths else r for r in self.rows
            ]
        return leaves

    def _vector(self, index: int, vector: Vector, dtype: Any) -> Array:
        override = overridden(self.overrides, vector.path, vector.layer)
        gates = self.model.traced.structure.biases.get(index, ()) if override is None else ()
        size = vector.shape[-1] if vector.shape else 1
        if len(gates) == 1 and len(gates[0].places or ()) == size:
            vector, gates = dataclasses.replace(vector, gate=gates[0]), ()
        rule = self.scheme.vector(vector, self.model) if override is None else Rule(override, "override")
        new = self._drawn(vector, rule, dtype)
        for gate in gates:
            places = np.array(gate.places)
            shape = (*vector.shape[:-1], len(places))
            part = dataclasses.replace(vector, path=f"{vector.path}[{gate.role}]", shape=shape, gate=gate)
            own = self.scheme.vector(part, self.model)
            if own != rule:
                new = new.at[..., places].set(self._drawn(part, own, dtype))
        return new

    def _drawn(self, vector: Vector, rule: Rule, dtype: Any) -> Array:
        self.rows.append(Drawn(vector.path, vector.role, vector.shape, repr(rule.init), rule.reason))
        return draw_from(rule.init, key_for(self.key, rule.shared or vector.path), vector.shape, dtype)


def _terms(weight: Weight, layer: Layer, dtype: Any) -> int:
    """How many values are added to make a weight; where each meets data by itself, fans count them."""
    site = weight.sites[0]
    if not weight.members and layer.view is None:
        # Real numbers of which the program makes complex ones are their parts.
        parts = jnp.issubdtype(site.weight.dtype, jnp.complexfloating) and not jnp.issubdtype(
            dtype, jnp.complexfloating
        )
        return 2 if parts else 1
    return sum(map(weight.is_alike, weight.regions)) if len(site.entries) == 1 else 1


def _seen_in(
    model: Model, leaf: int, layer: Layer, weight: Weight, matrices: tuple[Matrix, ...]
) -> tuple[Layer, Weight, tuple[Matrix, ...]]:
    """A layer whose weight several leaves make, as the layer of one of them."""
    traced, seen = model.traced, weight.seen_in(leaf)
    name = part_name(traced.paths[leaf], seen, jnp.shape(traced.leaves[leaf]))
    own = dataclasses.replace(layer, path=traced.paths[leaf], name=name, region=seen.region)
    if weight.sizes_in(leaf) != weight.sizes_in(weight.leaf):
        # The roles of its axes are its own, and unknown: it is drawn element by element, for the fans of the layer.
        own = dataclasses.replace(own, shape=tuple(weight.sizes_in(leaf)), view=None)
        return own, seen, (dataclasses.replace(matrices[0], layer=own, rows=None, columns=None),)
    named = [dataclasses.replace(p.layer, path=own.path, name=name + p.layer.name[len(layer.name) :]) for p in matrices]
    return own, seen, tuple(dataclasses.replace(p, layer=n) for p, n in zip(matrices, named, strict=True))


def _placed(new: Array, old: Any) -> Array:
    """The new leaf where the old one was."""
    sharding = getattr(old, "sharding", None)
    if is_traced(new) or is_traced(old) or not isinstance(sharding, jax.sharding.NamedSharding):
        return new
    return jax.device_put(new, sharding)


def _weight_rule(scheme: Scheme, matrix: Matrix, model: Model) -> Rule:
    layer = matrix.layer
    if layer.kind == "embed":
        return scheme.embedding(layer, model)
    if matrix.is_gain:
        return scheme.gain(layer, model)
    rule = scheme.weight(matrix, model)
    if layer.view is None:
        return rule._replace(reason=f"{rule.reason}; element by element, since the program mixes them")
    return rule
