"""`initialize` and its schemes: every leaf drawn by its role, and each scheme's claim on a small network."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import MODELS, VECTORS
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

import jaxinit
from jaxinit import initialize, schemes
from jaxinit._schemes._scheme import SCHEMES

KEY = jax.random.key(0)
ALL = [
    schemes.auto(),
    schemes.torch_default(),
    schemes.keras_default(),
    schemes.flax_default(),
    schemes.gpt2(),
    schemes.fixup(),
    schemes.orthogonal_critical(),
    schemes.sparse(),
    schemes.random_walk(),
    schemes.looks_linear(),
    schemes.skip_init(),
    schemes.rezero(),
    schemes.t_fixup(),
    schemes.deepnorm(),
    schemes.admin(),
    schemes.mimetic(),
    schemes.recurrent(),
    schemes.irnn(),
    schemes.mup((("w", (4, 4)),)),
]


def chain(activation, depth=4, width=32):
    """A plain network of Dense layers, only its shapes, and a batch."""
    widths = [width] * depth + [8]
    model = nn.Sequential([f for n in widths for f in (nn.Dense(n), activation)][:-1])
    x = jax.random.normal(KEY, (64, width))
    return jax.eval_shape(model.init, KEY, x), model.apply, x


def residual(blocks=6, width=64):
    """Two-layer branches without normalization in plain JAX, as shapes, and a batch."""
    shape = jax.ShapeDtypeStruct
    branch = {"a": shape((width, width), jnp.float32), "b": shape((width, width), jnp.float32)}
    params = {
        "blocks": [branch] * blocks,
        "in": shape((width, width), jnp.float32),
        "out": shape((width, 8), jnp.float32),
    }

    def apply_fn(params, x):
        x = x @ params["in"]
        for block in params["blocks"]:
            x = x + jax.nn.relu(x @ block["a"]) @ block["b"]
        return x @ params["out"]

    return params, apply_fn, jax.random.normal(KEY, (64, width))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("linen_unet", "auto"),
        ("linen_decoder", "auto"),
        ("linen_lstm", "torch_default"),
        ("nnx_convnet", "torch_default"),
        ("equinox_attention", "auto"),
        ("plain_fused_attention", "auto"),
    ],
)
def test_every_leaf_is_drawn_and_explained(name, scheme):
    params, apply_fn, batch = MODELS[name]()
    new, report = jax.jit(lambda key: initialize(key, params, apply_fn, batch, scheme, return_report=True))(KEY)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    for old, drawn in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        assert (old.shape, old.dtype) == (drawn.shape, drawn.dtype)
        if jnp.issubdtype(drawn.dtype, jnp.inexact):
            assert bool(jnp.all(jnp.isfinite(drawn)))
    explained = {row.path.split("[")[0] for row in report.rows}
    with_paths, _ = jax.tree_util.tree_flatten_with_path(params)
    assert explained == {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths}
    assert all(row.reason for row in report.rows)


def test_roles_are_those_of_use():
    params, apply_fn, batch = MODELS["linen_vit"]()
    _, report = initialize(KEY, jax.eval_shape(lambda: params), apply_fn, batch, return_report=True)
    found = {row.path.removeprefix("params/"): row.role for row in report.rows}
    assert found["position"] == "position"
    assert found["Conv_0/kernel"] == "conv"
    assert found["Conv_0/bias"] == "bias"
    assert found["AttentionBlock_0/LayerNorm_0/scale"] == "scale"
    assert found["AttentionBlock_0/LayerNorm_0/bias"] == "offset"
    assert found["AttentionBlock_0/MultiHeadDotProductAttention_0/query/kernel"] == "einsum, query"


def test_jit_vmap_shapes_and_the_loop_agree():
    params, apply_fn, x = chain(nn.relu)
    eager = initialize(KEY, params, apply_fn, x)
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: initialize(key, params, apply_fn, x)))(keys)
    one = jax.jit(lambda key: initialize(key, eager, apply_fn, x))
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(one(KEY)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for i, key in enumerate(keys):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one(key)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_a_new_layer_leaves_the_others_as_they_were():
    shape = jax.ShapeDtypeStruct((12, 12), jnp.float32)

    def apply_fn(params, x):
        for name in sorted(params):
            x = jnp.tanh(x @ params[name])
        return x

    few = initialize(KEY, {"a": shape, "c": shape}, apply_fn, VECTORS)
    more = initialize(KEY, {"a": shape, "b": shape, "c": shape}, apply_fn, VECTORS)
    np.testing.assert_array_equal(few["a"], more["a"])
    np.testing.assert_array_equal(few["c"], more["c"])
    assert not np.array_equal(more["a"], more["b"])


def test_auto_makes_up_for_activations_and_depth():
    params, apply_fn, x = residual(blocks=6)
    new = initialize(KEY, params, apply_fn, x)
    # 4,096 normals: the relative error of a standard deviation is 1.1%; 5 of these are 5.5%.
    for i, block in enumerate(new["blocks"]):
        assert float(jnp.std(block["a"])) == pytest.approx((1 / 64 / (1 + i / 6)) ** 0.5, rel=0.055)
        assert float(jnp.std(block["b"])) == pytest.approx((2 / 64 / 6) ** 0.5, rel=0.055)
    for activation in (jnp.tanh, jax.nn.gelu):
        params, apply_fn, x = chain(activation, depth=2, width=64)
        kernel = initialize(KEY, params, apply_fn, x)["params"]["layers_2"]["kernel"]
        assert float(jnp.std(kernel)) == pytest.approx(jaxinit.gain(activation) / 8, rel=0.055)


def test_fans_are_those_of_use():
    shape = jax.ShapeDtypeStruct((3, 3, 4, 64), jnp.float32)

    def apply_fn(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", feature_group_count=8, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    kernel = initialize(KEY, shape, apply_fn, jnp.ones((1, 5, 5, 32)))
    # Of nine taps along 5 x 5 places, (13 / 15)² meet the image.
    assert float(jnp.std(kernel)) == pytest.approx(36**-0.5 * 15 / 13, rel=0.08)
    stack = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)

    def scanned(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    for matrix in initialize(KEY, stack, scanned, VECTORS[:, :1] * jnp.ones((1, 16)), schemes.orthogonal_critical()):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(16), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "weight"), [((16, 16), lambda w: w + w.T), ((3, 16, 16), lambda w: w[jnp.arange(3).sum() - 2])]
)
def test_a_weight_whose_elements_are_mixed_has_the_variance_meant_where_data_meets_it(shape, weight):
    x = jnp.ones((4, 16))
    drawn = initialize(KEY, jax.ShapeDtypeStruct(shape, jnp.float32), lambda w, x: jnp.tanh(x @ weight(w)), x)
    assert float(jnp.mean(weight(drawn) ** 2)) ** 0.5 == pytest.approx(1 / 4, rel=1e-3)
    assert len(np.unique(drawn)) == drawn.size


def test_a_readout_to_one_number_is_a_matrix_and_a_normalised_kernel_has_unit_gain():
    params = {"v": jax.ShapeDtypeStruct((8, 400), jnp.float32), "g": jax.ShapeDtypeStruct((400,), jnp.float32)}
    params["out"] = jax.ShapeDtypeStruct((400, 1), jnp.float32)

    def apply_fn(p, x):
        kernel = p["v"] / jnp.linalg.norm(p["v"], axis=0)[None] * p["g"][None]
        return jnp.tanh(x @ kernel) @ p["out"]

    new = initialize(KEY, params, apply_fn, jnp.ones((4, 8)))
    np.testing.assert_allclose(new["g"], 1, rtol=1e-5)
    # 400 numbers: five standard errors of a standard deviation are 18%.
    assert float(jnp.std(new["out"])) == pytest.approx(jaxinit.gain("tanh") / 20, rel=0.18)


def test_vectors_that_contract_and_depthwise_kernels_are_matrices():
    drawn = initialize(
        KEY, jax.ShapeDtypeStruct((400,), jnp.float32), lambda w, x: jax.nn.relu(x @ w), jnp.ones((4, 400))
    )
    assert float(jnp.std(drawn)) == pytest.approx((1 / 400) ** 0.5, rel=0.2)
    model = nn.Conv(64, (3, 3), feature_group_count=64)
    x = jnp.ones((1, 5, 5, 64))
    params = initialize(KEY, jax.eval_shape(model.init, KEY, x), model.apply, x)["params"]
    assert float(jnp.std(params["kernel"])) == pytest.approx(1 / 3 * 15 / 13, rel=0.15)


def test_leaves_stay_where_they_were():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    w = jax.device_put(jnp.ones((16, 16)), sharding)
    assert initialize(KEY, w, lambda w, x: x @ w, jnp.ones((4, 16))).sharding == sharding


def test_torch_default_draws_biases_by_the_fan_in_of_their_layer():
    params, apply_fn, x = chain(nn.relu, depth=2, width=400)
    new = initialize(KEY, params, apply_fn, x, "torch_default")["params"]["layers_0"]
    bound = 400**-0.5
    # Kolmogorov–Smirnov at a false-alarm rate of 0.1%, on 400 and on 160,000 numbers.
    for array in (new["bias"], new["kernel"]):
        assert stats.kstest(np.ravel(array), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    assert stats.kstest(np.ravel(new["bias"]), stats.uniform(-1.5 * bound, 3 * bound).cdf).pvalue < 1e-3


def test_recurrent_kernels_are_orthogonal_by_default_in_keras_and_flax():
    params, apply_fn, batch = MODELS["linen_lstm"]()
    for scheme in ("keras_default", "flax_default"):
        new, report = initialize(KEY, params, apply_fn, batch, scheme, return_report=True)
        kernels = {row.path: row.init for row in report.rows}
        recurrent = [path for path in kernels if "/h" in path and path.endswith("kernel")]
        assert len(recurrent) == 4
        assert {kernels[path] for path in recurrent} == {"orthogonal()"}
        flat = {
            "/".join(map(str, [getattr(k, "key", k) for k in path])): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(new)[0]
        }
        matrix = flat[recurrent[0]]
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(7), atol=1e-5)


def test_gpt2_divides_the_last_layer_of_each_branch():
    params, apply_fn, x = residual(blocks=4)
    new = initialize(KEY, params, apply_fn, x, schemes.gpt2(stddev=0.1))
    assert float(jnp.std(new["blocks"][2]["a"])) == pytest.approx(0.1, rel=0.055)
    assert float(jnp.std(new["blocks"][2]["b"])) == pytest.approx(0.1 / 4**0.5, rel=0.055)


def test_fixup_zeroes_branches_and_classifier_and_scales_the_rest():
    params, apply_fn, x = residual(blocks=9)
    new = initialize(KEY, params, apply_fn, x, "fixup")
    for block in new["blocks"]:
        assert not np.any(block["b"])
        assert float(jnp.std(block["a"])) == pytest.approx((2 / 64) ** 0.5 * 9**-0.5, rel=0.055)
    assert not np.any(new["out"])
    np.testing.assert_array_equal(apply_fn(new, x), 0)
    kept = initialize(KEY, params, apply_fn, x, schemes.fixup(zero_classifier=False))
    np.testing.assert_allclose(apply_fn(kept, x), x @ kept["in"] @ kept["out"], atol=1e-5)


@pytest.mark.parametrize("depth", [2, 30])
def test_looks_linear_networks_are_linear_and_keep_norms(depth):
    params, apply_fn, x = chain(nn.relu, depth=depth, width=32)
    new = initialize(KEY, params, apply_fn, x, "looks_linear")
    out = apply_fn(new, x)
    np.testing.assert_allclose(apply_fn(new, x + x[::-1]), out + out[::-1], atol=2e-5)
    np.testing.assert_allclose(apply_fn(new, -3 * x), -3 * out, atol=2e-5)
    # Q is 32 × 16, 16 × 16 and 16 × 8: a projection onto 8 of 32 directions.
    assert float(jnp.mean(out**2) / jnp.mean(x**2)) == pytest.approx(1, rel=0.3)


def test_orthogonal_critical_is_orthogonal_at_the_edge_of_chaos():
    params, apply_fn, x = chain(nn.tanh)
    new = initialize(KEY, params, apply_fn, x, schemes.orthogonal_critical(bias_variance=0.05))["params"]
    gram = new["layers_0"]["kernel"].T @ new["layers_0"]["kernel"]
    np.testing.assert_allclose(gram, 1.761 * np.eye(32), atol=2e-3)
    biases = jnp.concatenate([layer["bias"] for layer in new.values()])  # 136 of them: five standard errors are 30%
    assert float(jnp.std(biases)) == pytest.approx(0.05**0.5, rel=0.3)


def test_a_mask_is_not_drawn_anew_unasked():
    mask = jnp.tri(8)
    params = {"m": mask, "w": jnp.ones((8, 8))}

    def apply_fn(p, x):
        return x @ (p["w"] * p["m"])

    with pytest.raises(ValueError, match="which of them is the weight and which the mask"):
        initialize(KEY, params, apply_fn, jnp.ones((4, 8)))
    new = initialize(KEY, params, apply_fn, jnp.ones((4, 8)), overrides={"m": lambda key, shape, dtype: mask})
    np.testing.assert_array_equal(new["m"], mask)
    assert float(jnp.std(new["w"])) > 0


def test_convolutions_of_one_tap_are_orthogonal_matrices():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            return nn.relu(nn.Conv(8, (1, 1), strides=2)(x))

    x = jnp.ones((1, 6, 6, 16))
    new = initialize(KEY, Net().init(KEY, x), Net().apply, x, "orthogonal_critical")["params"]
    for kernel in (new["Conv_0"]["kernel"][1, 1], new["Conv_1"]["kernel"][0, 0]):
        np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(kernel.shape[1]), atol=1e-5)
    assert float(jnp.abs(new["Conv_0"]["kernel"][0]).max()) == 0


def test_sparse_units_hear_a_fixed_number_of_inputs():
    params, apply_fn, x = chain(nn.tanh)
    kernel = initialize(KEY, params, apply_fn, x, schemes.sparse(num_nonzero=5))["params"]["layers_0"]["kernel"]
    np.testing.assert_array_equal(np.count_nonzero(kernel, axis=0), 5)


def test_overrides_by_pattern_and_by_function():
    params, apply_fn, x = chain(nn.relu)
    ones = jaxinit.constant(1.0)
    new, report = initialize(KEY, params, apply_fn, x, overrides={"*/layers_0/*": ones}, return_report=True)
    assert np.all(new["params"]["layers_0"]["kernel"] == 1)
    assert np.all(new["params"]["layers_0"]["bias"] == 1)
    assert not np.all(new["params"]["layers_2"]["kernel"] == 1)
    assert [row.reason for row in report.rows].count("override") == 2
    new = initialize(
        KEY, params, apply_fn, x, overrides=lambda path, layer: ones if layer and layer.fan_out == 8 else None
    )
    assert np.all(new["params"]["layers_8"]["kernel"] == 1)
    with pytest.raises(ValueError, match="'nothing', which matches no leaf; the leaves are"):
        initialize(KEY, params, apply_fn, x, overrides={"nothing": ones})


def test_a_scheme_that_does_not_fit_names_the_layer():
    params, apply_fn, x = chain(nn.tanh)
    with pytest.raises(schemes.MisfitError, match=r"layers_0/kernel.*followed by tanh"):
        initialize(KEY, params, apply_fn, x, "looks_linear")
    for scheme in ("fixup", "gpt2"):
        with pytest.raises(ValueError, match="no layer of this model is in the branch"):
            initialize(KEY, params, apply_fn, x, scheme)
    with pytest.raises(ValueError, match="scheme must be one of"):
        initialize(KEY, params, apply_fn, x, "best")


@pytest.mark.parametrize("scheme", ALL, ids=repr)
def test_schemes_are_values(scheme):
    assert scheme == eval(repr(scheme), vars(schemes))
    assert hash(scheme) == hash(eval(repr(scheme), vars(schemes)))


def test_each_device_makes_its_own_shard():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    shape = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    run = jax.jit(
        lambda key: initialize(key, shape, lambda w, x: jnp.tanh(x @ w), jnp.ones((4, 512))), out_shardings=sharding
    )
    memory = run.lower(KEY).compile().memory_analysis()
    assert memory.output_size_in_bytes == 512 * 512 * 4 // 8
    assert memory.temp_size_in_bytes < 512 * 512 * 4 / 2
    expected = initialize(KEY, shape, lambda w, x: jnp.tanh(x @ w), jnp.ones((4, 512)))
    np.testing.assert_allclose(run(KEY), expected, rtol=1e-6)


def test_the_report_is_data_text_and_html():
    params, apply_fn, x = chain(nn.relu)
    _, report = initialize(KEY, params, apply_fn, x, return_report=True)
    assert json.loads(json.dumps(report.to_dict()))["scheme"] == "auto()"
    assert len(report) == 10
    assert "inputs of mean square 0.5" in str(report)
    assert "<pre>" in report._repr_html_()


def test_what_of_a_leaf_is_no_layer_is_drawn_by_its_role():
    def apply_fn(w, x):
        x = jnp.tanh(x @ w[:12])
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) * w[12:]

    shape = jax.ShapeDtypeStruct((13, 12), jnp.float32)
    new, report = initialize(KEY, shape, apply_fn, jnp.ones((4, 12)), return_report=True)
    assert jnp.std(new[:12]) == pytest.approx(12**-0.5, rel=0.3)
    assert [row.role for row in report.rows] == ["scale", "dense"]
    assert (new[12] == 1).all()


def test_what_of_a_leaf_has_no_role_is_kept():
    def apply_fn(w, x):
        return jnp.tanh(x @ w[:12]) * w[12:]

    old = jnp.full((13, 12), 0.7)
    new, report = initialize(KEY, old, apply_fn, jnp.ones((4, 12)), return_report=True)
    assert jnp.std(new[:12]) == pytest.approx(12**-0.5, rel=0.3)
    assert [row.role for row in report.rows] == ["unknown", "dense"]
    np.testing.assert_array_equal(new[12], old[12])


@pytest.mark.parametrize("stored_transposed", [False, True])
@pytest.mark.parametrize(("stride", "taps"), [(2, 4), (3, 3)])
def test_transposed_convolutions_are_drawn_as_each_library_draws_its_own(stored_transposed, stride, taps):
    """Flax counts the kernel's axis -2; PyTorch its axis 1 of (in, out, ...); Keras both; `auto` the taps in use."""
    n_in, n_out = 32, 64
    model = nn.ConvTranspose(n_out, (taps, taps), (stride, stride), transpose_kernel=stored_transposed)
    x = jnp.ones((1, 4, 4, n_in))
    shapes = jax.eval_shape(model.init, KEY, x)
    field = taps**2

    def spread(scheme):
        return initialize(KEY, shapes, model.apply, x, scheme)["params"]

    # 18,432 numbers or more: the relative error of a standard deviation is .5%, 5 of these 2.6%.
    flax = jnp.std(model.init(KEY, x)["params"]["kernel"])
    assert float(jnp.std(spread("flax_default")["kernel"])) == pytest.approx(float(flax), rel=0.026)
    torch = spread("torch_default")
    bound = (field * n_out) ** -0.5
    assert float(jnp.std(torch["kernel"])) == pytest.approx(bound / 3**0.5, rel=0.026)
    assert bound * 0.9 < float(jnp.max(jnp.abs(torch["bias"]))) <= bound
    keras = (2 / (field * (n_in + n_out))) ** 0.5
    assert float(jnp.std(spread("keras_default")["kernel"])) == pytest.approx(keras, rel=0.026)
    assert float(jnp.std(spread("auto")["kernel"])) == pytest.approx((field / stride**2 * n_in) ** -0.5, rel=0.026)


def test_a_scheme_is_registered_once_and_by_name():
    def define():
        @schemes.register
        @dataclasses.dataclass(frozen=True)
        class plain(schemes.Scheme):
            pass

        return plain

    first = define()
    again = define()  # as a cell of a notebook that is run twice
    assert first is not again
    params, x = {"w": jax.ShapeDtypeStruct((300, 200), "float32")}, jax.ShapeDtypeStruct((4, 300), "float32")
    drawn = jaxinit.initialize(jax.random.key(0), params, lambda p, x: x @ p["w"], x, "plain")
    assert float(jnp.std(drawn["w"])) * 300**0.5 == pytest.approx(1, rel=0.02)

    class auto(schemes.Scheme):  # only a decorator registers
        pass

    assert SCHEMES["auto"] is schemes.auto
    with pytest.raises(ValueError, match="a scheme named 'auto' exists already, jaxinit"):
        schemes.register(auto)
    assert SCHEMES["auto"] is schemes.auto
    del SCHEMES["plain"]
