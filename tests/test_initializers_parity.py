"""Where JAX is right, the numbers are JAX's to the last bit; where it is wrong, they differ as the table says."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit

theirs = jax.nn.initializers

MEMBERS = [
    f"{name}_{kind}" for name in ("glorot", "xavier", "lecun", "he", "kaiming") for kind in ("uniform", "normal")
]
SCALING = [(mode, d) for mode in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg") for d in ("uniform", "normal")]
PAIRS = [
    *[(getattr(jaxinit, name)(), getattr(theirs, name)()) for name in MEMBERS],
    *[(jaxinit.variance_scaling(1.7, *row), theirs.variance_scaling(1.7, *row)) for row in SCALING],
    (
        jaxinit.variance_scaling(0.3, "fan_avg", "truncated_normal"),
        theirs.variance_scaling(0.3, "fan_avg", "truncated_normal"),
    ),
    (jaxinit.normal(), theirs.normal()),
    (jaxinit.normal(5), theirs.normal(5)),
    (jaxinit.uniform(0.3), theirs.uniform(0.3)),
    (jaxinit.truncated_normal(0.02), theirs.truncated_normal(0.02)),
    (jaxinit.truncated_normal(0.5, None, -1.0, 3.0), theirs.truncated_normal(0.5, None, -1.0, 3.0)),
    (jaxinit.constant(0.3), theirs.constant(0.3)),
    (jaxinit.zeros, theirs.zeros),
    (jaxinit.ones, theirs.ones),
]
IDS = [repr(ours) for ours, _ in PAIRS]

DIFFERENCES = {
    "float16, bfloat16, float8": "drawn in float32 and rounded; JAX draws from 128 values, with a mean of -0.01",
    "complex truncated normal": "the variance is exact; JAX's is 1.9% too large",
    "zero-size shapes": "an empty array; JAX 0.10 divides by zero",
    "negative or NaN scales": "an error; JAX returns NaN",
    "overlapping axes": "an error but for lookup tables; JAX returns fractional fans",
    "orthogonal, delta_orthogonal": "another sampler with other numbers",
}
"""Every deliberate difference from JAX; each has a test, here or where it is named."""


@pytest.mark.parametrize(("ours", "jaxs"), PAIRS, ids=IDS)
def test_bits_are_those_of_jax(ours, jaxs):
    for shape in ((33, 17), (3, 3, 5, 1)):
        np.testing.assert_array_equal(ours(jax.random.key(3), shape), jaxs(jax.random.key(3), shape))
    np.testing.assert_array_equal(ours(jax.random.PRNGKey(5), (33, 17)), jaxs(jax.random.PRNGKey(5), (33, 17)))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_bits_are_those_of_jax_under_jit_and_vmap(make_key):
    """One jitted program of each side: one key and mapped keys, one name of each kind of draw."""
    rows = [row for row in PAIRS if repr(row[0]).split("(")[0] in ("he_uniform", "glorot_normal", "normal", "uniform")]

    def program(side):
        def draw(k):
            return [row[side](k, (8, 4), jnp.float32) for row in rows]

        return jax.jit(lambda keys: (draw(keys[0]), jax.vmap(draw)(keys)))

    keys = jax.vmap(make_key)(jnp.arange(4))
    chex.assert_trees_all_equal(program(0)(keys), program(1)(keys))


@pytest.mark.parametrize(("ours", "jaxs"), PAIRS, ids=IDS)
def test_bits_are_those_of_jax_in_double_precision(ours, jaxs, x64):
    key = jax.random.key(3)
    np.testing.assert_array_equal(ours(key, (33, 17)), jaxs(key, (33, 17)))


COMPLEX = [
    row for row in PAIRS if row[0].allowed != "real" and getattr(row[0], "distribution", "") != "truncated_normal"
]


@pytest.mark.parametrize(("ours", "jaxs"), COMPLEX, ids=[repr(row[0]) for row in COMPLEX])
def test_bits_are_those_of_jax_in_complex(ours, jaxs):
    key = jax.random.key(3)
    np.testing.assert_array_equal(ours(key, (33, 17), jnp.complex64), jaxs(key, (33, 17), jnp.complex64))


AXES = [
    ((4, 6, 8), {"in_axis": 0, "out_axis": 2}),
    ((4, 6, 8), {"in_axis": (0, 1), "out_axis": 2}),
    ((4, 6, 8), {"batch_axis": 0}),
    ((2, 4, 6, 8), {"batch_axis": (0, 1)}),
    ((10, 4), {"in_axis": -2, "out_axis": 0}),
    ((4, 6), {"in_axis": -1, "out_axis": -2}),
]


@pytest.mark.parametrize(("shape", "axes"), AXES)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
def test_axes_mean_what_they_mean_in_jax(shape, axes, mode, key):
    ours = jaxinit.variance_scaling(2.0, mode, "uniform", **axes)
    jaxs = theirs.variance_scaling(2.0, mode, "uniform", **axes)
    np.testing.assert_array_equal(ours(key, shape), jaxs(key, shape))


@pytest.mark.parametrize("name", ["he_uniform", "normal"])
def test_bits_are_those_of_jax_when_sharded(name, key):
    ours, jaxs = getattr(jaxinit, name)(), getattr(theirs, name)()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))

    def draw(init):
        return jax.jit(lambda k: init(k, (16, 4)), out_shardings=sharding)(key)

    np.testing.assert_array_equal(draw(ours), draw(jaxs))
    explicit = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        drawn = [jax.jit(lambda k, i=i: i(k, (16, 4), out_sharding=PartitionSpec("x")))(key) for i in (ours, jaxs)]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(
    "name",
    [
        *MEMBERS,
        "normal",
        "uniform",
        "truncated_normal",
        "variance_scaling",
        "constant",
        "orthogonal",
        "delta_orthogonal",
    ],
)
def test_signatures_are_those_of_jax(name):
    ours = list(inspect.signature(getattr(jaxinit, name)).parameters.values())
    for mine, jaxs in zip(ours, inspect.signature(getattr(theirs, name)).parameters.values(), strict=False):
        assert (mine.name, mine.default) == (jaxs.name, jaxs.default)
    extra = ours[len(inspect.signature(getattr(theirs, name)).parameters) :]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in extra)


def test_every_name_of_jax_exists():
    assert [n for n in dir(theirs) if not n.startswith("_") and not hasattr(jaxinit, n)] == []


def test_constants_ignore_the_key_and_take_integers():
    assert jaxinit.zeros(None, (2,), jnp.int32).dtype == jnp.int32
    assert jaxinit.constant(3)(None, (2,), int).tolist() == [3, 3]


@pytest.mark.parametrize("name", ["glorot_normal", "lecun_normal", "he_normal"])
def test_complex_truncated_variance_is_exact_where_jax_is_not(name):
    """400,000 draws: the mean of |w|²·fan is within 0.5% of its target (5 standard errors are 0.4%)."""
    shape, key = (400, 1000), jax.random.key(0)
    init = getattr(jaxinit, name)()
    variance = init.scale / (np.mean(init.fans(shape)) if init.mode == "fan_avg" else init.fans(shape).fan_in)
    ours = init(key, shape, jnp.complex64)
    jaxs = getattr(theirs, name)()(key, shape, jnp.complex64)
    assert abs(np.mean(np.abs(ours) ** 2) / variance - 1) < 0.005
    assert np.mean(np.abs(jaxs) ** 2) / variance > 1.015
    cut = np.abs(ours).max() / np.sqrt(variance)
    assert 1.9 < cut < 2 / np.sqrt(1 - 4 * np.exp(-4) / (1 - np.exp(-4))) + 1e-5


def test_float64_without_x64_warns_and_returns_float32(key):
    with pytest.warns(UserWarning, match="needs jax.config.update"):
        assert jaxinit.normal()(key, (2,), jnp.float64).dtype == jnp.float32
