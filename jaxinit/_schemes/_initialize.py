"""`initialize`: draws every leaf of the parameters by a scheme's rules, with a table of what was drawn and why."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._checks import check_choice, check_key
from jaxinit._program import is_traced
from jaxinit._reading import LeafRole, other_factors, trace
from jaxinit._schemes._drawing import ASKED_FOR, Drawn, Keep, Overrides, canonical_keep, check_overrides, overridden
from jaxinit._schemes._prepared import Start, drawn
from jaxinit._schemes._roles import Model, Vector, roles, with_adapters
from jaxinit._schemes._scheme import Scheme, as_scheme
from jaxinit._stages import waiting
from jaxinit._tabular import Tabular, add_path_column
from jaxinit._typing import Array


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
    keep: Keep = None,
    unread: str = "keep",
    return_report: bool = False,
) -> Any:
    """Draws every leaf of the parameters anew, by rules that know how the program uses it.

    Layers are found in the program (see `trace_layers`), so fans, groups, heads and stacked layers are counted as the
    program uses them, in any framework; each independent matrix is drawn by itself. Keys are derived from paths, so
    adding a layer does not change the others.

    A leaf that is not the weight of a layer is drawn by its role, which the program must show: a bias, the scale of
    a normalised value or of a residual branch, an offset, positions. A leaf of another role, or of unknown role, keeps
    its value, and the report says why. These are running statistics and other state that the function returns, decays
    of a recurrence, slopes, quantisation scales, and leaves that the function reads only behind `stop_gradient`, or
    not at all.

    Args:
      key: a typed or raw JAX key.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s. For leaves that are drawn only shapes and dtypes matter;
        those that are kept must be arrays. So must leaves that are not floating-point numbers.
      apply_fn: function of (params, batch), for a Linen module `module.apply`. It is read once for equal arguments, as
        `jax.jit` traces it once: values that it closes over are those of the first call.
      batch: pytree of arrays or `jax.ShapeDtypeStruct`s.
      scheme: a name ("auto", "torch_default", ...) or a value of `jaxinit.schemes`.
      overrides: other initializers for some leaves: a mapping from path patterns, as in `fnmatch`, to initializers, of
        which the first match counts; or a function of (path, layer or None) that returns an initializer or None. They
        are called with the leaf's shape as it is stored, or, for a layer's matrix, in the layout
        (*taps, fan-in, fan-out).
      keep: leaves that are not drawn, such as those of a pretrained backbone under a new head: one or more path
        patterns, or a function of (path, layer or None) that returns True for them. The layers after them are drawn
        for the outputs that they produce.
      unread: what to do with leaves that no output depends on, such as those of a decoder when only the encoder is
        called: "keep" leaves their values; "draw" draws those with at least two axes as kernels in Flax's layout.
      return_report: also return an `InitializeReport`, the table of what was drawn and why.

    Returns:
      The new parameters; with `return_report=True` a pair with the report.

    Raises:
      TypeError: `key` is not a key, `apply_fn` not a function of two arguments, `scheme` not a scheme, or an override
        not an initializer.
      ValueError: an unknown scheme, a scheme that does not fit the model (the layer that breaks its assumption is
        named), a pattern that matches no leaf, a leaf that is both kept and overridden, or one that is to be kept but
        has only a shape.

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
    with waiting("initialize"):
        leaves, rows = drawn(_read, key, params, apply_fn, batch, Start(chosen, overrides, unread, keep))
    old, structure = jax.tree.flatten(params)
    result = jax.tree.unflatten(structure, [_placed(new, x) for new, x in zip(leaves, old, strict=True)])
    return (result, InitializeReport(repr(chosen), rows)) if return_report else result


def _read(params: Any, apply_fn: Any, batch: Any, start: Start) -> Model:
    """The program, and what is to be done with each leaf.

    Raises:
      ValueError: see `initialize`.
    """
    model = roles(trace(params, apply_fn, batch), start.scheme.fused, batch)
    start.scheme.check(model)
    model = start.scheme.prepared(model)
    check_overrides(start.overrides, model.traced.paths)
    if start.keep is not None:
        model = _with_kept(model, start)
    model = with_adapters(model, _told(model, start))
    _check_products(model, start.overrides)
    if start.unread == "draw":
        model = _with_unread(model)
    _check_kept(model, start.overrides)
    return model


def _check_products(model: Model, overrides: Overrides) -> None:
    """Checks for masks: a weight times a mask does not show which is which, and drawing a mask anew would destroy it.

    Raises:
      ValueError: the user does not say which is which either.
    """
    traced = model.traced
    for layer, weight in model.layers:
        shape = np.shape(traced.leaves[weight.leaf])
        for other in other_factors(weight):
            paths = traced.paths[weight.leaf], traced.paths[other]
            told = any(overridden(overrides, path, layer) is not None for path in paths)
            told |= any(i in model.kept and model.kept[i].name == ASKED_FOR for i in (weight.leaf, other))
            if layer.view is not None and np.shape(traced.leaves[other]) == shape and not told:
                raise ValueError(
                    f"{paths[0]} and {paths[1]} are multiplied element by element, so the program does not show which "
                    "of them is the weight and which the mask; say what one of them is, for instance "
                    f"overrides={{{paths[1]!r}: lambda key, shape, dtype: mask}}"
                )


def _with_kept(model: Model, start: Start) -> Model:
    """The same model, with the leaves that the user wants to keep among those that are kept.

    Raises:
      ValueError: one of them is overridden, too.
    """
    traced = model.traced
    stays = canonical_keep(start.keep, traced.paths)
    layer_of = {leaf: layer for layer, weight in reversed(model.layers) for leaf in weight.regions}
    vectors, kept, slices = dict(model.vectors), dict(model.kept), dict(model.slices)
    for leaf, path in enumerate(traced.paths):
        layer = layer_of.get(leaf)
        if stays(path, layer):
            if overridden(start.overrides, path, layer) is not None:
                raise ValueError(f"{path} is both kept and overridden; leave it out of keep= or of overrides=")
            kept[leaf] = LeafRole(ASKED_FOR, "as asked by keep=")
            vectors.pop(leaf, None)
            slices.pop(leaf, None)
    return dataclasses.replace(model, vectors=vectors, kept=kept, slices=slices)


def _told(model: Model, start: Start) -> Callable[[int], bool]:
    """Whether the user says how to draw a leaf, or to keep it."""
    paths, layer_of = model.traced.paths, {leaf: layer for layer, w in reversed(model.layers) for leaf in w.regions}
    return lambda leaf: (
        (leaf in model.kept and model.kept[leaf].name == ASKED_FOR)
        or overridden(start.overrides, paths[leaf], layer_of.get(leaf)) is not None
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
    """Checks that leaves that keep their values have values.

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


def _placed(new: Array, old: Any) -> Array:
    """The new leaf on the devices where the old one was."""
    sharding = getattr(old, "sharding", None)
    if is_traced(new) or is_traced(old) or not isinstance(sharding, jax.sharding.NamedSharding):
        return new
    return jax.device_put(new, sharding)
