"""Meshes with explicit axes (sharding in types): eight devices return what one returns, sharded as the input was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit

P = PartitionSpec
KEYS = jax.random.split(jax.random.key(0), 5)
PARAMS = {
    "blocks": {
        "up": jax.random.normal(KEYS[0], (2, 8, 16)),
        "bias": 0.3 * jax.random.normal(KEYS[1], (2, 16)),
        "down": jax.random.normal(KEYS[2], (2, 16, 8)),
    },
    "out": jax.random.normal(KEYS[3], (8, 4)),
}
SPECS = {
    "blocks": {"up": P(None, None, "model"), "bias": P(None, "model"), "down": P(None, "model", None)},
    "out": P("data", None),
}
X = jax.random.normal(KEYS[4], (64, 8))


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def one_device(params, x):
    def block(x, p):
        return jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"], None

    return jax.lax.scan(block, x, params["blocks"])[0] @ params["out"]


def eight_devices(params, x):
    def block(x, p):
        h = jnp.tanh(jnp.matmul(x, p["up"], out_sharding=P("data", "model")) + p["bias"][None])
        return jnp.matmul(h, p["down"], out_sharding=P("data", None)), None

    return jax.lax.scan(block, x, params["blocks"])[0] @ jax.sharding.reshard(params["out"], P())


def sharded(mesh):
    params = jax.tree.map(lambda w, spec: jax.device_put(w, NamedSharding(mesh, spec)), PARAMS, SPECS)
    return params, jax.device_put(X, NamedSharding(mesh, P("data", None)))


def assert_equal(found, expected):
    for path, a in jax.tree_util.tree_leaves_with_path(found):
        b = np.asarray(dict(jax.tree_util.tree_leaves_with_path(expected))[path])
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5, err_msg=str(path))


def assert_sharded_as_before(found):
    jax.tree.map(lambda w, spec: np.testing.assert_equal(tuple(w.sharding.spec), tuple(spec)), found, SPECS)


@pytest.mark.parametrize("spec", [P(None, "model"), P("data", "model"), P(("data", "model"), None), P()])
def test_orthonormalize_of_a_sharded_weight(mesh, spec):
    w = jax.random.normal(KEYS[0], (16, 32))
    q = jaxinit.orthonormalize(jax.device_put(w, NamedSharding(mesh, spec)))
    np.testing.assert_allclose(np.asarray(q), np.asarray(jaxinit.orthonormalize(w)), atol=1e-6)
    assert tuple(q.sharding.spec) == (*spec, None, None)[:2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "scan", "orthonormalize": False},
        {"statistic": "channel", "center": True, "orthonormalize": False},
    ],
)
def test_lsuv(mesh, options):
    params, x = sharded(mesh)
    new = jaxinit.lsuv(params, eight_devices, x, **options)
    assert_equal(new, jaxinit.lsuv(PARAMS, one_device, X, **options))
    assert_sharded_as_before(new)


def test_trace_layers(mesh):
    params, x = sharded(mesh)
    expected = jaxinit.trace_layers(PARAMS, one_device, X).to_dict()
    assert jaxinit.trace_layers(params, eight_devices, x).to_dict() == expected
    shapes = jax.tree.map(jax.typeof, (params, x))
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), shapes)
    assert jaxinit.trace_layers(structs[0], eight_devices, structs[1]).to_dict() == expected


def test_initialize(mesh):
    params, x = sharded(mesh)
    new = jaxinit.initialize(KEYS[0], params, eight_devices, x)
    assert_equal(new, jaxinit.initialize(KEYS[0], PARAMS, one_device, X))
    assert_sharded_as_before(new)


def test_diagnose(mesh):
    params, x = sharded(mesh)
    found, expected = jaxinit.diagnose(params, eight_devices, x), jaxinit.diagnose(PARAMS, one_device, X)
    for name in ("pre_std", "post_mean", "saturated", "similarity", "effective_rank", "gradient_std", "update_ratio"):
        np.testing.assert_allclose(np.asarray(getattr(found, name)), getattr(expected, name), rtol=1e-3, err_msg=name)
    # The spectrum is that of the whole batch here, since this program takes no single sample; one probe estimates it.
    values = jnp.linalg.svd(jax.vmap(jax.jacobian(lambda x: one_device(PARAMS, x[None])[0]))(X), compute_uv=False)
    assert 0.5 < float(found.jacobian_mean_square) / float(jnp.mean(values**2)) < 2
