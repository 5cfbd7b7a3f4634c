"""Every Flax layer that accepts an initializer accepts these, Linen and NNX, in float32 and bfloat16."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxinit
import jaxinit.linen
import jaxinit.nnx

KERNELS = [
    jaxinit.he_uniform(),
    jaxinit.glorot_normal(),
    jaxinit.variance_scaling(1.0, "fan_geo_avg", "normal"),
    jaxinit.normal(0.02),
    jaxinit.uniform(),
    jaxinit.truncated_normal(0.02),
    jaxinit.sparse(2),
    jaxinit.random_walk(),
    jaxinit.siren(),
    jaxinit.identity(),
    jaxinit.zero_hadamard(),
    jaxinit.orthogonal(),
    jaxinit.blocked(jaxinit.orthogonal("relu"), -1, 2),
    jaxinit.scaled(jaxinit.he_normal(), 0.5),
    jaxinit.blocked(jaxinit.lecun_normal(), -1, 2),
    jaxinit.constant(0.1),
    jaxinit.zeros,
]
BIASES = [jaxinit.zeros, jaxinit.ones_init(), jaxinit.constant(0.1), jaxinit.normal(), jaxinit.lstm_bias(gates="f")]

IMAGE, TOKENS, SEQUENCE = (2, 8, 8, 4), (2, 5), (2, 5, 16)


def _recurrent(cell):
    """A cell of Linen under nn.RNN, kernels from one initializer."""
    return lambda kernel, bias, dtype: nn.RNN(
        cell(8, kernel_init=kernel, recurrent_kernel_init=kernel, bias_init=bias, param_dtype=dtype)
    )


def _linen(layer, *args, **kwargs):
    return lambda kernel, bias, dtype: layer(*args, kernel_init=kernel, bias_init=bias, param_dtype=dtype, **kwargs)


class Stacked(nn.Module):
    """nn.scan over layers: the initializer is called inside a map over keys."""

    kernel: jaxinit.Initializer
    bias: jaxinit.Initializer
    param_dtype: object

    @nn.compact
    def __call__(self, x):
        def body(module, x, _):
            dense = nn.Dense(16, kernel_init=self.kernel, bias_init=self.bias, param_dtype=self.param_dtype)
            return dense(x), None

        return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(self, x, None)[0]


class Mapped(nn.Module):
    """nn.vmap over an ensemble."""

    kernel: jaxinit.Initializer
    bias: jaxinit.Initializer
    param_dtype: object

    @nn.compact
    def __call__(self, x):
        ensemble = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=0, axis_size=3
        )
        return ensemble(16, kernel_init=self.kernel, bias_init=self.bias, param_dtype=self.param_dtype)(x)


LINEN = {
    "Dense": (_linen(nn.Dense, 8), SEQUENCE),
    "DenseGeneral": (_linen(nn.DenseGeneral, (4, 6)), SEQUENCE),
    "DenseGeneral contracting two": (_linen(nn.DenseGeneral, 6, axis=(-2, -1)), SEQUENCE),
    "Einsum": (_linen(nn.Einsum, (4, 16, 6), "...a,bac->...bc"), SEQUENCE),
    "Conv": (_linen(nn.Conv, 6, (3, 3)), IMAGE),
    "grouped Conv": (_linen(nn.Conv, 8, (3, 3), feature_group_count=2), IMAGE),
    "ConvLocal": (_linen(nn.ConvLocal, 6, (3, 3)), IMAGE),
    "ConvTranspose": (_linen(nn.ConvTranspose, 6, (3, 3), strides=(2, 2)), IMAGE),
    "attention": (_linen(nn.MultiHeadDotProductAttention, 4), SEQUENCE),
    "LSTM": (_recurrent(nn.LSTMCell), SEQUENCE),
    "OptimizedLSTM": (_recurrent(nn.OptimizedLSTMCell), SEQUENCE),
    "GRU": (_recurrent(nn.GRUCell), SEQUENCE),
    "SimpleCell": (_recurrent(nn.SimpleCell), SEQUENCE),
    "scan": (lambda kernel, bias, dtype: Stacked(kernel, bias, dtype), SEQUENCE),
    "vmap": (lambda kernel, bias, dtype: Mapped(kernel, bias, dtype), SEQUENCE),
    "Embed": (lambda kernel, bias, dtype: nn.Embed(32, 8, embedding_init=kernel, param_dtype=dtype), TOKENS),
}


def _nnx(layer, *args, **kwargs):
    return lambda kernel, bias, dtype: layer(
        *args, kernel_init=kernel, bias_init=bias, param_dtype=dtype, rngs=nnx.Rngs(0), **kwargs
    )


def _nnx_recurrent(cell):
    return lambda kernel, bias, dtype: cell(
        16, 8, kernel_init=kernel, recurrent_kernel_init=kernel, bias_init=bias, param_dtype=dtype, rngs=nnx.Rngs(0)
    )


def _nnx_mapped(kernel, bias, dtype):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Linear(16, 8, kernel_init=kernel, bias_init=bias, param_dtype=dtype, rngs=rngs)

    return make(nnx.Rngs(0))


NNX = {
    "Linear": _nnx(nnx.Linear, 16, 8),
    "LinearGeneral": _nnx(nnx.LinearGeneral, 16, (4, 6)),
    "Einsum": _nnx(nnx.Einsum, "...a,bac->...bc", (4, 16, 6), (4, 6)),
    "Conv": _nnx(nnx.Conv, 4, 6, (3, 3)),
    "grouped Conv": _nnx(nnx.Conv, 4, 8, (3, 3), feature_group_count=2),
    "ConvTranspose": _nnx(nnx.ConvTranspose, 4, 6, (3, 3), strides=(2, 2)),
    "attention": _nnx(nnx.MultiHeadAttention, 4, 16, decode=False),
    "LSTM": _nnx_recurrent(nnx.LSTMCell),
    "OptimizedLSTM": _nnx_recurrent(nnx.OptimizedLSTMCell),
    "GRU": _nnx_recurrent(nnx.GRUCell),
    "vmap": _nnx_mapped,
    "LoRA": lambda kernel, bias, dtype: nnx.LoRA(
        16, 2, 8, a_initializer=kernel, b_initializer=kernel, param_dtype=dtype, rngs=nnx.Rngs(0)
    ),
    "Embed": lambda kernel, bias, dtype: nnx.Embed(32, 8, embedding_init=kernel, param_dtype=dtype, rngs=nnx.Rngs(0)),
}


@pytest.fixture(autouse=True)
def _flax_promotes_freely():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _leaves(abstract, dtype):
    leaves = [leaf for leaf in jax.tree.leaves(abstract) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert leaves
    assert all(leaf.dtype == dtype for leaf in leaves)


in_both_dtypes = pytest.mark.parametrize(
    ("dtype", "kernels"),
    [
        (jnp.float32, KERNELS),
        (jnp.bfloat16, KERNELS[::4]),
        pytest.param(jnp.bfloat16, KERNELS, marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16", "bfloat16, all"],
)


@pytest.mark.parametrize("name", LINEN)
@in_both_dtypes
def test_linen_layers_take_every_initializer(name, dtype, kernels):
    make, shape = LINEN[name]
    x = jnp.ones(shape, jnp.int32 if name == "Embed" else dtype)
    cases = [(kernel, BIASES[i % len(BIASES)]) for i, kernel in enumerate(kernels)]
    for kernel, bias in cases:
        module = make(kernel, bias, dtype)
        _leaves(jax.eval_shape(module.init, jax.random.key(0), x)["params"], dtype)
    drawn = jax.jit(make(*cases[0], dtype).init)(jax.random.key(0), x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(drawn))


@pytest.mark.parametrize("name", NNX)
@in_both_dtypes
def test_nnx_layers_take_every_initializer(name, dtype, kernels):
    for i, kernel in enumerate(kernels):
        bias = BIASES[i % len(BIASES)]
        model = nnx.eval_shape(functools.partial(NNX[name], kernel, bias, dtype))
        _leaves(nnx.state(model, nnx.Param), dtype)
    drawn = nnx.state(NNX[name](KERNELS[0], BIASES[0], dtype), nnx.Param)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(drawn))


def test_kernels_in_a_stack_differ(key):
    params = Stacked(jaxinit.he_normal(), jaxinit.zeros, jnp.float32).init(key, jnp.ones(SEQUENCE))
    (kernel,) = (leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3)
    assert not np.array_equal(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 16), rtol=0.1)


class TestPartitioning:
    """google/flax#3892: names of the final kernel, where the initializer sees a flattened one."""

    names = ("embed", "heads", None)

    def _init(self, wrapper, mesh):
        module = nn.DenseGeneral((4, 6), kernel_init=wrapper(jaxinit.he_normal(), self.names))
        with jax.set_mesh(mesh):
            return jax.jit(module.init)(jax.random.key(0), jnp.ones((2, 16)))

    @pytest.fixture
    def mesh(self):
        return jax.make_mesh((2, 4), ("embed", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def test_names_fit_the_final_kernel(self, mesh):
        kernel = self._init(jaxinit.with_partitioning, mesh)["params"]["kernel"]
        assert isinstance(kernel, nn.Partitioned)
        assert kernel.names == self.names
        assert kernel.value.shape == (16, 4, 6)
        with jax.set_mesh(mesh):
            assert kernel.unbox().sharding.spec[:2] == ("embed", "heads")

    def test_flax_fails_here(self, mesh):
        with pytest.raises(ValueError, match=r"rank|ndim|dimension|length"):
            self._init(nn.with_partitioning, mesh)

    def test_partition_specs_of_attention(self):
        init = jaxinit.with_partitioning(jaxinit.he_normal(), self.names)
        out = jaxinit.with_partitioning(jaxinit.he_normal(), ("heads", None, "embed"))
        module = nn.MultiHeadDotProductAttention(4, kernel_init=init, out_kernel_init=out)
        abstract = jax.eval_shape(module.init, jax.random.key(0), jnp.ones(SEQUENCE))
        specs = nn.get_partition_spec(abstract)["params"]
        assert specs["query"]["kernel"] == jax.sharding.PartitionSpec("embed", "heads", None)
        assert specs["out"]["kernel"] == jax.sharding.PartitionSpec("heads", None, "embed")

    def test_nnx_layers_carry_the_names(self, mesh):
        init = jaxinit.nnx.with_partitioning(jaxinit.he_normal(), (None, "heads"))
        with jax.set_mesh(mesh):
            layer, again = (nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0)) for _ in range(2))
        assert layer.kernel.get_metadata()["out_sharding"] == (None, "heads")
        assert layer.kernel[...].sharding.spec == jax.sharding.PartitionSpec(None, "heads")
        plain = nnx.Linear(8, 4, kernel_init=jaxinit.he_normal(), rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer.kernel[...], plain.kernel[...])
        assert nnx.graphdef(layer) == nnx.graphdef(again)
        equal = jaxinit.nnx.with_partitioning(jaxinit.he_normal(), [None, "heads"])
        assert equal == init
        assert hash(equal) == hash(init)
        assert jaxinit.from_config(init.to_config()) == init


class Encoder(nn.Module):
    """Two methods, one of which takes a mask; statistics beside the parameters."""

    def setup(self):
        self.kernel, self.other = nn.Dense(8), nn.Dense(3)
        self.norm = nn.BatchNorm(use_running_average=True)

    def __call__(self, x):
        return self.other(nn.relu(self.norm(self.kernel(x))))

    def encode(self, x, mask):
        return jnp.where(mask, self.kernel(x), 0)


class NnxEncoder(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.kernel, self.other = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.other(nnx.relu(self.norm(self.kernel(x))))

    def encode(self, x, mask):
        return jnp.where(mask, self.kernel(x), 0)


DATA = jax.random.normal(jax.random.key(3), (32, 4))
MASK = jnp.arange(8) < 4


def test_a_linen_module_is_split_into_what_every_method_takes():
    model = Encoder()
    variables = model.init(jax.random.key(0), DATA)
    params, apply_fn, restore = jaxinit.linen.split(model, variables)
    assert set(params) == {"params"}
    np.testing.assert_array_equal(apply_fn(params, DATA), model.apply(variables, DATA))
    doubled = restore(jax.tree.map(lambda x: 2 * x, params))
    assert set(doubled) == {"params", "batch_stats"}
    np.testing.assert_array_equal(doubled["params"]["other"]["kernel"], 2 * variables["params"]["other"]["kernel"])
    assert doubled["batch_stats"] == variables["batch_stats"]
    assert isinstance(jaxinit.recommend(params, apply_fn, DATA), jaxinit.Recommendation)

    # The statistics make the function unhashable; everything takes it nevertheless.
    fitted = restore(jaxinit.fit_readout(params, apply_fn, DATA, jnp.arange(32) % 3))
    assert float(jnp.abs(model.apply(fitted, DATA)).max()) < 5
    with pytest.raises(ValueError, match="needs low-rank adapters"):
        jaxinit.lora.standard(jax.random.key(0), params, apply_fn, DATA)

    encoded = jaxinit.linen.split(model, variables, method="encode", kwargs={"mask": MASK})
    np.testing.assert_array_equal(encoded.apply_fn(params, DATA)[:, 4:], 0)
    layers = jaxinit.linen.trace_layers(model, variables, DATA, method="encode", kwargs={"mask": MASK})
    assert [layer.path for layer in layers] == ["params/kernel/kernel"]


def test_an_nnx_model_is_split_into_what_every_method_takes():
    model = NnxEncoder(nnx.Rngs(0))
    before = model(DATA)
    params, apply_fn, restore = jaxinit.nnx.split(model)
    np.testing.assert_array_equal(apply_fn(params, DATA), before)
    assert isinstance(jaxinit.recommend(params, apply_fn, DATA), jaxinit.Recommendation)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    np.testing.assert_array_equal(model(DATA), before)  # not changed before it is restored
    assert restore(doubled) is model
    np.testing.assert_array_equal(model.other.kernel[...], doubled["other"]["kernel"][...])

    encoded = jaxinit.nnx.split(model, method="encode", kwargs={"mask": MASK})
    np.testing.assert_array_equal(encoded.apply_fn(encoded.params, DATA)[:, 4:], 0)
    layers = jaxinit.nnx.trace_layers(model, DATA, method="encode", kwargs={"mask": MASK})
    assert [layer.path.split("/")[0] for layer in layers] == ["kernel"]
    scaled = jaxinit.nnx.lsuv(model, DATA, method="encode", kwargs={"mask": MASK}, return_report=True)
    assert scaled.after[0] == pytest.approx(1, rel=1e-3)
