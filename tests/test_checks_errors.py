"""Bad input: errors say what was expected, what was received and what to do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxinit
import jaxinit.linen
import jaxinit.nnx
from jaxinit import schemes
from jaxinit._initializers._base import INITIALIZERS

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
    (lambda: jaxinit.sparse(sparsity=1.5), ValueError, "sparsity must be a number from 0 to 1"),
    (lambda: jaxinit.sparse(3, sparsity=0.5), ValueError, "pass num_nonzero or sparsity, not both"),
    (lambda: jaxinit.stft("phase"), ValueError, "side must be one of 'real', 'imag'"),
    (lambda: jaxinit.stft("real", "square"), ValueError, "that scipy.signal.get_window knows"),
    (lambda: jaxinit.stft("real", [[1.0]]), TypeError, "a sequence of numbers"),
    (lambda: jaxinit.stft("real")(KEY, (8, 2, 5)), ValueError, "of shape .frame, 1, frequencies., got"),
    (lambda: jaxinit.stft("real", [1.0, 2.0])(KEY, (8, 1, 5)), ValueError, "the window has 2 values"),
    (lambda: jaxinit.random_walk("tanh"), ValueError, "needs depth"),
    (lambda: jaxinit.random_walk("tan"), ValueError, "no activation is called 'tan'"),
    (lambda: jaxinit.random_walk(jax.nn.softmax), ValueError, "not elementwise"),
    (lambda: jaxinit.siren(omega=0.0), ValueError, "omega must be a positive finite number"),
    (lambda: jaxinit.siren(first=1), TypeError, "first must be True or False"),
    (lambda: jaxinit.hippo_legs("C"), ValueError, "matrix must be one of 'A', 'B'"),
    (lambda: jaxinit.log_uniform(1.0, 0.1), ValueError, "low"),
    (lambda: jaxinit.log_uniform(0.0, 0.1), ValueError, "low must be a positive finite number"),
    (lambda: jaxinit.log_uniform(0.1, 1.0, "relu"), ValueError, "through must be one of"),
    (lambda: jaxinit.lru_ring(0.5, 1.5), ValueError, "r_max must be 1 or less"),
    (lambda: jaxinit.lru_ring(0.9, 0.5), ValueError, "r_min"),
    (lambda: jaxinit.rg_lru(0.0, 0.0), ValueError, "r_max must be above 0"),
    (lambda: jaxinit.s4d("legs"), ValueError, "variant must be one of"),
    (lambda: jaxinit.lstm_bias(gates="iigo"), ValueError, "gates must name each gate"),
    (lambda: jaxinit.lstm_bias(gates="igo"), ValueError, "must contain the forget gate"),
    (lambda: jaxinit.chrono(jnp.float32(-5)), ValueError, "2 or more, got -5"),
    (lambda: jaxinit.normal(10**400), ValueError, "stddev must be a finite number"),
    (lambda: jaxinit.chrono(1.5), ValueError, "max_timescale must be a finite number, 2 or more"),
    (lambda: jaxinit.constant("one"), TypeError, "value must be a number"),
    (lambda: jaxinit.constant((1, (2,))), TypeError, r"value must be a number or an array.*got .1, .2,.."),
    (lambda: jaxinit.normal(dtype={}), TypeError, "dtype must be a dtype.*got {}"),
    (lambda: jaxinit.he_normal(in_axis={}), TypeError, "in_axis must be an integer or a sequence.*got {}"),
    (lambda: jaxinit.blocked("he", -1, 2), TypeError, "init must be an initializer such as .* got 'he'"),
    (lambda: jaxinit.scaled(0.1, 2.0), TypeError, r"got 0.1; for a fixed value pass jaxinit.constant\(value\)"),
    (lambda: jaxinit.orthogonal("tan"), ValueError, "no activation is called 'tan'"),
    (lambda: jaxinit.orthogonal(float("nan")), ValueError, "scale must be a finite number"),
    (lambda: jaxinit.orthogonal(column_axis=(0, 1)), TypeError, "column_axis must be an integer"),
    (lambda: jaxinit.delta_orthogonal(column_axis=0), ValueError, "column_axis must be -1 or -2"),
    (lambda: jaxinit.delta_orthogonal(centre="middle"), ValueError, "centre must be one of 'lower', 'upper'"),
    (lambda: jaxinit.looks_linear(form="middle"), ValueError, "form must be one of"),
    (lambda: jaxinit.scaled(jaxinit.he_normal, 2.0), TypeError, "call it first"),
    (lambda: jaxinit.scaled(jaxinit.he_normal(), float("nan")), ValueError, "factor must be"),
    (lambda: jaxinit.blocked(jaxinit.he_normal(), -1, 0), ValueError, "blocks must be 1 or more"),
    (lambda: jaxinit.blocked(jaxinit.he_normal(), -1, ()), ValueError, "blocks must hold at least one size"),
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
        r"the shape \(3,\) has no fan-in and fan-out.*For a bias use zeros_init",
    ),
    (lambda: jaxinit.he_normal()(KEY, ()), ValueError, "has no fan-in and fan-out"),
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
    (lambda: jaxinit.s4d(part="A")(KEY, (4,)), ValueError, "needs a complex dtype, got float32"),
    (lambda: jaxinit.lstm_bias()(KEY, (6,)), ValueError, "fuses 4 gates, which must divide"),
    (lambda: jaxinit.constant([1.0, 2.0])(KEY, (3,)), ValueError, "does not broadcast"),
    (lambda: jaxinit.constant(1j)(KEY, (3,)), TypeError, "makes complex numbers, got dtype float32"),
    (
        lambda: jaxinit.scaled(jax.nn.initializers.he_normal, 2.0)(KEY, (3, 3)),
        TypeError,
        "is not an initializer but makes one",
    ),
    (lambda: jaxinit.scaled(lambda key: 0.0, 2.0)(KEY, (3, 3)), TypeError, "a function of .key, shape, dtype., got"),
    (lambda: jaxinit.scaled(lambda *_: 1.0, 2.0)(KEY, (3, 3)), ValueError, r"given, \(3, 3\), but .* of shape \(\)"),
    (lambda: jaxinit.blocked(jaxinit.normal(), -1, 4)(KEY, (3, 6)), ValueError, "does not fill axis -1"),
    (lambda: jaxinit.blocked(jaxinit.normal(), 2, 2)(KEY, (3, 6)), ValueError, "axis=2 is out of range"),
    (lambda: jaxinit.orthogonal()(KEY, (3,)), ValueError, "of 2 dimensions or more"),
    (lambda: jaxinit.orthogonal(column_axis=3)(KEY, (3, 3)), ValueError, "column_axis=3 is out of range"),
    (lambda: jaxinit.orthogonal(batch_axis=-1)(KEY, (3, 3)), ValueError, "must differ"),
    (lambda: jaxinit.orthogonal(batch_axis=0)(KEY, (3, 3)), ValueError, "needs two axes besides batch_axis=0"),
    (lambda: jaxinit.unitary()(KEY, (3, 3), jnp.float32), TypeError, "makes complex numbers, got dtype float32"),
    (lambda: jaxinit.delta_orthogonal()(KEY, (3, 3)), ValueError, "one to three spatial axes"),
    (lambda: jaxinit.delta_orthogonal(groups=2)(KEY, (3, 3, 3)), ValueError, "must divide the output features"),
    (lambda: jaxinit.looks_linear()(KEY, (4, 5)), ValueError, "must be even: got 4 inputs and 5 outputs"),
    (lambda: jaxinit.orthonormalize(jnp.ones(3)), ValueError, "has no fan-in and fan-out"),
    (lambda: jaxinit.orthonormalize(jnp.ones((3, 3), int)), TypeError, "expects a floating or complex weight"),
    (lambda: jaxinit.orthonormalize(jnp.ones((3, 3, 3)), 0, 0), ValueError, "must name different axes"),
    (lambda: jaxinit.fans((3,)), ValueError, "has no fan-in and fan-out"),
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
    (lambda: jaxinit.gain(lambda x: jax.lax.complex(x, x)), ValueError, "returns complex numbers"),
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


@pytest.mark.parametrize("draw", [(KEY, (3, 4), jnp.float32), (jax.random.PRNGKey(0), (3, 4))], ids=["typed", "raw"])
@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_factory_that_is_called_as_an_initializer_says_so(name, draw):
    factory = INITIALIZERS[name]
    own = factory.__name__  # of an alias, that of what it stands for
    with pytest.raises(TypeError, match=rf"{own} makes an initializer, .* call it first, as in {own}\(.*\)\(key, sh"):
        factory(*draw)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Dense(4, kernel_init=jaxinit.he_normal).init(KEY, jnp.ones((2, 3))),
        lambda: nnx.Linear(3, 4, kernel_init=jaxinit.normal, rngs=nnx.Rngs(0)),
        lambda: jax.jit(lambda key: jaxinit.orthogonal(key, (3, 3)))(KEY),
        lambda: jaxinit.truncated_normal(key=KEY, shape=(3, 4)),
    ],
    ids=["Linen", "NNX", "jit", "by name"],
)
def test_layers_that_are_given_a_factory_say_so(make):
    with pytest.raises(TypeError, match=r"call it first, as in .*\(\)\(key, shape\), or kernel_init="):
        make()


def test_the_numbers_of_a_raw_key_may_be_a_constant():
    numbers = np.array([3, 4], np.uint32)
    np.testing.assert_array_equal(jaxinit.constant(numbers, jnp.float32)(KEY, (2,)), [3, 4])


PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}
SHAPES = jax.eval_shape(lambda: PARAMS)
X = jnp.ones((5, 3))


def apply_fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None])


def initialized(*arguments, **options):
    return lambda: jaxinit.initialize(KEY, PARAMS, apply_fn, X, *arguments, **options)


def scaled_to(**options):
    return lambda: jaxinit.lsuv(PARAMS, apply_fn, X, **options)


LINEAR = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
WHOLE_MODELS = [
    (initialized(overrides=jaxinit.he_normal), TypeError, "overrides must be a mapping from path.*he_normal'>"),
    (initialized(overrides=jaxinit.he_normal()), TypeError, r"such as {'\*kernel': .*, got he_normal\(\)"),
    (initialized(overrides=0.1), TypeError, "overrides must be a mapping.*got 0.1"),
    (initialized(overrides="he_normal"), TypeError, "overrides must be a mapping.*got 'he_normal'"),
    (initialized(overrides={"w": jaxinit.he_normal}), TypeError, r"overrides\['w'\] must .* the class he_normal; call"),
    (initialized(overrides={"w": jnp.ones((3, 4))}), TypeError, r"got float32\[3, 4\]; for a fixed value pass"),
    (initialized(overrides={"w": "he_normal"}), TypeError, r"overrides\['w'\] must be an initializer.*'he_normal'"),
    (initialized(overrides={0: jaxinit.zeros}), TypeError, r"path patterns as strings, got 0; the leaves are"),
    (initialized(overrides={"w": jax.nn.initializers.he_normal}), TypeError, "is not an initializer but makes one"),
    (initialized(overrides={"b": lambda *_: jnp.ones(3)}), ValueError, r"given, \(4,\), but .* of shape \(3,\)"),
    (initialized(overrides=lambda path, layer: 0.1), TypeError, "what overrides returns for '.' must be an init"),
    (initialized(overrides=lambda path: None), TypeError, r"function of \(path, layer\), got <lambda>\(path\)"),
    (initialized(jaxinit.schemes.auto), TypeError, r"got <class '.*auto'>; call the class first: auto\(\)"),
    (initialized(jaxinit.he_normal()), TypeError, r"got he_normal\(\), an init.*overrides={'\*kernel': jaxinit.he_no"),
    (initialized(jaxinit.orthogonal), TypeError, r"overrides={'\*kernel': jaxinit.orthogonal\(\)}"),
    (initialized("he_normal"), ValueError, r"overrides={'\*kernel': jaxinit.he_normal\(\)}"),
    (initialized(jaxinit.lsuv), TypeError, "jaxinit.lsuv changes existing parameters, so call it with what"),
    (initialized("lsuv"), ValueError, "jaxinit.lsuv changes existing parameters"),
    (initialized(3), TypeError, "or a value of jaxinit.schemes, got 3$"),
    (initialized("mup"), schemes.MisfitError, r"pass jaxinit.schemes.mup\(base\), for instance with base = "),
    (initialized(schemes.mup()), schemes.MisfitError, "mup needs the parameters of a base model"),
    (
        lambda: jaxinit.initialize(PARAMS, KEY, apply_fn, X),
        TypeError,
        r"initialize\(key, params, apply_fn, batch\) takes a key .* first argument, got a dict of arrays",
    ),
    (lambda: jaxinit.initialize(0, PARAMS, apply_fn, X), TypeError, "takes a key such as .*, got 0"),
    (lambda: jaxinit.initialize(jax.random.split(KEY), PARAMS, apply_fn, X), TypeError, "use jax.vmap over the keys"),
    (lambda: jaxinit.diagnose(PARAMS, apply_fn, X, key=3), TypeError, r"jax.random.key\(0\) as key=, got 3"),
    (scaled_to(target="1"), TypeError, "target must be a real number, got '1'"),
    (scaled_to(target=None), TypeError, "target must be a real number, got None"),
    (scaled_to(target=float("inf")), ValueError, "target must be a positive finite number, got inf"),
    (scaled_to(target=["1"]), TypeError, r"target\[0\] must be a real number, got '1'"),
    (scaled_to(target={"w": 1j}), TypeError, r"target\['w'\] must be a real number, got 1j"),
    (scaled_to(target={0: 1.0}), TypeError, "target must hold path patterns as strings, got 0; the layers are"),
    (scaled_to(target=jnp.ones((2, 2))), TypeError, r"target must be a real number.*got float32\[2, 2\]"),
    (scaled_to(where=3), TypeError, r"where must be a path pattern such as '\*/kernel', a sequence.*got 3"),
    (scaled_to(where=[3]), TypeError, r"where must be a path pattern.*got \[3\]"),
    (scaled_to(where={"w": True}), TypeError, "where must be a path pattern.*got {'w': True}"),
    (scaled_to(where=lambda: True), TypeError, r"where must be a function of \(layer\), got <lambda>\(\)"),
    (scaled_to(where=lambda layer: False), ValueError, r"where chooses no layer.*the layers are \['w'\]"),
    (scaled_to(where=()), ValueError, "where chooses no layer"),
    (scaled_to(tolerance="1%"), TypeError, "tolerance must be a real number, got '1%'"),
    (scaled_to(max_attempts=1.5), TypeError, "max_attempts must be an integer, got 1.5"),
    (scaled_to(orthonormalize="no"), TypeError, "orthonormalize must be True or False, got 'no'"),
    (scaled_to(return_report="yes"), TypeError, "return_report must be True or False, got 'yes'"),
    (lambda: jaxinit.lsuv(SHAPES, apply_fn, X), TypeError, r"params/b is a ShapeDtypeStruct.*jax.jit\(...\).lower"),
    (lambda: jaxinit.diagnose(PARAMS, apply_fn, X, loss_fn=lambda y: 0.0), TypeError, r"of \(output, batch\), got <l"),
    (lambda: jaxinit.lsuv(apply_fn, PARAMS, X), TypeError, r"lsuv\(params, apply_fn, batch\) needs params made of arr"),
    (lambda: jaxinit.lsuv(nn.Dense(4), PARAMS, X), TypeError, "needs params, got a Dense module.*see jaxinit.linen"),
    (lambda: jaxinit.diagnose(LINEAR, X, X), TypeError, "needs params, got a Linear module; see jaxinit.nnx"),
    (lambda: jaxinit.trace_layers(nn.Dense(4), apply_fn, X), TypeError, "needs arrays as params, got a Dense module"),
    (lambda: jaxinit.recommend(nn.Dense(4)), TypeError, "needs params or an activation, got a Dense module"),
    (
        lambda: jaxinit.linen.initialize(KEY, nn.Dense(4), PARAMS | {"params": {}, "batch_stats": SHAPES}, X),
        ValueError,
        "the collection 'batch_stats' holds shapes.*name it in `mutable`",
    ),
    (
        lambda: jaxinit.linen.initialize(KEY, nn.Dense(4), X, PARAMS),
        ValueError,
        r"variables must be those of module.init, .* got float32\[5, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WHOLE_MODELS, ids=[row[2] for row in WHOLE_MODELS])
def test_bad_calls_for_whole_models(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("method", [jaxinit.lsuv, jaxinit.diagnose], ids=["lsuv", "diagnose"])
def test_a_batch_of_shapes_has_no_values_even_within_jit(method):
    with pytest.raises(TypeError, match="computes with values, but batch is a ShapeDtypeStruct"):
        jax.jit(lambda params: method(params, apply_fn, jax.ShapeDtypeStruct((5, 3), jnp.float32)))(PARAMS)


PROGRAMS = {
    "lsuv": jaxinit.lsuv,
    "diagnose": jaxinit.diagnose,
    "trace_layers": jaxinit.trace_layers,
    "initialize": lambda *arguments: jaxinit.initialize(KEY, *arguments),
}


@pytest.mark.parametrize("read", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda params: params,
            r"a function of \(params, batch\), got <lambda>\(params\); wrap it: lambda params, bat",
        ),
        (lambda params, x, key: x, r"got <lambda>\(params, x, key\); wrap it"),
        (nn.Dense(4), "got a Dense module; pass its method `apply`"),
        (nn.Dense, "got the class Dense; for a Linen module pass the method `apply`"),
        (LINEAR, "got a Linear module of NNX; jaxinit.nnx has functions"),
    ],
    ids=["too few arguments", "too many", "Linen module", "class", "NNX module"],
)
def test_functions_of_the_wrong_kind(read, function, message):
    with pytest.raises(TypeError, match=message):
        read(PARAMS, function, X)


def test_what_fails_within_a_function_of_the_user_says_how_it_was_called():
    with pytest.raises(ZeroDivisionError) as caught:
        jaxinit.trace_layers(PARAMS, lambda params, x: 1 / 0, X)
    assert any("in the call apply_fn(params, batch), with <function" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError) as caught:  # the second argument of jnp.mean is an axis
        jaxinit.diagnose(PARAMS, apply_fn, X, loss_fn=jnp.mean)
    assert any("in the call loss_fn(output, batch), with" in note for note in caught.value.__notes__)
