"""What the card can do, and how much of it draws, `lsuv`, `diagnose`, `initialize` and studies use."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxinit
from gpu.models import SIZES, Model, loss_fn
from gpu.record import Row
from gpu.turns import Contender, first_call, jitted, medians

Rows = Iterator[tuple[str, Callable[[], Row]]]
Models = dict[str, Callable[[], Model]]


def ceilings(rehearse: bool) -> Rows:
    """Bytes per second of copying and of writing, and products of float32 in full, in TF32, and of bfloat16."""
    size, edge = (2**20, 256) if rehearse else (2**28, 8192)
    yield "memory", functools.partial(_memory, size)
    for name, dtype, precision in (
        ("float32, highest", "float32", "highest"),
        ("float32, default", "float32", "default"),
        ("bfloat16", "bfloat16", "default"),
    ):
        yield f"product, {name}", functools.partial(_product, edge, dtype, precision)


def _memory(size: int) -> Row:
    copied, _, _ = jitted(lambda x: x + 1, jax.random.normal(jax.random.key(0), (size,)))
    written, _, _ = jitted(lambda x: jnp.full((size,), x), jnp.float32(0.5))
    times = medians({"copy": copied, "write": written}, 0.3)
    bytes_moved = {"copy": 8 * size, "write": 4 * size}
    return {f"{name}_gb_s": bytes_moved[name] / best_ms(row) * 1e-6 for name, row in times.items()} | {
        "bytes": 4 * size
    }


def best_ms(row: Row) -> float:
    """Milliseconds per call, without the time to dispatch it if that was measured."""
    return float(row.get("queued_ms", row["ms"]))


def _product(edge: int, dtype: str, precision: Any) -> Row:
    x, y = jax.random.normal(jax.random.key(0), (2, edge, edge)).astype(dtype)
    contender, _, row = jitted(lambda x, y: jnp.matmul(x, y, precision=precision), x, y)
    row |= medians({"product": contender}, 0.3)["product"]
    return row | {"tflop_s": 2 * edge**3 / best_ms(row) * 1e-9}


DRAWS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "normal": (jaxinit.normal(1.0), lambda key, shape, dtype: jax.random.normal(key, shape, dtype)),
    "truncated normal": (
        jaxinit.truncated_normal(1.0),
        lambda key, shape, dtype: jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype),
    ),
    "uniform": (jaxinit.uniform(1.0), lambda key, shape, dtype: jax.random.uniform(key, shape, dtype)),
}


def draw_shape(rehearse: bool) -> tuple[int, int]:
    """The number of elements to draw: several times the second-level cache."""
    return (256, 512) if rehearse else (8192, 16384)


def draws(rehearse: bool) -> Rows:
    """The random initializers against `jax.random`."""
    for dtype in ("float32", "bfloat16"):
        for name in DRAWS:
            yield f"{name}, {dtype}", functools.partial(_drawn, name, dtype, draw_shape(rehearse))


def _drawn(name: str, dtype: str, shape: tuple[int, int]) -> Row:
    ours, theirs = DRAWS[name]
    contenders, found = {}, {}
    for side, function in {"jaxinit": ours, "jax.random": theirs}.items():
        draw = functools.partial(function, shape=shape, dtype=jnp.dtype(dtype))
        contenders[side], _, found[side] = jitted(draw, jax.random.key(0))
    size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    for side, times in medians(contenders, 0.3).items():
        found[side] |= times | {"gb_s": size / best_ms(times) * 1e-6}
    return {"bytes": size, "contenders": found}


def lsuv(models: Models, rehearse: bool) -> Rows:
    """`lsuv` called directly and within `jit`, over one forward pass."""
    for name, make in models.items():
        yield name, lambda make=make, name=name: _lsuv(make(), "" if rehearse else SIZES[name])


def _lsuv(model: Model, size: str) -> Row:
    params, batch = model.params(), model.batch
    forward, _, first = jitted(model.apply, params, batch)
    found = {"forward": first}

    def scaled() -> Any:
        return jaxinit.lsuv(params, model.apply, batch, orthonormalize=False)

    def by_default() -> Any:
        return jaxinit.lsuv(params, model.apply, batch)

    contenders = {"forward": forward}
    for name, call in {"scales only": scaled, "by default": by_default}.items():
        _, found[name] = first_call(call)
        contenders[name] = Contender(call)
    contenders["scales only, jitted"], found["scales only, jitted"] = _donated(
        lambda p, x: jaxinit.lsuv(p, model.apply, x, orthonormalize=False), params, batch
    )
    return _over(contenders, found, "forward") | {"model": size}


def _donated(function: Callable[..., Any], params: Any, batch: Any) -> tuple[Contender, Row]:
    """A jitted function that consumes its parameters, called on its last result."""
    program = jax.jit(function, donate_argnums=0)
    held = [jax.tree.map(jnp.copy, params)]

    def call() -> Any:
        held[0] = program(held[0], batch)
        return jax.tree.leaves(held[0])[-1]

    _, row = first_call(call)
    # One by one and in a queue, only the last result still exists.
    return Contender(call, lambda _: jax.block_until_ready(held[0])), row


def _over(contenders: dict[str, Contender], found: dict[str, Row], yardstick: str, seconds: float = 0.6) -> Row:
    """The rows with their times, and these divided by those of the yardstick."""
    for name, times in medians(contenders, seconds).items():
        found[name] |= times
    floor = found[yardstick]
    for name in contenders:
        found[name]["over"] = best_ms(found[name]) / best_ms(floor)
        found[name]["first_over"] = found[name]["first_s"] / floor["first_s"]
    return {"yardstick": yardstick, "contenders": found}


def diagnose(models: Models) -> Rows:
    """`diagnose` with and without the Jacobian's spectrum, over one `value_and_grad`."""
    for name, make in models.items():
        yield name, lambda make=make: _diagnose(make())


def _diagnose(model: Model) -> Row:
    params, batch = model.params(), model.batch

    def plain(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda p: loss_fn(model.apply(p, batch), batch))(params)

    contenders, found = {}, {}
    contenders["value_and_grad"], _, found["value_and_grad"] = jitted(plain, params, batch)
    for name, options in {"by default": {}, "without Jacobian": {"lanczos_steps": 0}}.items():
        call = functools.partial(jaxinit.diagnose, params, model.apply, batch, loss_fn=loss_fn, **options)
        _, found[name] = first_call(call)
        contenders[name] = Contender(call)
    return _over(contenders, found, "value_and_grad")


def initialize(models: Models) -> Rows:
    """`initialize` by the scheme `auto`, over the module's own jitted `init`."""
    for name, make in models.items():
        yield name, lambda make=make: _initialize(make())


def _initialize(model: Model) -> Row:
    key = jax.random.key(0)
    contenders, found = {}, {}
    contenders["init"], params, found["init"] = jitted(model.init, key)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    call = functools.partial(jaxinit.initialize, key, shapes, model.apply, model.batch)
    _, found["initialize"] = first_call(call)
    contenders["initialize"] = Contender(call)
    return _over(contenders, found, "init")


def studies(rehearse: bool) -> Rows:
    """64 seeds by `study`, over a Python loop of jitted steps."""
    seeds, steps = (4, 8) if rehearse else (64, 100)
    for depth, width in ((3, 64), (3, 256)):
        yield f"MLP {depth} × {width}, {seeds} seeds", functools.partial(_study, depth, width, seeds, steps)


def _study(depth: int, width: int, seeds: int, steps: int, batch: int = 64, samples: int = 1024) -> Row:
    sizes = [64, *[width] * depth, 10]
    key = jax.random.key(0)
    data = jax.random.normal(key, (samples, sizes[0])), jax.random.randint(key, (samples,), 0, sizes[-1])

    def start(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        return [jax.random.normal(k, (n, m)) * n**-0.5 for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def loss(params: Any, batch: Any) -> Any:
        x, labels = batch
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], labels).mean()

    optimizer = optax.adam(1e-3)

    @jax.jit
    def begin(key: Any) -> Any:
        params = start(key)
        return params, optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    batches = [jax.tree.map(lambda x, i=i: x[i : i + batch], data) for i in range(0, samples, batch)]

    def trained(seed: int) -> Any:
        params, state = begin(jax.random.key(seed))
        for i in range(steps):
            params, state, value = step(params, state, batches[i % len(batches)])
        return jax.block_until_ready(value)

    def studied() -> Any:
        return jaxinit.study(
            {"start": start}, start, loss, data, optimizer=optax.adam, learning_rates=[1e-3], steps=steps, seeds=seeds,
            batch_size=batch, progress=False,
        )  # fmt: skip

    trained(0)  # compiles
    began = time.perf_counter()
    count = min(8, seeds)
    for seed in range(count):
        trained(seed)
    looped = count * steps / (time.perf_counter() - began)
    _, first = first_call(studied)
    began = time.perf_counter()
    result = studied()
    again = time.perf_counter() - began
    rate = float(result.settings["seed_steps_per_second"])
    return first | {
        "steps": steps,
        "loop_seed_steps_per_s": looped,
        "study_seed_steps_per_s": rate,
        "study_over_loop": rate / looped,
        "again_s": again,
        "loop_s": seeds * steps / looped,
    }
