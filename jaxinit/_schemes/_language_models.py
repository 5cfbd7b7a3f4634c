"""Recipes of today's language models as a scheme: one standard deviation for all weights, smaller at branch ends."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from jaxinit._checks import check_choice, check_number
from jaxinit._initializers import Initializer, normal, truncated_normal, zeros
from jaxinit._reading import Layer, Use
from jaxinit._schemes._requirements import check_attention, check_branches
from jaxinit._schemes._roles import Matrix, Model, Vector
from jaxinit._schemes._scheme import Rule, Scheme, register
from jaxinit._schemes._transformers import shrinks

_STDDEVS = ("small", "width", "fan_in", "spectral")
_RESIDUALS = ("depth", "index", "wang", "sub_ln")


@register
@dataclasses.dataclass(frozen=True)
class transformer(Scheme):
    r"""Normal weights as in language models, with a smaller standard deviation for the last layers of branches.

    | `stddev` | σ | seen in |
    |---|---|---|
    | a number | that number | GPT-2, Llama: .02 |
    | "small" | √(2 / 5d) | GPT-NeoX |
    | "width" | 1 / √d | OLMo, truncated at 3σ |
    | "fan_in" | 1 / √fan-in | PaLM |
    | "spectral" | min(1, √(fan-out / fan-in)) / √fan-in, embeddings of unit variance | spectral condition |

    | `residual` | the last layer of a branch | seen in |
    |---|---|---|
    | "depth" | σ / √(2L) | GPT-2 |
    | "index" | σ / √(2(l + 1)) in block l = 0 ... L - 1 | Megatron, OLMo |
    | "wang" | 2 / (L√d) | GPT-J, GPT-NeoX |
    | "sub_ln" | σ·√(ln 2L) for values, outputs and feed-forward layers | Foundation Transformers |
    | None | σ | Llama |

    for a model of L blocks and width d. Biases are zero, scales one.

    Args:
      stddev: σ, a number or one of the words above.
      residual: the rule for the last layer of each branch, one of the words above, or None.
      embedding: the standard deviation of token embeddings; by default σ.
      position: the standard deviation of learned positions; by default that of embeddings.
      readout: the standard deviation of the last layer, 0 for zero; by default σ.
      truncate: where weights are cut off, in standard deviations; None for plain normals.

    Raises:
      TypeError, ValueError: a number is not a number or is negative, or a word is unknown.
      MisfitError: the model has no attention or no branches.

    Example:
      >>> import jaxinit.schemes
      >>> neox = jaxinit.schemes.transformer("small", residual="wang", embedding=0.02)
      >>> olmo = jaxinit.schemes.transformer("width", residual="index", truncate=3.0)
      >>> llama = jaxinit.schemes.transformer(0.02, residual=None)

    Reference: Radford et al., 2019; Nguyen & Salazar, 2019 (arXiv:1910.05895) for "small"; Black et al., 2022
      (arXiv:2204.06745) for "wang"; Groeneveld et al., 2024 (arXiv:2402.00838); Yang, Simon & Bernstein, 2023
      (arXiv:2310.17813); Wang et al., 2022 (arXiv:2210.06423) for "sub_ln".
    """

    stddev: float | str = 0.02
    residual: str | None = "depth"
    embedding: float | None = None
    position: float | None = None
    readout: float | None = None
    truncate: float | None = None

    def _check_fields(self) -> None:
        if isinstance(self.stddev, str):
            check_choice("stddev", self.stddev, _STDDEVS)
        else:
            check_number("stddev", self.stddev, nonnegative=True)
        if self.residual is not None:
            check_choice("residual", self.residual, _RESIDUALS)
        for name in ("embedding", "position", "readout"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), nonnegative=True)
        if self.truncate is not None:
            check_number("truncate", self.truncate, positive=True)

    def check(self, model: Model) -> None:
        check_attention(self, model)
        check_branches(self, model)

    def weight(self, matrix: Matrix, model: Model) -> Rule:
        layer = matrix.layer
        if self.readout is not None and model.is_readout(layer):
            return Rule(self._normal(self.readout), "the readout")
        stddev, reason = self._stddev(layer.fan_in, layer.fan_out, model)
        blocks = max(model.blocks(encoder=True) + model.blocks(encoder=False), 1)
        if self.residual == "sub_ln" and shrinks(matrix):
            factor = math.log(2 * blocks) ** 0.5
            return Rule(self._normal(stddev * factor), f"{reason} × sqrt(ln {2 * blocks})")
        if not model.last_in_branch(layer) or self.residual in (None, "sub_ln"):
            return Rule(self._normal(stddev), reason)
        if self.residual == "wang":
            width = _width(model)
            return Rule(self._normal(2 / (blocks * width**0.5)), f"ends a branch: 2 / ({blocks}·sqrt({width}))")
        if self.residual == "depth":
            reason = f"{reason}, ends a branch: / sqrt({model.branches})"
            return Rule(self._normal(stddev / model.branches**0.5), reason)
        indices = _indices_of(layer, model)
        own = [1 / math.sqrt(2 * (i + 1)) for i in indices]
        if len(own) == 1:
            return Rule(self._normal(stddev * own[0]), f"{reason}, ends a branch of block {indices[0]}")
        reason = f"{reason}, ends branches of blocks {indices[0]} to {indices[-1]}"
        return Rule(self._normal(stddev), reason, by_slice=tuple(own))

    def lookup(self, layer: Layer, model: Model) -> Rule:
        stddev, reason = self._of_embeddings(layer.fan_out, model)
        return Rule(self._normal(stddev), reason)

    def vector(self, vector: Vector, model: Model) -> Rule:
        if vector.role not in ("position", "token", "embedding"):
            return super().vector(vector, model)
        stddev, reason = self._of_embeddings(vector.shape[-1], model)
        if vector.role == "position" and self.position is not None:
            stddev, reason = self.position, "positions"
        return Rule(self._normal(stddev), reason)

    def _of_embeddings(self, width: int | float, model: Model) -> tuple[float, str]:
        if self.embedding is not None:
            return self.embedding, "embeddings"
        return (1.0, "rows of unit variance") if self.stddev == "spectral" else self._stddev(width, width, model)

    def _stddev(self, fan_in: int | float, fan_out: int | float, model: Model) -> tuple[float, str]:
        """σ of a weight, and the reason."""
        match self.stddev:
            case "small":
                return (2 / (5 * _width(model))) ** 0.5, f"sqrt(2 / (5·{_width(model)}))"
            case "width":
                return _width(model) ** -0.5, f"1 / sqrt({_width(model)})"
            case "fan_in":
                return fan_in**-0.5, "1 / sqrt(fan-in)"
            case "spectral":
                return min(
                    1.0, (fan_out / fan_in) ** 0.5
                ) * fan_in**-0.5, "min(1, sqrt(fan-out / fan-in)) / sqrt(fan-in)"
        return float(self.stddev), "N(0, σ²)"

    def _normal(self, stddev: float) -> Initializer:
        if stddev == 0:
            return zeros
        if self.truncate is None:
            return normal(stddev)
        return truncated_normal(stddev, lower=-self.truncate, upper=self.truncate)


def _width(model: Model) -> int:
    """The width of the stream that attention adds to."""
    attending = _attending(model)
    skips = [skip for skip in model.traced.skips if not attending.isdisjoint(skip.layers)]
    return int((skips or model.traced.skips)[0].stream.shape[-1])


def _attending(model: Model) -> set[Use]:
    """A layer of each attention of a sequence to itself."""
    return {a.value[0].use for a in model.traced.structure.attentions if not a.cross}


def _blocks(model: Model) -> list[list[int]]:
    """For each block, in order of execution, the numbers of its skip connections.

    A block begins with the branch that holds its attention. Skips in the body of a scan come once for each slice.
    """
    attending = _attending(model)
    blocks: list[list[int]] = []
    for number, _ in _executions(model):
        if not blocks or not attending.isdisjoint(model.traced.skips[number].layers):
            blocks.append([])
        blocks[-1].append(number)
    return blocks


def _executions(model: Model) -> Iterator[tuple[int, int]]:
    """The skip connections in order of execution, and the slices of a scan that they belong to."""
    stacked = {weight: layer.stacked for layer, weight in model.layers}
    sizes = [max(stacked[c.weight] for u in skip.layers for c in u.components) for skip in model.traced.skips]
    for size, group in itertools.groupby(range(len(sizes)), key=sizes.__getitem__):
        numbers = list(group)
        yield from ((number, turn) for turn in range(size) for number in numbers)


def _indices_of(layer: Layer, model: Model) -> list[int]:
    """The numbers of the blocks that a layer belongs to, one for each slice."""
    return [i for i, numbers in enumerate(_blocks(model)) if layer.skip in numbers]
