"""Every initializer under jit, vmap, sharding and export, in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.table import IDS, INITIALIZERS
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit

every_initializer = pytest.mark.parametrize(("init", "shape"), INITIALIZERS, ids=IDS)


@every_initializer
def test_jit_and_vmap_agree_with_eager(init, shape, key):
    keys = jax.random.split(key, 2)
    eager = np.stack([init(k, shape) for k in keys])
    assert eager.shape == (2, *shape)
    mapped = jax.jit(jax.vmap(lambda k: init(k, shape)))(keys)
    np.testing.assert_allclose(mapped, eager, rtol=3e-7, atol=0)
    assert np.isfinite(eager).all()
    assert (eager[0] != eager[1]).any() == init.random


@every_initializer
def test_dtypes_shapes_and_raw_keys(init, shape, key):
    reference = init(key, shape, jnp.float32)
    np.testing.assert_array_equal(init(jax.random.key_data(key), list(shape), "float32"), reference)
    numpy_shape = np.array(shape)
    small = init(key, numpy_shape, jnp.bfloat16)
    assert small.dtype == jnp.bfloat16
    np.testing.assert_array_equal(small, reference.astype(jnp.bfloat16))
    assert jax.eval_shape(lambda: with_dtype(init, jnp.float16)(key, shape)).dtype == jnp.float16
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: init(key, shape)).dtype == (init.dtype or jnp.float64)
        assert jax.eval_shape(lambda: init(key, shape, jnp.float64)).dtype == jnp.float64


def with_dtype(init, dtype):
    """The initializer with another default dtype; a combinator has that of the initializer it wraps."""
    config = init.to_config()
    inner = config
    while "init" in inner:
        inner = inner["init"]
    inner["dtype"] = jnp.dtype(dtype).name
    return jaxinit.from_config(config)


@every_initializer
def test_zero_size_is_an_empty_array(init, shape, key):
    assert init(key, (0, *shape[1:])).shape == (0, *shape[1:])


MESHES = [(*row, AxisType.Explicit if i % 2 else AxisType.Auto) for i, row in enumerate(INITIALIZERS)]


@pytest.mark.parametrize(("init", "shape", "axis_type"), MESHES, ids=IDS)
def test_born_sharded(init, shape, axis_type, key):
    """The requested sharding, on the result that one device returns; the kinds of mesh alternate."""
    axis = next((i for i, size in enumerate(shape) if size in (2, 4, 8)), None)
    spec = PartitionSpec(*("x" if i == axis else None for i in range(len(shape))))
    size = 1 if axis is None else shape[axis]
    mesh = jax.make_mesh((size,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:size])
    with jax.set_mesh(mesh):
        drawn = init(key, shape, out_sharding=spec)
        traced = jax.jit(lambda k: init(k, shape, out_sharding=spec)).lower(key)
    assert drawn.sharding.is_equivalent_to(NamedSharding(mesh, spec), len(shape))
    # Devices may add in another order the products of which orthogonal matrices are made.
    expected = init(key, shape)
    np.testing.assert_allclose(drawn, expected, rtol=3e-7, atol=2e-6 * float(jnp.max(jnp.abs(expected))))
    assert traced.out_info.shape == shape


def test_sharded_without_a_mesh_in_context(key):
    for axis_type in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
        sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
        drawn = jaxinit.he_normal()(key, (4, 16), jnp.bfloat16, sharding)
        assert drawn.sharding.is_equivalent_to(sharding, 2)
    jitted = jax.jit(lambda k: jaxinit.he_normal()(k, (4, 16), jnp.bfloat16, sharding))(key)
    np.testing.assert_array_equal(jitted, drawn)


@every_initializer
def test_lowers_for_gpu_and_tpu(init, shape, key):
    raw = jax.random.key_data(key)
    exported = jax.export.export(jax.jit(lambda k: init(k, shape)), platforms=["cuda", "tpu"])(raw)
    assert exported.platforms == ("cuda", "tpu")


def test_each_device_makes_only_its_own_shard(key):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    draw = jax.jit(lambda k: jaxinit.he_uniform()(k, (1024, 512)), out_shardings=sharding)
    compiled = draw.lower(key).compile()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes == 1024 * 512 * 4 // 8
    assert memory.temp_size_in_bytes <= 2 * memory.output_size_in_bytes
    text = compiled.as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))


def test_blocks_of_an_orthogonal_weight_are_made_where_they_lie(key):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))

    def compiled(init):
        return jax.jit(lambda k: init(k, (128, 128)), out_shardings=sharding).lower(key).compile()

    blocks, whole = compiled(jaxinit.blocked(jaxinit.orthogonal(), 1, 8)), compiled(jaxinit.orthogonal())
    text = blocks.as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))
    assert "f32[128,128]" not in text
    assert blocks.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes / 4
    drawn = np.asarray(blocks(key))
    for block in np.split(drawn, 8, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(16), atol=1e-5)


def test_inside_scan_and_under_a_traced_hyperparameter(key):
    def step(carry, k):
        return carry, jaxinit.normal(carry)(k, (4,))

    _, drawn = jax.lax.scan(step, jnp.float32(2.0), jax.random.split(key, 3))
    np.testing.assert_allclose(drawn[1], jaxinit.normal(2.0)(jax.random.split(key, 3)[1], (4,)), rtol=1e-6)


def test_other_key_implementations(key):
    for impl in ("rbg", "unsafe_rbg"):
        typed = jax.random.key(0, impl=impl)
        expected = jax.nn.initializers.he_uniform()(typed, (4, 4))
        np.testing.assert_array_equal(jaxinit.he_uniform()(typed, (4, 4)), expected)
