"""Bad input: what was expected, what came, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit

WHEN_MADE = [
    (lambda: jaxinit.normal(-1.0), ValueError, "stddev must be a finite number, zero or more, got -1"),
    (lambda: jaxinit.normal(float("nan")), ValueError, "stddev must be a finite number, zero or more, got nan"),
    (lambda: jaxinit.normal("0.1"), TypeError, "stddev must be a real number, got '0.1'"),
    (lambda: jaxinit.normal(True), TypeError, "stddev must be a real number, got True"),
    (lambda: jaxinit.normal(jnp.ones(3)), TypeError, "floating JAX scalar"),
    (lambda: jaxinit.normal(jnp.float32(-1)), ValueError, "stddev must be"),
    (lambda: jaxinit.normal(dtype="float31"), TypeError, "dtype must be a dtype such as 'float32'"),
    (lambda: jaxinit.uniform(-0.1), ValueError, "scale must be"),
    (lambda: jaxinit.truncated_normal(1.0, None, 2.0, -2.0), ValueError, "lower must be below upper"),
    (lambda: jaxinit.variance_scaling(-1.0, "fan_in", "normal"), ValueError, "scale must be"),
    (lambda: jaxinit.variance_scaling(1.0, "fan", "normal"), ValueError, "mode must be one of 'fan_in'"),
    (lambda: jaxinit.variance_scaling(1.0, "fan_in", "cauchy"), ValueError, "distribution must be one of"),
    (lambda: jaxinit.he_normal(in_axis="0"), TypeError, "in_axis must be an integer or a sequence"),
    (lambda: jaxinit.he_normal(in_axis=1.5), TypeError, "in_axis must be an integer or a sequence"),
    (lambda: jaxinit.he_normal(feature_group_count=0), ValueError, "feature_group_count must be 1 or more"),
    (lambda: jaxinit.he_normal(transpose=1), TypeError, "transpose must be True or False"),
    (lambda: jaxinit.identity(float("inf")), ValueError, "scale must be a finite number"),
    (lambda: jaxinit.dirac(0), ValueError, "groups must be 1 or more"),
    (lambda: jaxinit.sparse(0), ValueError, "num_nonzero must be 1 or more"),
    (lambda: jaxinit.sparse(2.5), TypeError, "num_nonzero must be an integer"),
    (lambda: jaxinit.random_walk("tanh"), ValueError, "needs depth"),
    (lambda: jaxinit.random_walk("tan"), ValueError, "no activation is called 'tan'"),
    (lambda: jaxinit.random_walk(jax.nn.softmax), ValueError, "not elementwise"),
    (lambda: jaxinit.siren(omega=0.0), ValueError, "omega must be a positive finite number"),
    (lambda: jaxinit.siren(first=1), TypeError, "first must be True or False"),
    (lambda: jaxinit.hippo_legs("C"), ValueError, "matrix must be one of 'A', 'B'"),
    (lambda: jaxinit.lstm_bias(gates="iigo"), ValueError, "gates must name each gate"),
    (lambda: jaxinit.lstm_bias(gates="igo"), ValueError, "must contain the forget gate"),
    (lambda: jaxinit.chrono(jnp.float32(-5)), ValueError, "2 or more, got -5"),
    (lambda: jaxinit.normal(10**400), ValueError, "stddev must be a finite number"),
    (lambda: jaxinit.chrono(1.5), ValueError, "max_timescale must be a finite number, 2 or more"),
    (lambda: jaxinit.constant("one"), TypeError, "value must be a number"),
    (lambda: jaxinit.orthogonal("tan"), ValueError, "no activation is called 'tan'"),
    (lambda: jaxinit.orthogonal(float("nan")), ValueError, "scale must be a finite number"),
    (lambda: jaxinit.orthogonal(column_axis=(0, 1)), TypeError, "column_axis must be an integer"),
    (lambda: jaxinit.delta_orthogonal(column_axis=0), ValueError, "column_axis must be -1 or -2"),
    (lambda: jaxinit.delta_orthogonal(centre="middle"), ValueError, "centre must be one of 'lower', 'upper'"),
    (lambda: jaxinit.looks_linear(form="middle"), ValueError, "form must be one of"),
    (lambda: jaxinit.scaled(jaxinit.he_normal, 2.0), TypeError, "call it first"),
    (lambda: jaxinit.scaled(jaxinit.he_normal(), float("nan")), ValueError, "factor must be"),
    (lambda: jaxinit.blocked(jaxinit.he_normal(), -1, 0), ValueError, "blocks must be 1 or more"),
    (lambda: jaxinit.blocked(jaxinit.he_normal(), -1, ()), ValueError, "blocks must hold one size"),
    (lambda: jaxinit.with_partitioning(jaxinit.he_normal(), "model"), TypeError, "names must be a sequence"),
    (lambda: jaxinit.with_partitioning(jaxinit.he_normal(), (3,)), TypeError, "names must hold names"),
    (lambda: jaxinit.scaled(jaxinit.with_partitioning(jaxinit.zeros, ("x",)), 2.0), TypeError, "must be outermost"),
]


@pytest.mark.parametrize(("make", "error", "message"), WHEN_MADE, ids=[row[2] for row in WHEN_MADE])
def test_bad_hyperparameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


KEY = jax.random.key(0)
WHEN_CALLED = [
    (
        lambda: jaxinit.he_normal()(KEY, (3,)),
        ValueError,
        r"mean nothing for the shape \(3,\).*For a bias use zeros_init",
    ),
    (lambda: jaxinit.he_normal()(KEY, ()), ValueError, "mean nothing for the shape"),
    (lambda: jaxinit.he_normal()(KEY, 5), TypeError, r"shape must be a sequence.*write \(n,\)"),
    (lambda: jaxinit.he_normal()(KEY, (2.5, 2)), TypeError, "shape must be a sequence of integers"),
    (lambda: jaxinit.he_normal()(KEY, (3, -3)), ValueError, "no negative entries"),
    (lambda: jaxinit.he_normal()(KEY, (3, 3), jnp.int32), TypeError, "floating or complex numbers, got dtype int32"),
    (lambda: jaxinit.he_normal()(KEY, (3, 3), jnp.float8_e8m0fnu), TypeError, "got dtype float8_e8m0fnu"),
    (lambda: jaxinit.uniform()(KEY, (3,), jnp.complex64), TypeError, "floating numbers, got dtype complex64"),
    (lambda: jaxinit.he_normal()(0, (3, 3)), TypeError, "takes a key such as jax.random.key"),
    (lambda: jaxinit.he_normal()(None, (3, 3)), TypeError, "takes a key such as jax.random.key"),
    (lambda: jaxinit.he_normal()(jnp.ones(2), (3, 3)), TypeError, r"got float32\[2\]"),
    (lambda: jaxinit.he_normal()(jax.random.split(KEY), (3, 3)), TypeError, "use jax.vmap over the keys"),
    (lambda: jaxinit.he_normal()(KEY, (3, 3), out_sharding="x"), TypeError, "out_sharding must be"),
    (lambda: jaxinit.he_normal(0, 0)(KEY, (3, 3, 3)), ValueError, "must name different axes"),
    (lambda: jaxinit.he_normal(batch_axis=-1)(KEY, (3, 3)), ValueError, "must name different axes"),
    (lambda: jaxinit.he_normal(in_axis=5)(KEY, (3, 3)), ValueError, "in_axis=5 is out of range"),
    (lambda: jaxinit.he_normal(in_axis=(0, 0), out_axis=1)(KEY, (3, 3)), ValueError, "twice"),
    (lambda: jaxinit.he_normal(feature_group_count=2)(KEY, (3, 3)), ValueError, "must divide the 3 features"),
    (lambda: jaxinit.he_normal(lhs_dilation=(2, 2))(KEY, (3, 3, 3)), ValueError, "one for each of the 1"),
    (lambda: jaxinit.identity()(KEY, (3,)), ValueError, "of 2 dimensions or more"),
    (lambda: jaxinit.dirac()(KEY, (3, 3)), ValueError, "one to three spatial axes"),
    (lambda: jaxinit.dirac(2)(KEY, (3, 3, 3)), ValueError, "groups must divide the output features"),
    (lambda: jaxinit.sparse(15)(KEY, (4, 4)), ValueError, "exceeds the 4 inputs of a unit"),
    (lambda: jaxinit.hippo_legs()(KEY, (3, 4)), ValueError, "fills square matrices"),
    (lambda: jaxinit.lstm_bias()(KEY, (6,)), ValueError, "fuses 4 gates, which must divide"),
    (lambda: jaxinit.constant([1.0, 2.0])(KEY, (3,)), ValueError, "does not broadcast"),
    (lambda: jaxinit.blocked(jaxinit.normal(), -1, 4)(KEY, (3, 6)), ValueError, "does not fill axis -1"),
    (lambda: jaxinit.blocked(jaxinit.normal(), 2, 2)(KEY, (3, 6)), ValueError, "axis=2 is out of range"),
    (lambda: jaxinit.orthogonal()(KEY, (3,)), ValueError, "of 2 dimensions or more"),
    (lambda: jaxinit.orthogonal(column_axis=3)(KEY, (3, 3)), ValueError, "column_axis=3 is out of range"),
    (lambda: jaxinit.orthogonal(batch_axis=-1)(KEY, (3, 3)), ValueError, "must differ"),
    (lambda: jaxinit.orthogonal(batch_axis=0)(KEY, (3, 3)), ValueError, "needs two axes beside batch_axis=0"),
    (lambda: jaxinit.unitary()(KEY, (3, 3), jnp.float32), TypeError, "makes complex numbers, got dtype float32"),
    (lambda: jaxinit.delta_orthogonal()(KEY, (3, 3)), ValueError, "one to three spatial axes"),
    (lambda: jaxinit.delta_orthogonal()(KEY, (4, 3, 3)), ValueError, "which a kernel of even size has not"),
    (lambda: jaxinit.delta_orthogonal(groups=2)(KEY, (3, 3, 3)), ValueError, "must divide the output features"),
    (lambda: jaxinit.scaled_uniform_orthogonal()(KEY, (2, 3, 3)), ValueError, "which a kernel of even size has not"),
    (lambda: jaxinit.looks_linear()(KEY, (4, 5)), ValueError, "must be even: got 4 inputs and 5 outputs"),
    (lambda: jaxinit.orthonormalize(jnp.ones(3)), ValueError, "mean nothing"),
    (lambda: jaxinit.orthonormalize(jnp.ones((3, 3), int)), TypeError, "expects a floating or complex weight"),
    (lambda: jaxinit.orthonormalize(jnp.ones((3, 3, 3)), 0, 0), ValueError, "must name different axes"),
    (lambda: jaxinit.fans((3,)), ValueError, "mean nothing"),
    (lambda: jaxinit.einsum_fans("ab,bc", (2, 3)), ValueError, "must be an einsum with its output"),
    (lambda: jaxinit.einsum_fans("ab,bc->ac", (2, 3, 4)), ValueError, "must name each of its axes once"),
    (lambda: jaxinit.einsum_fans("ab,bb->ab", (3, 3)), ValueError, "must name each of its axes once"),
    (lambda: jaxinit.einsum_fans("ab,bc->ac", (2, 3), operand=2), ValueError, "operand=2 is out of range"),
    (lambda: jaxinit.einsum_axes("...a,...ab->...b"), ValueError, "must name every axis"),
    (lambda: jaxinit.gain("gulu"), ValueError, "no activation is called 'gulu'"),
    (lambda: jaxinit.gain(jax.nn.softmax), ValueError, "is not elementwise"),
    (lambda: jaxinit.gain(jnp.cumsum), ValueError, "is not elementwise"),
    (lambda: jaxinit.gain(jnp.sort), ValueError, "is not elementwise"),
    (lambda: jaxinit.gain(lambda x: jax.random.normal(KEY, x.shape)), ValueError, "is not elementwise"),
    (lambda: jaxinit.gain(lambda x: jnp.exp(1j * x)), ValueError, "returns complex numbers"),
    (lambda: jaxinit.gain(lambda x: 1 / x), ValueError, "has no gain: its second moment .* is inf"),
    (lambda: jaxinit.gain(lambda x: jnp.exp(x * x)), ValueError, "has no gain: its second moment .* is inf"),
    (lambda: jaxinit.gain("tanh", 0.2), ValueError, "cannot be evaluated as a real function of one array"),
    (lambda: jaxinit.critical(np.tanh), ValueError, "must be written with jax.numpy"),
    (lambda: jaxinit.critical("tanh", "a"), TypeError, "bias_variance must be a real number"),
    (lambda: jaxinit.einsum_fans("ab,bc->ac->", (3, 4)), ValueError, "must be an einsum"),
    (lambda: jaxinit.einsum_fans("a....,ab->b", (3, 4)), ValueError, "must be an einsum"),
    (lambda: jaxinit.einsum_fans("ab,bc->acc", (3, 4)), ValueError, "must be an einsum"),
    (lambda: jaxinit.einsum_fans("ab,bc->ad", (3, 4)), ValueError, "must be an einsum"),
    (lambda: jaxinit.einsum_fans(None, (3, 4)), ValueError, "must be an einsum"),
    (lambda: jaxinit.identity(1e39)(KEY, (2, 2)), ValueError, "1e[+]39 does not fit into float32"),
    (lambda: jaxinit.gain(jnp.sum), ValueError, "is not elementwise"),
    (lambda: jaxinit.gain(jnp.zeros_like), ValueError, "has no gain"),
    (lambda: jaxinit.gain(3), TypeError, "activation must be a name"),
    (lambda: jaxinit.gain("gelu", convention="torch"), ValueError, "PyTorch's table has no gain"),
    (lambda: jaxinit.gain("gelu", convention="keras"), ValueError, "convention must be"),
    (lambda: jaxinit.gain("elu", jnp.float32(1.0)), TypeError, "param must be a number"),
    (lambda: jaxinit.critical("tanh", -1.0), ValueError, "bias_variance must be a finite number"),
    (lambda: jaxinit.critical("relu", 0.1), ValueError, "has no stable critical point"),
]


@pytest.mark.parametrize(("call", "error", "message"), WHEN_CALLED, ids=[row[2] for row in WHEN_CALLED])
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_partition_spec_needs_a_mesh():
    with pytest.raises(ValueError, match=r"enter jax\.set_mesh"):
        jaxinit.he_normal()(KEY, (8, 8), out_sharding=jax.sharding.PartitionSpec("x"))


def test_nothing_overflows_in_small_floats():
    for dtype in (jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2):
        assert np.isfinite(jaxinit.normal(1e6)(KEY, (100,), dtype).astype(jnp.float32)).all()
    assert (jaxinit.normal(0.0)(KEY, (10,)) == 0).all()
