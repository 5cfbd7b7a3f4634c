"""The maximal update parametrization: hyperparameters that transfer from a narrow model to a wide one.

A base model, given by shapes, says which dimensions are widths. Each weight is then an input weight (its fan-in does
not grow), a hidden one, or an output weight (its fan-out does not grow), with a variance and a learning rate of its
own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit._checks import check_choice, check_flag
from jaxinit._initializers import normal, scaled, zeros
from jaxinit._reading import Layer, trace
from jaxinit._schemes._auto import auto
from jaxinit._schemes._requirements import MisfitError
from jaxinit._schemes._roles import Matrix, Model, roles
from jaxinit._schemes._scheme import Rule, register

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@register
@dataclasses.dataclass(frozen=True)
class mup(auto):
    r"""Maximal update parametrization against a base model.

    | weight | standard deviation | learning rate, Adam | SGD |
    |---|---|---|---|
    | input, bias, scale, embedding: fan-in fixed | as in the base model | 1 | n |
    | hidden: fan-in and fan-out grow | base / sqrt(m) | 1 / m | 1 |
    | output: fan-out fixed | zero, or base / m | 1 / m | 1 / m |

    where m is how many times larger the fan-in is than in the base model, and n the same for the fan-out. The base
    model has the initial weights of `auto`. Attention logits must be divided by the size of a head, not by its root, if
    that size grows. `learning_rates` returns the factors of the last two columns. A tied embedding is drawn as an
    embedding; the program has to divide its logits by m. A model of the base's own widths is a member of the family:
    its last layer, and its queries, are zero as in the others.

    Args:
      base: the parameters of the base model, a pytree of arrays or shapes of the same structure.
      zero_output: whether output weights are initially zero.
      zero_query: whether query projections are initially zero.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxinit
      >>> def shapes(width):
      ...     return {"a": jax.ShapeDtypeStruct((8, width), jnp.float32), "b": jax.ShapeDtypeStruct((width, width),
      ...             jnp.float32), "c": jax.ShapeDtypeStruct((width, 2), jnp.float32)}
      >>> def apply_fn(p, x):
      ...     return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
      >>> x = jnp.ones((4, 8))
      >>> scheme = jaxinit.schemes.mup(shapes(64))
      >>> params = jaxinit.initialize(jax.random.key(0), shapes(256), apply_fn, x, scheme)
      >>> factors = scheme.learning_rates(shapes(256), apply_fn, x)
      >>> factors
      {'a': 1.0, 'b': 0.25, 'c': 0.25}
      >>> optimizer = optax.chain(optax.adam(1e-3), optax.stateless(
      ...     lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)))

    Reference: Yang et al., 2022 (arXiv:2203.03466), table 3.
    """

    base: Any = ()
    zero_output: bool = True
    zero_query: bool = True

    def _check_fields(self) -> None:
        check_flag("zero_output", self.zero_output)
        check_flag("zero_query", self.zero_query)
        if not _is_shapes(self.base):
            with_paths, _ = jax.tree_util.tree_flatten_with_path(self.base)
            shapes = tuple(
                (jax.tree_util.keystr(path, simple=True, separator="/"), tuple(jnp.shape(x))) for path, x in with_paths
            )
            object.__setattr__(self, "base", shapes)

    def check(self, model: Model) -> None:
        if not self.base:
            raise MisfitError(
                "mup needs the parameters of a base model, arrays or shapes of the same model with smaller widths; "
                "pass jaxinit.schemes.mup(base), for instance with base = jax.eval_shape(narrow_model.init, key, batch)"
            )
        base, traced = dict(self.base), model.traced
        shapes = {path: tuple(jnp.shape(x)) for path, x in zip(traced.paths, traced.leaves, strict=True)}
        if base.keys() != shapes.keys():
            raise MisfitError(
                f"mup needs a base model with the same leaves; only the base has "
                f"{sorted(base.keys() - shapes.keys())}, only the model has {sorted(shapes.keys() - base.keys())}"
            )
        for path, shape in shapes.items():
            if len(base[path]) != len(shape) or 0 in base[path]:
                raise MisfitError(
                    f"mup needs a base model that differs only in sizes, but {path} has the shape {shape}, and "
                    f"{base[path]} in the base model"
                )

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        rule = super().weight(matrix, model)
        init, reason = rule.init, rule.reason
        grown_in, grown_out = self._growth(matrix.layer, model)
        if matrix.role == "query" and self.zero_query:
            return Rule(zeros, "queries start at zero")
        reads_out = grown_in != 1 and grown_out == 1
        if self.zero_output and not reads_out and self._is_base(model):
            reads_out = model.is_readout(matrix.layer)
        if reads_out:
            if self.zero_output:
                return Rule(zeros, f"output weight, fan-in × {grown_in:g}: starts at zero")
            return rule._replace(
                init=scaled(init, grown_in**-0.5), reason=f"{reason}; output weight: std / {grown_in:g}"
            )
        kind = "hidden" if grown_in != 1 else "input"
        return rule._replace(reason=f"{reason}; {kind} weight")

    def lookup(self, layer: Layer, model: Model) -> Rule:
        return Rule(normal(1.0), "rows of unit variance at every width")

    def learning_rates(
        self, params: Any, apply_fn: Callable[[Any, Any], Any], batch: Any, *, optimizer: str = "adam"
    ) -> Any:
        """Returns the factor of the learning rate for each leaf.

        Args:
          params, apply_fn, batch: as for `jaxinit.initialize`.
          optimizer: "adam", for all optimizers that divide gradients by their size, or "sgd".

        Returns:
          A pytree of floats of the structure of `params`.

        Raises:
          ValueError: an unknown optimizer, or a base model with a different structure.
        """
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        model = roles(trace(params, apply_fn, batch))
        self.check(model)
        factors = [self._vector_rate(i, model, optimizer) for i in range(len(model.traced.leaves))]
        for layer, weight in model.layers:
            grown_in, grown_out = self._growth(layer, model)
            if layer.kind == "embed" or grown_in == 1:
                rate = 1.0 if optimizer == "adam" else grown_out
            else:
                rate = 1 / grown_in if optimizer == "adam" or grown_out == 1 else 1.0
            factors[weight.leaf] = rate
        return jax.tree.unflatten(jax.tree.structure(params), factors)

    def _vector_rate(self, leaf: int, model: Model, optimizer: str) -> float:
        if optimizer == "adam":
            return 1.0
        base = dict(self.base)[model.traced.paths[leaf]]
        return math.prod(jnp.shape(model.traced.leaves[leaf])) / math.prod(base)

    def _is_base(self, model: Model) -> bool:
        """Whether a model is as wide as the base model, so that its shapes do not tell which layers read out."""
        base, traced = dict(self.base), model.traced
        return all(base.get(path) == tuple(jnp.shape(x)) for path, x in zip(traced.paths, traced.leaves, strict=True))

    def _growth(self, layer: Layer, model: Model) -> tuple[float, float]:
        """How many times larger fan-in and fan-out are than in the base model."""
        shape = jnp.shape(model.traced.leaves[model.traced.paths.index(layer.path)])
        ratios = [n / m for n, m in zip(shape, dict(self.base)[layer.path], strict=True)]
        inputs, outputs = _axes_by_role(layer)
        return math.prod(ratios[a] for a in inputs), math.prod(ratios[a] for a in outputs)


def _is_shapes(base: Any) -> bool:
    return isinstance(base, tuple) and all(
        isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) and isinstance(x[1], tuple) for x in base
    )


def _axes_by_role(layer: Layer) -> tuple[list[int], list[int]]:
    """The axes of the leaf that are contracted, and those that are features of the output."""
    if layer.view is None or layer.in_axes is None or layer.out_axes is None:
        rank = len(layer.shape)
        return ([], [rank - 1]) if layer.kind == "embed" else ([rank - 2], [rank - 1])
    inputs, outputs, at = [], [], 0
    for axis, size in enumerate(layer.shape):
        covered, held = 1, []
        while covered < size:
            covered *= layer.view[at]
            held.append(at)
            at += 1
        if set(held) & set(layer.in_axes):
            inputs.append(axis)
        elif set(held) & set(layer.out_axes):
            outputs.append(axis)
    return inputs, outputs
