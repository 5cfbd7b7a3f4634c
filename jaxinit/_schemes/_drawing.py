"""Drawing a model by a scheme, one leaf after another, with a row for each draw; overrides for some leaves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import calling, check_initializer, check_patterns, first_match, matches, shown
from jaxinit._initializers import Initializer, constant, draw_from, scaled
from jaxinit._reading import FROZEN, Layer, LeafRole, Weight, part_name, with_part
from jaxinit._schemes._draw import Draw, KeyWords, draw_weight, key_for
from jaxinit._schemes._made_weights import REMARK, UNMADE, corrected, is_corrected
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._scheme import Rule, Scheme
from jaxinit._schemes._vectors import ADAPTER
from jaxinit._typing import Array

ASKED_FOR = "kept"
"""The role of leaves that are kept because the user says so."""

Init: TypeAlias = Callable[..., Array]
Keep: TypeAlias = str | Sequence[str] | Callable[[str, Layer | None], bool] | None
Overrides: TypeAlias = Mapping[str, Init] | Callable[[str, Layer | None], Init | None] | None


def check_overrides(overrides: Any, paths: Sequence[str]) -> None:
    """Check that overrides are initializers by pattern, a function that chooses them, or None.

    Raises:
      TypeError: it is something else, such as one initializer for all.
      ValueError: a pattern matches no path.
    """
    if isinstance(overrides, Mapping):
        check_patterns("overrides", overrides, paths, "leaf", "leaves")
        for pattern, init in overrides.items():
            if init is not None:
                check_initializer(f"overrides[{pattern!r}]", init)
    elif overrides is not None and (not callable(overrides) or isinstance(overrides, type | Initializer)):
        raise TypeError(
            "overrides must be a mapping from path patterns to initializers, such as "
            "{'*kernel': jaxinit.he_normal()}, or a function of (path, layer) that returns an initializer or None, "
            f"got {shown(overrides)}"
        )


def canonical_keep(keep: Any, paths: Sequence[str]) -> Callable[[str, Layer | None], bool]:
    """Turns patterns of paths or a predicate into a function that says whether a leaf is kept.

    Raises:
      TypeError: it is something else, or the predicate does not return a truth value.
      ValueError: a pattern matches no path.
    """
    if callable(keep):

        def chosen(path: str, layer: Layer | None) -> bool:
            with calling("keep", keep, "path", "layer"):
                answer = keep(path, layer)
            if not isinstance(answer, bool | np.bool_):
                raise TypeError(f"keep must return True or False, got {shown(answer)} for {path!r}")
            return bool(answer)

        return chosen
    patterns = (keep,) if isinstance(keep, str) else tuple(keep or ()) if isinstance(keep, Sequence | None) else None
    if patterns is None:
        raise TypeError(
            "keep must be one or more path patterns, such as 'backbone/*', or a function of (path, layer) that "
            f"returns True for leaves to keep, got {shown(keep)}"
        )
    check_patterns("keep", patterns, paths, "leaf", "leaves")
    return lambda path, layer: matches(patterns, path)


def overridden(overrides: Overrides, path: str, layer: Layer | None) -> Init | None:
    """The initializer that overrides a scheme's for this leaf, if there is one."""
    if overrides is None or isinstance(overrides, Mapping):
        return first_match(overrides or {}, path, None)
    with calling("overrides", overrides, "path", "layer"):
        init = overrides(path, layer)
    if init is not None:
        check_initializer(f"what overrides returns for {path!r}", init)
    return init


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one leaf, or a part of one, was drawn from, and why."""

    path: str
    role: str
    shape: tuple[int, ...]
    init: str
    reason: str


def _is_of_package(init: Any) -> bool:
    """Whether only this package draws; initializers may hold others."""
    if not isinstance(init, Initializer):
        return False
    return all(_is_of_package(x) for x in vars(init).values() if callable(x) and not isinstance(x, type))


class Drawing:
    """Draws one leaf after another, and keeps the rows of the report."""

    def __init__(self, key: Array | KeyWords, scheme: Scheme, model: Model, overrides: Overrides):
        self.key, self.scheme, self.model, self.overrides = key, scheme, model, overrides
        self.rows: list[Drawn] = []
        self.is_of_package = True
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
            weights = () if vector.role == ADAPTER else weights
        elif kept is None:
            new = jnp.zeros(shape, dtype)
        elif (override := overridden(self.overrides, path, None)) is not None:
            return self._drawn(Vector(path, shape, kept.name), Rule(override, "override"), dtype)
        else:
            new = self._kept(path, kept, old)
            weights = () if kept.name in FROZEN or kept.name == ASKED_FOR else weights
        for part in slices:
            rule = self.scheme.vector(part, self.model)
            new = (
                jnp.asarray(new)
                .at[tuple(slice(*bounds) for bounds in part.region or ())]
                .set(self._drawn(part, rule, dtype))
            )
        for layer, weight, matrices in weights:
            new = with_part(jnp.asarray(new), weight, self._weight(path, layer, weight, matrices, dtype))
        return new

    def _kept(self, path: str, role: LeafRole, old: Any) -> Array:
        """The leaf unchanged; if only its shape is known, the value at which it has no effect."""
        shape, is_shape = tuple(jnp.shape(old)), isinstance(old, jax.ShapeDtypeStruct)
        start = role.start or 0.0
        init = repr(constant(start)) if is_shape else "kept"
        self.rows.append(Drawn(path, role.name, shape, init, role.reason))
        return jnp.full(shape, start, old.dtype) if is_shape else old

    def _weight(self, path: str, layer: Layer, weight: Weight, matrices: tuple[Matrix, ...], dtype: Any) -> Array:
        terms = _terms(weight, layer, dtype)
        override = overridden(self.overrides, path, layer)
        if override is not None:
            whole = dataclasses.replace(matrices[0], layer=layer, rows=None, columns=None)
            self.rows.append(Drawn(layer.name, layer.kind, layer.shape, repr(override), "override"))
            self.is_of_package &= _is_of_package(override)
            draw = Draw(override, key_for(self.key, layer.name), whole, is_rule=False)
            return draw_weight([draw], layer, weight, dtype)
        draws = []
        for matrix in matrices:
            rule = _weight_rule(self.scheme, matrix, self.model)
            if terms > 1:
                reason = f"{rule.reason}; one of {terms} terms: variance / {terms}"
                rule = rule._replace(init=scaled(rule.init, terms**-0.5), reason=reason)
            name = matrix.layer.name
            role = f"{layer.kind}, {matrix.role}" if matrix.role else layer.kind
            self.rows.append(Drawn(name, role, layer.shape, rule.drawn_from, rule.reason))
            draws.append(Draw(rule.init, key_for(self.key, rule.shared or name), matrix, by_slice=rule.by_slice))
        self.is_of_package &= all(_is_of_package(draw.init) for draw in draws)
        return draw_weight(draws, layer, weight, dtype)

    def corrected(self, leaves: list[Any]) -> list[Any]:
        """The leaves; those that weights are made of are multiplied so that the weights have their variance."""
        for (layer, weight), matrices in zip(self.model.layers, self.model.matrices, strict=True):
            told = overridden(self.overrides, layer.path, layer) is not None
            told |= any(v.role == ADAPTER for v in map(self.model.vectors.get, weight.regions) if v is not None)
            if told or not is_corrected(weight, matrices, self.model.kept.__contains__):
                continue
            rule, key = self.scheme.weight(matrices[0], self.model), key_for(self.key, layer.name)
            new = corrected(leaves, self.model, weight, matrices[0], rule, key, self.scheme.centred)
            remark = REMARK if new is not leaves else UNMADE
            leaves, names = new, {layer.name, *(_name(self.model, weight, leaf) for leaf in weight.regions)}
            self.rows = [
                dataclasses.replace(r, reason=f"{r.reason}, {remark}") if r.path in names else r for r in self.rows
            ]
        return leaves

    def _vector(self, index: int, vector: Vector, dtype: Any) -> Array:
        override = overridden(self.overrides, vector.path, vector.layer)
        gates = self.model.traced.structure.biases.get(index, ()) if override is None else ()
        size = vector.shape[-1] if vector.shape else 1
        if len(gates) == 1 and len(gates[0].indices or ()) == size:
            vector, gates = dataclasses.replace(vector, gate=gates[0]), ()
        rule = self.scheme.vector(vector, self.model) if override is None else Rule(override, "override")
        new = self._drawn(vector, rule, dtype)
        for gate in gates:
            indices = np.array(gate.indices)
            shape = (*vector.shape[:-1], len(indices))
            part = dataclasses.replace(vector, path=f"{vector.path}[{gate.role}]", shape=shape, gate=gate)
            own = self.scheme.vector(part, self.model)
            if own != rule:
                new = new.at[..., indices].set(self._drawn(part, own, dtype))
        return new

    def _drawn(self, vector: Vector, rule: Rule, dtype: Any) -> Array:
        self.rows.append(Drawn(vector.path, vector.role, vector.shape, repr(rule.init), rule.reason))
        self.is_of_package &= _is_of_package(rule.init)
        return draw_from(rule.init, key_for(self.key, rule.shared or vector.path), vector.shape, dtype)


def _terms(weight: Weight, layer: Layer, dtype: Any) -> int:
    """How many values are added to make a weight; if each meets data separately, the fans already count them."""
    use = weight.uses[0]
    if not weight.members and layer.view is None:
        # Real numbers that the program joins to complex ones are parts of them, not terms.
        parts = jnp.issubdtype(use.weight.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating)
        return 2 if parts else 1
    return sum(map(weight.is_alike, weight.regions)) if len(use.entries) == 1 else 1


def _name(model: Model, weight: Weight, leaf: int) -> str:
    """The path of a leaf, and the part of it that belongs to a weight."""
    return part_name(model.traced.paths[leaf], weight.seen_in(leaf), model.traced.shapes[leaf])


def _seen_in(
    model: Model, leaf: int, layer: Layer, weight: Weight, matrices: tuple[Matrix, ...]
) -> tuple[Layer, Weight, tuple[Matrix, ...]]:
    """A layer whose weight is made of several leaves, as the layer of one of them."""
    traced, seen = model.traced, weight.seen_in(leaf)
    name = _name(model, weight, leaf)
    own = dataclasses.replace(layer, path=traced.paths[leaf], name=name, region=seen.region)
    if weight.sizes_in(leaf) != weight.sizes_in(weight.leaf):
        # The roles of its axes are its own, and unknown: it is drawn element by element, for the fans of the layer.
        own = dataclasses.replace(own, shape=tuple(weight.sizes_in(leaf)), view=None)
        return own, seen, (dataclasses.replace(matrices[0], layer=own, rows=None, columns=None),)
    named = [dataclasses.replace(p.layer, path=own.path, name=name + p.layer.name[len(layer.name) :]) for p in matrices]
    return own, seen, tuple(dataclasses.replace(p, layer=n) for p, n in zip(matrices, named, strict=True))


def _weight_rule(scheme: Scheme, matrix: Matrix, model: Model) -> Rule:
    layer = matrix.layer
    if layer.kind == "embed":
        return scheme.lookup(layer, model)
    if matrix.is_gain:
        return scheme.gain(layer, model)
    rule = scheme.weight(matrix, model)
    if layer.view is None:
        return rule._replace(reason=f"{rule.reason}; element by element, since the program mixes them")
    return rule
