"""What `diagnose` measures of a start, before anything is judged: one entry a row of every column."""

import dataclasses

import jax

from jaxinit._measuring._coverage import Unread
from jaxinit._measuring._rows import Row
from jaxinit._typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measurements:
    """The arrays of a `DiagnoseReport`, which says what each of them is."""

    rows: tuple[Row, ...] = dataclasses.field(metadata={"static": True})
    unread: tuple[Unread, ...] = dataclasses.field(metadata={"static": True})
    fitting: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    pre_mean: Array
    pre_std: Array
    post_mean: Array
    post_std: Array
    dead: Array
    surely_dead: Array
    saturated: Array
    similarity: Array
    effective_rank: Array
    gradient_std: Array | None
    gradient_samples: Array | None
    gradient_norm: Array | None
    update_ratio: Array | None
    weight_norm: Array
    attention_peak: Array
    input_size: Array
    product_size: Array
    branch_share: Array
    leaning: Array
    equal_units: Array | None
    finite_output: Array
    jacobian_mean_square: Array | None
    jacobian_condition: Array | None
