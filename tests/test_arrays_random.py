"""The draws of `jaxinit._arrays.random` are those of `jax.random`, bit for bit, however they are requested.

No tolerance appears below: two arrays are equal if their bytes are.
"""

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinit._arrays import _threefry, first_words, random, threefry2x32

Draw = Callable[..., jax.Array]


def _normal(module: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return module.normal(key, shape, dtype)


def _uniform(module: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return module.uniform(key, shape, dtype, -0.3, 0.7)


def _unit_uniform(module: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return module.uniform(key, shape, dtype)


def _truncated_normal(module: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return module.truncated_normal(key, -2.0, 1.5, shape, dtype)


DRAWS = (_normal, _uniform, _truncated_normal)
SHAPES = ((256,), (3, 3, 31, 17))


def _assert_same(transform: Callable[[Draw], Callable[..., Any]], draw: Draw, *operands: Any) -> None:
    """Both modules, each in a program of its own: `transform(draw from module)(*operands)`."""
    ours = transform(functools.partial(draw, random))(*operands)
    theirs = transform(functools.partial(draw, jax.random))(*operands)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def _fixed(shape: tuple[int, ...], dtype: Any) -> Callable[[Draw], Callable[..., jax.Array]]:
    return lambda draw: lambda key: draw(key, shape, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", DRAWS)
def test_eager_draws_are_those_of_jax_random(draw: Draw, shape: tuple[int, ...]) -> None:
    _assert_same(_fixed(shape, np.float32), draw, jax.random.key(1))


@pytest.mark.parametrize("shape", [(), (0, 3), (255,)], ids=str)
def test_small_draws_are_those_of_jax_random(shape: tuple[int, ...]) -> None:
    _assert_same(_fixed(shape, np.float32), _uniform, jax.random.key(1))


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_other_dtypes_are_those_of_jax_random(dtype: str) -> None:
    _assert_same(_fixed((33, 31), jnp.dtype(dtype)), _normal, jax.random.key(1))


def test_64_bit_draws_are_those_of_jax_random() -> None:
    with jax.enable_x64(True):
        _assert_same(_fixed((33, 31), np.float64), _normal, jax.random.key(1))
        _assert_same(_fixed((33, 31), np.float32), _uniform, jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
def test_all_64_bit_draws_are_those_of_jax_random(draw: Draw) -> None:
    with jax.enable_x64(True):
        _assert_same(_fixed((333, 31), np.float64), draw, jax.random.key(1))
        _assert_same(_fixed((333, 31), np.float32), draw, jax.random.key(1))
        _assert_same(_fixed((333, 31), np.complex128), _normal, jax.random.key(1))


def test_a_narrowed_dtype_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="float64"):
        draws = random.normal(jax.random.key(0), (19, 17), np.float64)
    assert draws.dtype == np.float32


def _scaled(draw: Draw) -> Callable[..., Any]:
    return lambda key: draw(key, (257, 129), np.float32) * 0.01


def _affine(draw: Draw) -> Callable[..., Any]:
    return lambda key: draw(key, (257, 129), np.float32) * 0.37 + 0.1


def _consumed_thrice(draw: Draw) -> Callable[..., Any]:
    def program(key: jax.Array) -> Any:
        weights = draw(key, (257, 129), np.float32)
        return weights * 0.1, weights.T + 0.3, weights.sum(axis=0)

    return program


def _many(draw: Draw) -> Callable[..., Any]:
    return lambda key: [draw(k, (33 + 5 * i, 31), np.float32) for i, k in enumerate(jax.random.split(key, 4))]


@pytest.mark.parametrize(
    ("program", "draw"),
    [
        (_scaled, _normal),
        (_affine, _uniform),
        (_affine, _truncated_normal),
        (_consumed_thrice, _normal),
        *(
            pytest.param(program, draw, marks=pytest.mark.slow)
            for program in (_scaled, _affine, _consumed_thrice, _many)
            for draw in DRAWS
        ),
    ],
)
def test_programs_that_draw_return_the_same(program: Callable[..., Any], draw: Draw) -> None:
    # XLA folds the constants of a draw into those of its consumers, and fuses as it sees fit.
    _assert_same(lambda draw: jax.jit(program(draw)), draw, jax.random.key(2))


def test_vmap_over_keys_and_bounds() -> None:
    keys, bounds = jax.random.split(jax.random.key(3), 3), jnp.asarray([0.5, 1.0, 2.0])

    def program(draw: Draw) -> Callable[..., Any]:
        return jax.vmap(lambda key, bound: draw(key, bound))

    def draw(module: Any, key: jax.Array, bound: jax.Array) -> jax.Array:
        return module.uniform(key, (33, 31), np.float32, -bound, bound)

    _assert_same(program, draw, keys, bounds)
    together = program(functools.partial(draw, random))(keys, bounds)
    for key, bound, draws in zip(keys, bounds, together, strict=True):
        np.testing.assert_array_equal(draws, draw(random, key, bound))


def test_scan_over_keys() -> None:
    keys = jax.random.split(jax.random.key(4), 3)
    _assert_same(lambda draw: lambda keys: jax.lax.map(_fixed((33, 31), "float32")(draw), keys), _uniform, keys)


def test_shard_map_over_keys() -> None:
    mesh = jax.make_mesh((1,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("seeds")

    def program(draw: Draw) -> Callable[..., Any]:
        local = jax.vmap(_fixed((33, 31), np.float32)(draw))
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))

    _assert_same(program, _uniform, jax.random.split(jax.random.key(5), 2))


@pytest.mark.slow
def test_the_derivative_by_a_bound() -> None:
    def program(draw: Draw) -> Callable[..., Any]:
        return jax.grad(lambda bound: draw(bound).sum())

    def draw(module: Any, bound: jax.Array) -> jax.Array:
        return module.truncated_normal(jax.random.key(6), -bound, bound, (33, 31), np.float32)

    _assert_same(program, draw, jnp.asarray(1.5))


def test_arrays_as_bounds_go_to_jax_random() -> None:
    _assert_same(
        lambda draw: draw,
        lambda module, key, low: module.uniform(key, (4, 300), np.float32, low, 9.0),
        jax.random.key(7),
        jnp.arange(4.0)[:, None],
    )


def test_raw_keys() -> None:
    _assert_same(_fixed((33, 31), np.float32), _uniform, jax.random.PRNGKey(8))
    _assert_same(_fixed((33, 31), np.complex64), _normal, jax.random.PRNGKey(8))


def test_keys_of_other_generators() -> None:
    _assert_same(_fixed((33, 31), np.float32), _uniform, jax.random.key(9, impl="rbg"))
    with jax.default_prng_impl("unsafe_rbg"):
        _assert_same(_fixed((33, 31), np.float32), _uniform, jax.random.PRNGKey(9))


def test_the_partitionable_flag_is_obeyed_after_a_compilation_without_it() -> None:
    key = jax.random.key(10)
    before = random.uniform(key, (33, 31), np.float32, -0.3, 0.7)
    with jax.threefry_partitionable(False):
        _assert_same(_fixed((33, 31), np.float32), _uniform, key)
        assert not np.array_equal(before, random.uniform(key, (33, 31), np.float32, -0.3, 0.7))
    np.testing.assert_array_equal(before, random.uniform(key, (33, 31), np.float32, -0.3, 0.7))


def test_without_jit() -> None:
    with jax.disable_jit():
        _assert_same(_fixed((33, 31), np.float32), _uniform, jax.random.key(11))


def test_errors_are_those_of_jax_random() -> None:
    key = jax.random.key(0)
    for wrong in ((jax.random.split(key), "float32"), (key, "int32"), (np.zeros(2, np.float32), "float32")):
        with pytest.raises((TypeError, ValueError)) as theirs:
            _normal(jax.random, wrong[0], (33, 31), wrong[1])
        with pytest.raises(theirs.type) as ours:
            _normal(random, wrong[0], (33, 31), wrong[1])
        assert str(ours.value) == str(theirs.value)


def test_the_hash_is_threefry() -> None:
    # The known answers that accompany the paper, for counter and key all zeros; and one of our own counters.
    x, y = threefry2x32(jnp.zeros(2, np.uint32), ())
    assert (int(x), int(y)) == (0x6B200159, 0x99BA4EFE)
    x, y = threefry2x32(jnp.asarray([3, 5], np.uint32), (2, 3, 4))
    expected = jax.random.bits(jax.random.wrap_key_data(jnp.asarray([3, 5], np.uint32)), (24,), np.uint32)
    np.testing.assert_array_equal((x ^ y).reshape(-1), expected)


def test_numpy_computes_the_same_words() -> None:
    key = jax.random.wrap_key_data(jnp.asarray([3, 0xFFFFFFFF], np.uint32))
    words = np.asarray(jax.random.key_data(key))
    np.testing.assert_array_equal(first_words(words, 9, 32), jax.random.bits(key, (9,), np.uint32))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(first_words(words, 9, 64), jax.random.bits(key, (9,), np.uint64))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64])
def test_a_jax_with_other_words_gets_its_own_draws(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of another JAX, another hash here: what is drawn must not depend on it.
    key = jax.random.key(12)
    with jax.enable_x64(np.finfo(dtype).bits == 64):
        assert random._has_fast_draw(key, (33, 31), dtype)
        monkeypatch.setattr(_threefry, "_ROTATIONS", ((13, 15, 26, 6), (17, 29, 16, 23)))
        random._has_words_of_jax.cache_clear()
        jax.clear_caches()
        try:
            assert not random._has_fast_draw(key, (33, 31), dtype)
            _assert_same(_fixed((33, 31), dtype), _normal, key)
        finally:
            random._has_words_of_jax.cache_clear()
            jax.clear_caches()


def test_what_jax_draws_is_compared_in_the_midst_of_a_trace_too() -> None:
    random._has_words_of_jax.cache_clear()
    jax.clear_caches()
    with jax.threefry_partitionable(True):
        draw = jax.jit(jax.vmap(_fixed((33, 31), np.float32)(functools.partial(_uniform, random))))
        text = draw.lower(jax.random.split(jax.random.key(13), 2)).as_text()
    assert "optimization_barrier" in text  # the fast draw's


def test_the_platform_is_chosen_when_the_program_is_lowered() -> None:
    draw = jax.jit(_fixed((33, 31), np.float32)(functools.partial(_uniform, random)))
    traced, key = draw.trace(jax.random.key(0)), jax.random.PRNGKey(0)
    for platform, barriers in (("cpu", 1), ("cuda", 0), ("tpu", 0)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert program.count("optimization_barrier") == barriers
    for_both = jax.export.export(draw, platforms=("cpu", "cuda"))(key)
    np.testing.assert_array_equal(for_both.call(key), draw(key))


def _compile_for_cpu(program: Callable[..., Any]) -> Any:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.jit(program).lower(jax.random.key(0)).compile()


def test_a_draw_needs_no_memory_beyond_its_output() -> None:
    memory = _compile_for_cpu(lambda key: random.normal(key, (257, 129), np.float32) * 0.1).memory_analysis()
    assert memory.temp_size_in_bytes < 0.01 * memory.output_size_in_bytes


def test_the_hash_is_computed_once_for_all_consumers() -> None:
    rounds = 20
    program = _consumed_thrice(functools.partial(_normal, random))
    assert _compile_for_cpu(program).as_text().count(" shift-left(") == rounds


@pytest.mark.slow
@pytest.mark.parametrize("transform", [lambda program: program, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("draw", [*DRAWS, _unit_uniform])
@pytest.mark.parametrize("shape", [(2, 100_003), (100_003, 2), (7,) * 6, (1, 3, 333, 1), (3000, 1000)], ids=str)
def test_large_draws_are_those_of_jax_random(draw: Draw, shape: tuple[int, ...], transform: Callable[..., Any]) -> None:
    def program(draw: Draw) -> Callable[..., Any]:
        return transform(lambda key: (lambda weights: (weights, weights * 0.3))(draw(key, shape, np.float32)))

    _assert_same(program, draw, jax.random.key(1))


@pytest.mark.slow
def test_eight_devices_draw_their_own_parts() -> None:
    program = """
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from jaxinit._arrays import random

        key, shape = jax.random.key(0), (1024, 512)
        mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        for spec in (PartitionSpec("x"), PartitionSpec(None, "x")):
            draw = jax.jit(lambda key: random.normal(key, shape, np.float32) * 0.1,
                           out_shardings=NamedSharding(mesh, spec))
            compiled = draw.lower(key).compile()
            text, memory = compiled.as_text(), compiled.memory_analysis()
            for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
                assert collective not in text, collective
            assert memory.temp_size_in_bytes < 0.01 * memory.output_size_in_bytes
            expected = jax.jit(lambda key: jax.random.normal(key, shape, np.float32) * 0.1)(key)
            np.testing.assert_array_equal(draw(key), expected)
    """
    devices = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
