"""The Haar sampler by each method against JAX's samplers, and the effect of the sampler's choices on this device.

Every contender is a jitted program of one key. Its first call is timed apart from the others, and its result is
checked on the host: a row reports the largest entry of |QᵀQ − I|.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from gpu import law
from gpu.record import Record, Row
from gpu.turns import Contender, jitted, medians
from jaxinit import haar
from jaxinit._haar import _gaussians, _reflectors, _sampler, _scanned, _unrolled

Rows = Iterator[tuple[str, Callable[[], Row]]]
Shape = tuple[int, ...]
Sampler = Callable[[jax.Array], jax.Array]

SHAPES: tuple[Shape, ...] = (
    (1024, 64, 64),
    (1024, 1024),
    (1000, 16, 16),
    (4096, 32, 32),
    (2048, 2048),
    (1000, 8, 8),
    (256, 128, 128),
    (4096, 512),
    (512, 4096),
    (512, 512),
    (32, 2048, 128),
    (16, 512, 512),
    (256, 256),
    (4096, 4096),
)
REHEARSAL: tuple[Shape, ...] = ((6, 24, 24), (40, 40), (20, 8, 8), (48, 20), (20, 48), (3, 60, 12))
"""The most valuable first, in case time runs out."""
DEFAULT_SHAPES: tuple[Shape, ...] = (
    (1024, 1024),
    (2048, 2048),
    (512, 512),
    (1000, 16, 16),
    (1000, 8, 8),
    (4096, 512),
    (512, 4096),
    (32, 2048, 128),
    (16, 512, 512),
    (256, 128, 128),
    (4096, 4096),
)
"""Shapes whose first call is compared."""

WIDTHS: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    ((1024, 1024), (64, 256)),
    ((1024, 64, 64), (8, 32, 64)),
    ((2048, 2048), (128, 512)),
    ((4096, 32, 32), (8, 32)),
    ((256, 128, 128), (16, 64)),
    ((512, 512), (64, 256)),
    ((32, 2048, 128), (32, 64)),
    ((16, 512, 512), (64, 256)),
    ((4096, 512), (64, 256)),
    ((4096, 4096), (128, 512)),
)
REHEARSAL_WIDTHS: tuple[tuple[Shape, tuple[int, ...]], ...] = (((6, 24, 24), (8, 24)), ((40, 40), (20,)))


def shapes(rehearse: bool) -> tuple[Shape, ...]:
    """What is measured."""
    return REHEARSAL if rehearse else SHAPES


def name_of(shape: Shape) -> str:
    """A shape as the tables show it."""
    return "×".join(map(str, shape))


def against_peers(record: Record, rehearse: bool) -> Rows:
    """All methods, JAX's two samplers, and only the random numbers."""
    for shape in shapes(rehearse):
        yield name_of(shape), functools.partial(_compared, record, shape, _samplers(shape))


def _samplers(shape: Shape) -> dict[str, Sampler]:
    *batch, n, m = shape
    columns = min(n, m)
    found: dict[str, Sampler] = {"reflectors": lambda key: haar.orthogonal(key, shape, method="reflectors")}
    if columns <= 16:
        found["small"] = lambda key: haar.orthogonal(key, shape, method="small")
    # The sign-corrected QR of jnp.linalg: cuSOLVER, or cuBLAS for batches of small matrices.
    found["qr"] = lambda key: haar.orthogonal(key, shape, method="qr")
    found["jax.random"] = lambda key: jax.random.orthogonal(key, n, tuple(batch), m=m)
    initializer = jax.nn.initializers.orthogonal()

    def jax_initializer(key: jax.Array) -> jax.Array:
        if not batch:
            return initializer(key, (n, m))
        return jax.vmap(lambda k: initializer(k, (n, m)))(jax.random.split(key, batch[0]))

    found["jax.nn"] = jax_initializer
    needed = max(n, m) * columns - columns * (columns - 1) // 2
    found["numbers"] = lambda key: _gaussians.normal_pairs(key, (*batch, -(-needed // 2)), jnp.float32)
    return found


def _compared(record: Record, shape: Shape, samplers: dict[str, Sampler], options: dict[str, Any] | None = None) -> Row:
    contenders: dict[str, Contender] = {}
    found: dict[str, Row] = {}
    for name, sampler in samplers.items():
        # Half of the rows' time is spent on compiling; a shape that has begun has at least its first two contenders.
        if record.left() <= 0 and len(contenders) >= 2:
            found[name] = {"skipped": "the section's time was spent"}
            continue
        try:
            contenders[name], result, found[name] = jitted(sampler, jax.random.key(1), options=options)
        except Exception as error:  # if one contender fails, for instance for lack of memory, the others go on
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            continue
        if name != "numbers":
            error = law.deviation(result)
            found[name] |= {"error": error, "passed": error <= 2e-5}
    for name, times in medians(contenders, 0.3).items():
        found[name] |= times
    return {"auto": _sampler.method_for(shape[:-2], min(shape[-2:])), "contenders": found}


def by_default(record: Record, rehearse: bool) -> Rows:
    """The public function, against `jax.random`: above all the first call."""
    for shape in REHEARSAL if rehearse else DEFAULT_SHAPES:
        *batch, n, m = shape
        samplers = {
            "jax.random": lambda key, n=n, m=m, batch=batch: jax.random.orthogonal(key, n, tuple(batch), m=m),
            "auto": lambda key, shape=shape: haar.orthogonal(key, shape),
        }
        yield name_of(shape), functools.partial(_over_jax, record, shape, samplers)


def _over_jax(record: Record, shape: Shape, samplers: dict[str, Sampler]) -> Row:
    row = _compared(record, shape, samplers)
    ours, theirs = (row["contenders"][name] for name in ("auto", "jax.random"))
    if "ms" in ours and "ms" in theirs:
        ours |= {"over": ours["ms"] / theirs["ms"], "first_over": ours["first_s"] / theirs["first_s"]}
    return row


OPTIONS: dict[str, dict[str, Any]] = {
    "not tuned": {"xla_gpu_autotune_level": 0},
    "without Triton": {"xla_gpu_enable_triton_gemm": False},
    "as it is": {},
}


def compiling(record: Record, rehearse: bool) -> Rows:
    """Panels written out, as on a CPU; and how much of the first call is XLA's choice of kernels for products.

    XLA remembers its choices, so each contender has a shape of its own, all of about one size.
    """
    shape = (40, 40) if rehearse else (512, 512)
    yield f"{name_of(shape)}, unrolled", functools.partial(_compared, record, shape, {"unrolled": _unrolled_of(shape)})
    for size, (name, options) in zip((36, 40, 44) if rehearse else (640, 768, 896), OPTIONS.items(), strict=True):
        shape = (size, size)
        samplers = {name: functools.partial(haar.orthogonal, shape=shape)}
        yield f"{name_of(shape)}, {name}", functools.partial(_compared, record, shape, samplers, options)


def _unrolled_of(shape: Shape) -> Sampler:
    *batch, n, m = shape

    def sampler(key: jax.Array) -> jax.Array:
        with mock.patch.object(_reflectors, "frame", _unrolled.frame):
            return _reflectors.sample(key, tuple(batch), n, m, jnp.float32, False)

    return sampler


def tuning(record: Record, rehearse: bool) -> Rows:
    """Panel widths, and products by the tensor cores in several passes."""
    for shape, widths in REHEARSAL_WIDTHS if rehearse else WIDTHS:
        samplers = {f"width {width}": _of_width(shape, width) for width in (_usual_width(shape), *widths)}
        yield f"widths, {name_of(shape)}", functools.partial(_compared, record, shape, samplers)
    yield "products", functools.partial(_products, record, (24, 24) if rehearse else (2048, 2048))


def few_columns(record: Record, rehearse: bool) -> Rows:
    """The two layouts for few columns, beyond the shapes for which "auto" chooses "small"."""
    for shape in ((8, 18, 18),) if rehearse else ((4096, 24, 24), (4096, 32, 32)):
        samplers = {
            method: functools.partial(haar.orthogonal, shape=shape, method=method) for method in ("reflectors", "small")
        }
        yield name_of(shape), functools.partial(_compared, record, shape, samplers)


def _usual_width(shape: Shape) -> int:
    return _scanned.panel_width(math.prod(shape[:-2]), max(shape[-2:]), min(shape[-2:]))


def _of_width(shape: Shape, width: int) -> Sampler:
    *batch, n, m = shape

    def sampler(key: jax.Array) -> jax.Array:
        with mock.patch.object(_scanned, "panel_width", return_value=width):
            return _reflectors.sample(key, tuple(batch), n, m, jnp.float32, False)

    return sampler


def _products(record: Record, shape: Shape) -> Row:
    """The sampler with float32 products in several passes of the tensor cores; the error shows if they are used."""
    *batch, n, m = shape

    def sampler(key: jax.Array, precision: Any) -> jax.Array:
        def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
            square = a.shape[-2] == a.shape[-1] == b.shape[-1]  # the products of the inverse
            return jnp.matmul(a, b, precision="highest" if square else precision)

        with mock.patch.object(_scanned, "matmul", matmul):
            return _reflectors.sample(key, tuple(batch), n, m, jnp.float32, False)

    algorithms = ("TF32_TF32_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9")
    # A setting that this version of JAX does not know becomes a contender that fails.
    precisions = {name: getattr(lax.DotAlgorithmPreset, name, name) for name in algorithms}
    precisions = {"highest": lax.Precision.HIGHEST, **precisions}
    return _compared(record, shape, {k: functools.partial(sampler, precision=p) for k, p in precisions.items()})
