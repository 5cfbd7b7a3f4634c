"""Drawing stage by stage (see `_stages`): draws of equal shape and kind share one program.

What is read from a model does not depend on the key, so a second call, with another key, can draw at once: programs and
the rows of the report are kept with the function, the leaves and the batch that they are for. If an initializer is not
from this package, and so may do anything, nothing is kept.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxinit._arrays import random
from jaxinit._caches import kept_with_functions
from jaxinit._checks import is_typed_key
from jaxinit._program import is_traced
from jaxinit._schemes._draw import KeyWords
from jaxinit._schemes._drawing import ASKED_FOR, Drawing, Drawn, Keep, Overrides
from jaxinit._schemes._roles import Model
from jaxinit._schemes._scheme import Scheme
from jaxinit._stages import Plan, kind_of, plan_of
from jaxinit._typing import Array


@dataclasses.dataclass(frozen=True)
class Start:
    """How a model is drawn: the scheme, overrides, kept leaves, and what to do with leaves that are not read."""

    scheme: Scheme
    overrides: Overrides
    unread: str
    keep: Keep = None


def drawn(
    read: Callable[[Any, Any, Any, Start], Model], key: Array, params: Any, apply_fn: Any, batch: Any, start: Start
) -> tuple[list[Any], tuple[Drawn, ...]]:
    """New leaves, and the rows of the report; `read` reads the model."""
    (old, structure), (data, batch_structure) = jax.tree.flatten(params), jax.tree.flatten(batch)
    words = None if is_traced(key) else random.words_of(key)
    given = key if words is None else words
    arrays = [_arrays(old), _arrays(data)]
    kind = kind_of((given, arrays))
    if kind is None:
        return _leaves(key, old, batch, start, read(params, apply_fn, batch, start))[:2]
    overrides = start.overrides
    exceptions = tuple(overrides.items()) if isinstance(overrides, Mapping) else overrides
    keep = tuple(start.keep) if isinstance(start.keep, list) else start.keep
    about = start.scheme, start.unread, structure, batch_structure, given is key, kind
    box = _box(apply_fn, exceptions, keep, about, *old, *data)
    if not box:
        model = read(params, apply_fn, batch, start)
        plan, rows, may_be_kept = _planned(given, key, old, data, batch_structure, start, model)
        if plan is None:
            return _leaves(key, old, batch, start, model)[:2]
        if not may_be_kept:
            return plan.run(given, arrays), rows
        box.append((plan, rows))
    plan, rows = box[0]
    return plan.run(given, arrays), rows


def _arrays(leaves: Sequence[Any]) -> list[Any]:
    return [x for x in leaves if not isinstance(x, jax.ShapeDtypeStruct)]


@kept_with_functions(16)
def _box(apply_fn: Any, exceptions: Any, keep: Any, about: Any, *leaves: Any) -> list[tuple[Plan, tuple[Drawn, ...]]]:
    """The cache entry for the plan of these arguments."""
    return []


def _planned(
    given: Any, key: Any, old: Sequence[Any], data: Sequence[Any], batch_structure: Any, start: Start, model: Model
) -> tuple[Plan | None, tuple[Drawn, ...], bool]:
    """The plan that draws, the rows of the report, and whether another call would do the same."""
    found: list[tuple[tuple[Drawn, ...], bool]] = []
    has_words = random.words_of(key) is not None

    def draw(given: Any, arrays: list[list[Any]]) -> list[Any]:
        leaves, batch = (_with(x, y) for x, y in zip((old, data), arrays, strict=True))
        own = KeyWords(given, is_typed_key(key)) if has_words else given
        leaves, rows, kept = _leaves(own, leaves, jax.tree.unflatten(batch_structure, batch), start, model)
        found.append((rows, kept))
        return leaves

    try:
        plan = plan_of(draw, given, [_arrays(old), _arrays(data)])
    except jax.errors.JAXTypeError:  # a user's initializer that needs the numbers of its key
        return None, (), False
    return plan, *found[-1]


def _with(leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """The leaves, with those that are arrays replaced by these."""
    following = iter(arrays)
    return [x if isinstance(x, jax.ShapeDtypeStruct) else next(following) for x in leaves]


def _leaves(
    key: Array | KeyWords, old: Sequence[Any], batch: Any, start: Start, model: Model
) -> tuple[list[Any], tuple[Drawn, ...], bool]:
    """New leaves for old ones, the rows of the report, and whether only initializers of this package drew."""
    drawing = Drawing(key, start.scheme, model, start.overrides)
    leaves = drawing.corrected([drawing.leaf(i, x) for i, x in enumerate(old)])
    if start.scheme.measures:
        for i, (new, reason) in start.scheme.finish(leaves, batch, model).items():
            if i in model.kept and model.kept[i].name == ASKED_FOR:
                continue
            path = model.traced.paths[i]
            leaves[i] = new
            drawing.rows = [dataclasses.replace(r, reason=reason) if r.path == path else r for r in drawing.rows]
    return leaves, tuple(drawing.rows), drawing.is_of_package
