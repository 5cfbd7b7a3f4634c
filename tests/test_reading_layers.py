"""The layers that `trace_layers` finds in programs where they are known by hand."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import MODELS
from jax import lax

import jaxinit
import jaxinit.linen
import jaxinit.nnx
from jaxinit import trace_layers


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def traced(name):
    return trace_layers(*MODELS[name]())


def rows(layers, *fields):
    return [tuple(getattr(layer, field) for field in fields) for layer in layers]


def test_layers_come_in_order_of_execution_not_of_definition():
    params = {"a": struct(8, 2), "z": struct(4, 8)}
    layers = trace_layers(params, lambda p, x: jax.nn.relu(x @ p["z"]) @ p["a"], struct(5, 4))
    assert rows(layers, "path", "kind", "fan_in", "fan_out", "uses") == [
        ("z", "dense", 4, 8, 1),
        ("a", "dense", 8, 2, 1),
    ]


@pytest.mark.parametrize(
    ("equation", "weight", "data", "fans", "axes"),
    [
        ("bd,df->bf", (4, 6), (3, 4), (4, 6), ((0,), (1,), ())),
        ("fd,bd->bf", (6, 4), (3, 4), (4, 6), ((1,), (0,), ())),
        ("bd,dhk->bhk", (4, 2, 3), (3, 4), (4, 6), ((0,), (1, 2), ())),
        ("bhk,hkd->bd", (2, 3, 5), (7, 2, 3), (6, 5), ((0, 1), (2,), ())),
        ("ebd,edf->ebf", (3, 4, 6), (3, 7, 4), (4, 6), ((1,), (2,), (0,))),
    ],
)
def test_fans_and_axes_of_an_einsum(equation, weight, data, fans, axes):
    first, second = equation.split("->")[0].split(",")
    weight_first = len(first) == len(weight) and first[0] not in "b" and len(second) == len(data)
    weight_first = weight_first and equation.startswith("fd")

    def apply_fn(w, x):
        return jnp.einsum(equation, w, x) if weight_first else jnp.einsum(equation, x, w)

    (layer,) = trace_layers(struct(*weight), apply_fn, struct(*data))
    assert (layer.fan_in, layer.fan_out) == fans
    assert (layer.in_axes, layer.out_axes, layer.batch_axes) == axes


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 1), (4, 1), (1, 2)])
def test_fans_of_a_convolution(dims, groups, dilation):
    spatial = "XYZ"[:dims]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def apply_fn(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            (1,) * dims,
            [(2, 2)] * dims,
            lhs_dilation=(dilation,) * dims,
            rhs_dilation=(2,) * dims,
            feature_group_count=groups,
            dimension_numbers=numbers,
        )

    (layer,) = trace_layers(struct(*(3,) * dims, 4 // groups, 8), apply_fn, struct(2, *(6,) * dims, 4))
    assert layer.kind == "conv"
    assert layer.receptive_field == 3**dims
    assert layer.feature_group_count == groups
    assert layer.fan_in == 3**dims * 4 / groups / dilation**dims
    assert layer.fan_out == 3**dims * 8 / groups
    # The matrices that are made orthonormal: one a group.
    by_role = {role: [layer.view[axis] for axis in getattr(layer, f"{role}_axes")] for role in ("in", "out", "batch")}
    assert by_role["out"] == [8 // groups]
    assert by_role["batch"] == ([groups] if groups > 1 else [])


def test_lookups_and_one_hot_products_are_embeddings():
    tokens = struct(3, 5, dtype=jnp.int32)
    for apply_fn in (
        lambda w, t: w[t],
        lambda w, t: jnp.take(w, t, axis=0),
        lambda w, t: jax.nn.one_hot(t, 20) @ w,
        lambda w, t: jnp.einsum("vbt,vd->btd", jax.nn.one_hot(t, 20, axis=0), w),
        lambda w, t: jax.vmap(lambda t: jax.nn.one_hot(t, 20).reshape(-1, 20) @ w)(t),
        lambda w, t: (t[..., None] == np.arange(20)[None, None]).astype(jnp.bfloat16).astype(jnp.float32) @ w,
        lambda w, t: (jnp.arange(1, 21)[None, None] == t[..., None]).astype(jnp.float32) @ w,
        lambda w, t: lax.map(lambda o: o @ w, jax.nn.one_hot(t, 20)),
    ):
        (layer,) = trace_layers(struct(20, 8), apply_fn, tokens)
        assert (layer.kind, layer.fan_in, layer.fan_out) == ("embed", 1, 8)


def test_comparisons_that_are_not_one_hot_along_the_contracted_dimension_are_dense():
    tokens = struct(4, 5, dtype=jnp.int32)
    for apply_fn in (
        lambda w, t: jax.nn.one_hot(t, 4).reshape(4, 20) @ w,
        lambda w, t: (t[0, :, None] == t.reshape(1, -1)).astype(jnp.float32) @ w,
        lambda w, t: (t.reshape(20) == jnp.arange(20)).astype(jnp.float32)[None] @ w,
        lambda w, t: jnp.einsum("btv,bd->vd", jax.nn.one_hot(t, 3), w[:4]),
    ):
        (layer,) = trace_layers(struct(20, 8), apply_fn, tokens)
        assert layer.kind in ("dense", "einsum")
        assert layer.fan_in in (20, 4)


@pytest.mark.parametrize(
    "name",
    ["plain_picked_experts", "plain_experts_picked_by_products", "plain_best_two_experts", "plain_grouped_experts"],
)
def test_experts_that_data_chooses_are_dense_layers_with_an_axis_of_experts(name):
    layers = traced(name)
    assert rows(layers, "path", "kind", "fan_in", "fan_out", "uses")[1:] == [
        ("inner", "einsum", 12, 8, 1),
        ("outer", "einsum", 8, 5, 1),
    ]
    for layer in layers[1:]:
        assert [layer.view[a] for a in layer.batch_axes] == [6]
        assert [layer.view[a] for a in layer.in_axes] == [layer.fan_in]
        assert math.prod(layer.view[a] for a in layer.out_axes) == layer.fan_out
    assert layers["inner"].activation.name == "relu"


EXPERTS = {
    "of one layer": lambda p, x, shares: jnp.einsum("ebo,be->bo", jnp.einsum("bd,edo->ebo", x, p["w"]), shares),
    "mapped": lambda p, x, shares: (jax.vmap(lambda w: x @ w)(p["w"]) * shares.T[..., None]).sum(0),
    "of two layers": lambda p, x, shares: jnp.einsum(
        "ebo,be->bo", jax.vmap(jnp.matmul)(jax.nn.relu(jnp.einsum("bd,edo->ebo", x, p["w"])), p["v"]), shares
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_whose_outputs_data_weighs_make_no_weights(name):
    params = {"w": struct(4, 8, 6), "v": struct(4, 6, 6), "gate": struct(8, 4)}
    layers = trace_layers(params, lambda p, x: EXPERTS[name](p, x, jax.nn.softmax(x @ p["gate"])), struct(5, 8))
    found = {layer.path: (layer.fan_in, layer.fan_out) for layer in layers}
    expected = {"w": (8, 6), "v": (6, 6), "gate": (8, 4)}
    assert found == {path: expected[path] for path in params if path != "v" or name == "of two layers"}


def test_one_expert_for_all_samples_is_a_dense_layer_too():
    def apply_fn(w, x):
        return x @ w[jnp.argmax(x.sum(0))] + x @ jnp.take(w, jnp.argmin(x.sum(0)), axis=0)

    (layer,) = trace_layers(struct(4, 4, 8), apply_fn, struct(5, 4))
    assert (layer.fan_in, layer.fan_out, layer.batch_axes, layer.uses) == (4, 8, (0,), 2)


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda w, x: w[jnp.argmax(x, 1)] + x[:, :, None],  # only added
        lambda w, x: jnp.einsum("tio,ijo->tj", w[jnp.argmax(x, 1)], jnp.ones((4, 3, 8))),  # no other data
        lambda w, x: jnp.einsum("ti,tio->to", x, jnp.tanh(w[jnp.argmax(x, 1)])),  # not linear
        lambda w, x: jnp.einsum("tio,tj->tijo", w[jnp.argmax(x, 1)], x),  # nothing contracted
        lambda w, x: jnp.einsum("tio,tio->t", w[jnp.argmax(x, 1)], x[:, :, None] * jnp.ones((1, 1, 8))),  # nothing free
        lambda w, x: [jnp.einsum("ti,tio->to", x, v := w[jnp.argmax(x, 1)]), v],  # read elsewhere
    ],
    ids=["added", "constant", "tanh", "outer", "inner", "output"],
)
def test_other_tables_of_matrices_are_looked_up(apply_fn):
    (layer,) = trace_layers(struct(20, 4, 8), apply_fn, struct(5, 4))
    assert (layer.kind, layer.fan_in, layer.fan_out) == ("embed", 1, 32)


def test_a_batch_of_slices_is_a_lookup_of_rows():
    def apply_fn(w, t):
        return jax.vmap(lambda i: w[i])(t), jnp.take(w, t[0], axis=0)

    (layer,) = trace_layers(struct(20, 8), apply_fn, struct(5, dtype=jnp.int32))
    assert (layer.kind, layer.fan_in, layer.fan_out, layer.uses) == ("embed", 1, 8, 2)


@pytest.mark.parametrize("fill", [None, 0.0, 7.0])
def test_a_lookup_that_fills_with_a_number_is_not_homogeneous(fill):
    def look_up(w, t):
        return w.at[t].get(mode="fill", fill_value=fill)

    tokens = struct(3, 5, dtype=jnp.int32)
    layers = trace_layers(struct(20, 8), look_up, tokens)
    fixed = trace_layers(struct(20, 8), lambda w, x: x @ look_up(w, np.array([0, 3, 40])), struct(5, 3))
    if fill == 7.0:
        assert [len(layers), len(fixed)] == [0, 0]
        assert all("not homogeneous" in found.unvisited[0].reason for found in (layers, fixed))
    else:
        assert [layers[0].kind, fixed[0].kind] == ["embed", "dense"]


def test_a_product_in_groups_of_inputs_is_listed():
    numbers = lax.RaggedDotDimensionNumbers((((1,), (0,)), ((), ())), (1,), ())

    def apply_fn(w, x):
        return lax.ragged_dot_general(x, w, jnp.array([4, 8], jnp.int32), numbers)

    layers = trace_layers(struct(12, 8), apply_fn, struct(16, 12))
    assert len(layers) == 0
    assert "uses it mixed with others" in layers.unvisited[0].reason


def test_a_tied_embedding_is_one_row_with_two_uses():
    layers = traced("linen_decoder")
    assert rows(layers, "path", "kind", "uses")[0] == ("params/Embed_0/embedding", "embed", 2)
    assert len(layers) == 7


def test_scanned_layers_are_stacked_and_used_once_each():
    layers = traced("linen_decoder")
    assert {(layer.stacked, layer.uses) for layer in layers[1:]} == {(3, 1)}
    assert rows(layers[1:], "fan_in", "fan_out") == [(16, 16)] * 4 + [(16, 32), (32, 16)]
    assert rows(traced("plain_scan"), "stacked", "stack_axes", "in_axes") == [(6, (0,), (1,))]


def test_weights_that_a_loop_keeps_are_used_once_an_iteration():
    for name in ("plain_fori_loop", "plain_weights_in_carry"):
        assert rows(traced(name), "path", "stacked", "uses") == [("w", 1, 3)]
    assert {layer.uses for layer in traced("linen_lstm")} == {5}
    assert rows(traced("linen_albert"), "uses") == [(4,), (1,)]


def test_slices_of_one_leaf_are_layers_of_their_own():
    layers = traced("plain_indexed")
    assert [layer.region[0] for layer in layers] == [(i, i + 1) for i in range(4)]
    assert (
        rows(traced("plain_fused_attention")[1:4], "path", "shape", "fan_in", "fan_out") == [("qkv", (8, 8), 8, 8)] * 3
    )


def test_segments_of_a_fused_kernel_are_layers_of_their_own():
    layers = traced("linen_lstm")
    assert len(layers) == 8
    assert {(layer.fan_in, layer.fan_out) for layer in layers} == {(7, 7), (6, 7)}


def test_the_gain_of_a_normalised_kernel_is_the_leaf():
    paths = [layer.path for layer in traced("linen_weight_norm")]
    assert all(path.endswith("kernel/scale") for path in paths)
    assert rows(traced("plain_weight_standardised"), "path", "fan_in") == [("gain", 27), ("out", 6)]


def test_multiplied_masked_and_reshaped_kernels_are_weights():
    layers = traced("plain_multiplied")
    assert rows(layers, "path", "fan_in", "fan_out") == [("equalised", 12, 16), ("masked", 16, 16), ("flat", 16, 5)]
    assert (layers["flat"].view, layers["flat"].in_axes, layers["flat"].out_axes) == ((5, 16), (1,), (0,))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "elu", "softplus", "leaky_relu", "mish", "selu"])
def test_the_activation_that_follows_is_found_with_its_gain(name):
    activation = getattr(jax.nn, name)

    def apply_fn(p, x):
        return activation(x @ p["a"] + p["b"][None]) @ p["c"]

    layers = trace_layers({"a": struct(4, 8), "b": struct(8), "c": struct(8, 2)}, apply_fn, struct(5, 4))
    assert layers["a"].activation.name == name
    assert layers["c"].activation is None
    assert jaxinit.gain(layers["a"].activation) == pytest.approx(jaxinit.gain(activation), rel=1e-5)
    assert layers["a"].activation(jnp.ones((2, 3, 1))).shape == (2, 3, 1)


def test_an_activation_of_the_user_is_cut_out_of_the_program():
    def snake(x):
        return x + jnp.sin(3 * x) ** 2 / 3

    layers = trace_layers([struct(4, 8), struct(8, 2)], lambda p, x: snake(x @ p[0]) @ p[1], struct(5, 4))
    assert jaxinit.gain(layers[0].activation) == pytest.approx(jaxinit.gain(snake), rel=1e-5)


def test_activations_are_equal_if_they_are_the_same_steps():
    def leaky(slope):
        return lambda x: jnp.maximum(x, slope * x) ** 2

    def apply_fn(p, x):
        for w, f in zip(p, (leaky(0.1), leaky(0.1), leaky(0.2), jnp.tanh, leaky(0.1)), strict=True):
            x = f(x @ w)
        return x

    widths = (8, 4, 16, 8, 8, 12)
    params = [jnp.ones(shape) for shape in itertools.pairwise(widths)]
    first, same, other, tanh, last = (layer.activation for layer in trace_layers(params, apply_fn, jnp.ones((2, 8))))
    assert first == same == last
    assert len({first, same, last}) == 1
    assert len({first, other, tanh}) == 3
    again = trace_layers(params, apply_fn, jnp.ones((5, 8)))[0].activation
    assert again == first
    assert jaxinit.gain(again) == jaxinit.gain(first) != jaxinit.gain(other)


def test_no_activation_before_a_normalisation_or_where_the_output_goes_on_as_it_is():
    assert traced("linen_resnet")["params/ResNetBlock_0/Conv_0/kernel"].activation is None

    def apply_fn(p, x):
        h = x @ p[0]
        return h + jnp.tanh(h) @ p[1]

    assert trace_layers([struct(4, 4), struct(4, 4)], apply_fn, struct(5, 4))[0].activation is None


def test_layers_of_a_branch_know_their_skip_connection():
    layers = traced("linen_resnet")
    members = {layer.path.removeprefix("params/"): (layer.skip, layer.position) for layer in layers}
    assert members["Conv_0/kernel"] == (None, None)
    assert members["ResNetBlock_0/Conv_0/kernel"] == (0, 0)
    assert members["ResNetBlock_0/Conv_1/kernel"] == (0, 1)
    assert members["ResNetBlock_1/Conv_1/kernel"] == (1, 1)
    assert members["ResNetBlock_1/Conv_2/kernel"] == (None, None)  # the shortcut's projection
    assert members["Dense_0/kernel"] == (None, None)
    vit = traced("linen_vit")
    assert [layer.skip for layer in vit] == [None, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, None]
    assert {layer.branch_length for layer in vit} == {None, 2}  # queries, keys and values lie beside one another
    for recurrent in ("linen_gru", "linen_lstm"):
        assert {layer.skip for layer in traced(recurrent)} == {None}


def test_leaves_that_nothing_reads_are_unused_and_others_are_not():
    params = {"w": struct(4, 8), "b": struct(8), "never": struct(3, 3), "count": struct(dtype=jnp.int32)}
    layers = trace_layers(params, lambda p, x: x @ p["w"] + p["b"][None], struct(5, 4))
    assert layers.unused == ("never",)


def test_what_cannot_be_entered_is_listed_with_the_reason():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def apply_fn(p, x):
        hidden = jax.shard_map(
            lambda x, w: jnp.tanh(x @ w), mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data")
        )(x, p["inside"])
        return hidden @ p["outside"]

    params = {"inside": jnp.ones((4, 8)), "outside": jnp.ones((8, 2))}
    x = jax.random.normal(jax.random.key(0), (16, 4))
    layers = trace_layers(params, apply_fn, x)
    assert [layer.path for layer in layers] == ["outside"]
    assert [entry.path for entry in layers.unvisited] == ["inside"]
    assert "shard_map" in layers.unvisited[0].reason
    new, report = jaxinit.lsuv(params, apply_fn, x, return_report=True)
    assert float(jnp.std(jax.jit(apply_fn)(new, x))) == pytest.approx(1, abs=1e-3)
    assert report.unvisited == (("inside", layers.unvisited[0].reason),)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (lambda w, x: jax.pure_callback(np.matmul, struct(16, 12), x, w[0]), "pure_callback"),
        (lambda w, x: jax.scipy.linalg.solve_triangular(w[0], x.T).T, "triangular_solve"),
    ],
)
def test_a_product_of_a_kind_that_is_not_read_is_listed(product, name):
    layers = trace_layers(struct(2, 12, 12), product, struct(16, 12))
    assert len(layers) == 0
    assert name in layers.unvisited[0].reason


def test_a_weight_that_is_used_inhomogeneously_elsewhere_is_refused_and_named():
    def apply_fn(p, x):
        return (x @ p["w"]) * jnp.exp(p["w"]).sum() @ p["out"]

    layers = trace_layers({"w": struct(4, 4), "out": struct(4, 2)}, apply_fn, struct(5, 4))
    assert "not homogeneous" in layers["w"].note
    assert layers["out"].note is None


def test_a_weight_that_is_read_before_its_first_layer_is_refused():
    def apply_fn(p, x):
        return jnp.tanh(x + p["w"][0][None]) @ p["w"]

    (layer,) = trace_layers({"w": struct(4, 4)}, apply_fn, struct(5, 4))
    assert "before the first layer" in layer.note


def test_a_penalty_on_the_weights_does_not_refuse_them():
    def apply_fn(p, x):
        return x @ p["w"], jnp.sum(p["w"] ** 2) + jnp.exp(p["w"]).sum()

    (layer,) = trace_layers({"w": struct(4, 4)}, apply_fn, struct(5, 4))
    assert layer.note is None


def test_the_table_is_text_html_json_and_a_static_pytree():
    layers = traced("linen_unet")
    assert "params/ConvTranspose_0/kernel" in str(layers)
    assert "<pre>" in layers._repr_html_()
    assert len(json.dumps(layers.to_dict())) > 100
    assert jax.tree.leaves(layers) == []
    assert jax.jit(lambda table: len(table))(layers) == len(layers)
    with pytest.raises(KeyError, match="no layer has the path 'nothing'"):
        layers["nothing"]


def test_a_module_in_place_of_a_function_is_an_error_that_helps():
    with pytest.raises(TypeError, match=r"module\.apply"):
        trace_layers({}, "model", None)
    with pytest.raises(TypeError, match=r"jaxinit\.nnx"):
        jaxinit.linen.trace_layers(lambda x: x, {}, None)
    with pytest.raises(TypeError, match=r"jaxinit\.linen"):
        jaxinit.nnx.trace_layers(lambda x: x, None)


@pytest.mark.parametrize(
    "weight",
    [
        lambda w: jnp.where(jnp.arange(12)[:, None] > 3, w, 0.0),
        jnp.tril,
        lambda w: jnp.pad(w, ((0, 0), (1, 1))),
        lambda w: jnp.tile(w, (1, 2)),
        lambda w: w[jnp.arange(12)[::-1]],
        lambda w: w + w.T,
        lambda w: 3.0 * w,
        lambda w: abs(w) / jnp.float32(2),
        lambda w: lax.cond(w[0, 0] > 0, lambda: w * 0.25, lambda: w),
    ],
    ids=["where", "tril", "pad", "tile", "permuted", "symmetric", "multiplied", "abs", "by sign"],
)
def test_what_is_homogeneous_in_a_leaf_is_a_weight(weight):
    x = jax.random.normal(jax.random.key(0), (64, 12))
    w = jax.random.normal(jax.random.key(1), (12, 12))

    def apply_fn(w, x):
        return x @ weight(w)

    (layer,) = trace_layers(w, apply_fn, x)
    assert (layer.kind, layer.fan_in) == ("dense", 12)
    assert float(jnp.std(apply_fn(jaxinit.lsuv(w, apply_fn, x), x))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (lambda w: w + 1, "not homogeneous"),
        (lambda w: w**2, "not homogeneous"),
        (lambda w: w.astype(jnp.int8).astype(jnp.float32), "not homogeneous"),
        (lambda w: lax.cond(jnp.linalg.norm(w) > 8, lambda: w * 0.25, lambda: w), "not homogeneous"),
        (lambda w: lax.while_loop(lambda c: jnp.linalg.norm(c) > 1, lambda c: c * 0.5, w), "not homogeneous"),
    ],
    ids=["shifted", "squared", "rounded", "clipped", "halved"],
)
def test_a_matrix_that_no_scale_can_serve_is_listed_with_the_reason(weight, reason):
    layers = trace_layers(struct(12, 12), lambda w, x: x @ weight(w), struct(5, 12))
    assert len(layers) == 0
    assert reason in layers.unvisited[0].reason


@pytest.mark.parametrize(
    "weight",
    [
        lambda w: w / jnp.linalg.norm(w),
        lambda w: (w - w.mean(0)[None]) / jnp.sqrt(w.var(0) + 1e-5)[None],
        lambda w: w / jnp.maximum(jnp.linalg.norm(w, axis=0), 1e-6)[None],
        lambda w: w.astype(bool).astype(jnp.float32),
    ],
    ids=["normalised", "standardised", "with a guard", "nonzero"],
)
def test_a_kernel_that_no_scale_changes_is_a_layer_that_says_so(weight):
    (layer,) = trace_layers(struct(12, 7), lambda w, x: x @ weight(w), struct(5, 12))
    assert (layer.path, layer.fan_in, layer.fan_out) == ("", 12, 7)
    assert "scaling it changes nothing" in layer.note


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda p, x: lax.cond(jnp.linalg.norm(p["w"]) > 8, lambda: x @ p["w"] * 0.25, lambda: x @ p["w"]),
        lambda p, x: lax.while_loop(lambda h: jnp.max(h) > p["w"].max(), lambda h: jnp.tanh(h @ p["w"]), x),
    ],
    ids=["cond", "while"],
)
def test_a_weight_that_decides_what_is_done_with_its_layer_is_refused(apply_fn):
    (layer,) = trace_layers({"w": struct(12, 12)}, apply_fn, struct(5, 12))
    assert layer.note is not None


def test_a_leaf_that_decides_is_read():
    def apply_fn(p, x):
        return x @ lax.cond(p["decides"] > 1, lambda: p["w"] * 0.25, lambda: p["w"])

    layers = trace_layers({"w": struct(12, 12), "decides": struct()}, apply_fn, struct(5, 12))
    assert (layers["w"].note, layers.unused) == (None, ())


MINGLED = {
    "cond": lambda w, x: x @ lax.cond(x.sum() > 0, lambda: w[0], lambda: w[1]),
    "where": lambda w, x: x @ jnp.where(x.sum() > 0, w[0], w[1]),
    "while": lambda w, x: (
        x @ lax.while_loop(lambda c: c[0] < x.sum(), lambda c: (c[0] + 1, c[1] * 0.5), (0.0, w[0]))[1]
    ),
    "masked": lambda w, x: x @ (w[0] * jnp.sign(x[:12])),
    "modulated": lambda w, x: jnp.einsum("bi,bio->bo", x, w[0][None] * jnp.cos(x)[:, :, None]),
    "scan": lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w * jnp.cos(x[:2, :1, None]))[0],
}


@pytest.mark.parametrize("name", MINGLED)
def test_weights_that_data_chooses_or_multiplies_are_listed_and_drawn_as_matrices(name):
    layers = trace_layers(struct(2, 12, 12), MINGLED[name], struct(16, 12))
    assert (len(layers), layers.unused) == (0, ())
    assert [entry.reason for entry in layers.unvisited] == [
        "data chooses it, or multiplies it, before it meets the layer's input"
    ]
    drawn, report = jaxinit.initialize(
        jax.random.key(0), struct(2, 12, 12), MINGLED[name], struct(16, 12), return_report=True
    )
    assert report.rows[0].role == "kernel"
    assert float(jnp.std(drawn)) > 0.1


def test_arrays_that_are_added_are_not_listed_as_weights_and_scales_of_attention_are_unknown():
    def apply_fn(p, x):
        h = jnp.where(x > 0, x, p["token"][None]) + p["position"]
        q, k = (jnp.reshape(h @ p[name], (5, 2, 3)) * p["scale"][None] for name in ("q", "k"))
        return jnp.einsum("bhd,chd->bhc", q, k)

    params = {"token": struct(12), "position": struct(5, 12), "q": struct(12, 6), "k": struct(12, 6)}
    layers = trace_layers({**params, "scale": struct(2, 3)}, apply_fn, struct(5, 12))
    assert [layer.path for layer in layers] == ["q", "k"]
    assert [entry.path for entry in layers.unvisited] == ["scale"]
    assert layers.unused == ()


def test_branches_under_vmap_are_layers_of_their_own():
    def apply_fn(w, x):
        branches = [lambda v, w=w[i]: jnp.tanh(v @ w) for i in range(3)]
        return jax.vmap(lambda v: lax.switch(jnp.argmax(v) % 3, branches, v))(x)

    x = jax.random.normal(jax.random.key(0), (64, 12))
    w = 5 * jax.random.normal(jax.random.key(1), (3, 12, 12))
    layers = trace_layers(w, apply_fn, x)
    assert [(layer.region[0], layer.fan_in, layer.note) for layer in layers] == [
        ((i, i + 1), 12, None) for i in range(3)
    ]
    new = jaxinit.lsuv(w, apply_fn, x)
    np.testing.assert_allclose(jnp.std(x @ new, axis=(1, 2)), 1, atol=1e-4)


def test_integers_are_no_weights():
    params = {"q": struct(4, 4, dtype=jnp.int8), "scale": struct()}
    layers = trace_layers(params, lambda p, x: x @ (p["q"].astype(jnp.float32) * p["scale"]), struct(5, 4))
    assert [(layer.path, layer.fan_in) for layer in layers] == [("scale", 4)]


@pytest.mark.parametrize(
    ("add", "shape"),
    [
        (lambda y, b: y.reshape(64, 2, 6) + b[None], (2, 6)),
        (lambda y, b: jnp.swapaxes(y.reshape(64, 2, 6), 0, 1) + b[:, None], (2, 6)),
        (lambda y, b: y - b[None], (12,)),
        (lambda y, b: y.reshape(8, 8, 12) + b[None], (8, 12)),
    ],
    ids=["heads", "moved heads", "subtracted", "positions"],
)
def test_biases_are_found_however_they_are_added(add, shape):
    x = jax.random.normal(jax.random.key(0), (64, 12))
    params = {
        "w": jax.random.normal(jax.random.key(1), (12, 12)),
        "b": 0.7 * jax.random.normal(jax.random.key(2), shape),
    }

    def apply_fn(p, x):
        return add(x @ p["w"], p["b"])

    assert trace_layers(params, apply_fn, x)[0].has_bias
    assert float(jnp.std(apply_fn(jaxinit.lsuv(params, apply_fn, x), x))) == pytest.approx(1, abs=1e-4)


def spelled_out(x, w):
    return (x[..., None] * w[None]).sum(1)


@pytest.mark.parametrize("product", [spelled_out, lambda x, w: (x[:, None] * w.T[None]).sum(2)])
def test_a_bias_that_is_taken_off_before_a_layer_that_is_spelled_out_is_not_a_mean(product):
    """The next weight multiplies the difference, as the deviations of a batch normalization would."""
    params = {"w": struct(3, 8, 8), "b": struct(3, 8)}

    def apply_fn(p, x):
        for i in range(3):
            x = product(x, p["w"][i]) - p["b"][i][None]
        return x

    assert [layer.has_bias for layer in trace_layers(params, apply_fn, struct(4, 8))] == [True] * 3

    def normalized(p, x):
        return (product(x, p["w"][0]) - p["b"][0][None]) * lax.rsqrt(p["b"][1] + 1e-5)[None]

    assert [layer.has_bias for layer in trace_layers(params, normalized, struct(4, 8))] == [False]


def test_a_stack_of_weights_may_be_walked_along_in_python():
    def apply_fn(stack, x):
        for w in stack:
            x = jnp.tanh(x @ w)
        return x

    layers = trace_layers(struct(3, 8, 8), apply_fn, struct(4, 8))
    assert [layer.region[0] for layer in layers] == [(0, 1), (1, 2), (2, 3)]
    assert all(layer.fan_in == 8 and layer.activation.name == "tanh" for layer in layers)


@pytest.mark.parametrize("hand_on", [lax.optimization_barrier, jax.device_put], ids=["barrier", "device_put"])
def test_what_hands_on_several_values_as_they_are_mixes_none(hand_on):
    def apply_fn(p, x):
        p, x = hand_on((p, x))
        return jnp.tanh(x @ p["a"]) @ p["b"]

    params = {"a": struct(12, 16), "b": struct(16, 4), "c": struct(4)}
    layers = trace_layers(params, apply_fn, struct(8, 12))
    assert [(layer.path, layer.uses, layer.shape) for layer in layers] == [("a", 1, (12, 16)), ("b", 1, (16, 4))]
    assert layers.unused == ("c",)
    params = {"a": jnp.ones((12, 16)), "b": jnp.eye(16, 4), "c": jnp.ones(4)}
    x = jax.random.normal(jax.random.key(0), (64, 12))
    new, report = jaxinit.lsuv(params, jax.jit(apply_fn), x, return_report=True)
    assert report.problems() == {}
    assert float(jnp.std(apply_fn(new, x))) == pytest.approx(1, abs=1e-3)


@jax.custom_vjp
def straight_through(x, w):
    return jnp.round(4 * jnp.tanh(x)) / 4, jnp.sum(w**2)


straight_through.defvjp(
    lambda x, w: (straight_through(x, w), x), lambda x, g: (g[0] * (1 - jnp.tanh(x) ** 2), jnp.zeros((8, 8)))
)


def test_of_the_sign_and_logarithm_of_a_determinant_one_may_be_unused():
    layers = trace_layers(struct(8, 8), lambda w, x: (x @ w, jnp.linalg.slogdet(w)[1]), struct(4, 8))
    assert [layer.path for layer in layers] == [""]


def test_of_a_function_with_its_own_derivative_an_output_may_be_unused():
    def rounded(p, x):
        # The matrix is an argument of the function alone: without it, the function could not be called.
        return straight_through(x @ p["first"], p["other"].T)[0] @ p["second"]

    params = {name: 0.4 * jnp.eye(8) for name in ("first", "other", "second")}
    layers = trace_layers(params, rounded, struct(4, 8))
    assert [layer.path for layer in layers] == ["first", "second"]
    x = jax.random.normal(jax.random.key(0), (32, 8))
    report = jaxinit.diagnose(params, rounded, x)
    assert float(report.gradient_norm[0]) > 0  # that of the rounding itself would be zero


def unused_slices(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), x @ p["aux"]), x, p["stack"])[0]


def unused_carry(p, x):
    return lax.scan(lambda c, w: ((jnp.tanh(c[0] @ w), c[1] + c[0] @ p["aux"]), None), (x, x), p["stack"])[0][0]


def unused_in_a_while_loop(p, x):
    def body(c):
        i, x, _ = c
        return i + 1, jnp.tanh(x @ p["stack"][0]), x @ p["aux"]

    return lax.while_loop(lambda c: c[0] < 3, body, (0, x, x))[1]


def unused_in_a_branch(p, x):
    def layer(x):
        return jnp.tanh(x @ p["stack"][0]), x @ p["aux"]

    return lax.cond(x.sum() > -1e9, layer, lambda x: (x, x), x)[0]


def unused_key(p, x):
    def body(c, w):
        key, x = c
        return (jax.random.split(key)[0], jnp.tanh(x @ w)), (key, x @ p["aux"])

    return lax.scan(body, (jax.random.key(0), x), p["stack"])[0][1]


@pytest.mark.parametrize(
    "apply_fn", [unused_slices, unused_carry, unused_in_a_while_loop, unused_in_a_branch, unused_key]
)
def test_what_loops_and_branches_compute_for_nothing_is_no_layer(apply_fn):
    params = {"stack": 0.1 * jnp.ones((3, 8, 8)), "aux": jnp.ones((8, 8))}
    x = jax.random.normal(jax.random.key(0), (32, 8))
    layers = trace_layers(params, apply_fn, x)
    assert [layer.path for layer in layers] == ["stack"]
    assert layers.unused == ("aux",)
    new = jax.jit(lambda p: jaxinit.lsuv(p, apply_fn, x, method="fused"))(params)
    np.testing.assert_array_equal(new["aux"], params["aux"])
    assert float(jnp.std(x @ new["stack"][0])) == pytest.approx(1, abs=1e-3)


def test_a_carry_that_only_another_carry_reads_is_computed():
    def apply_fn(p, x):
        def body(c, _):
            return (c[1], c[2], jnp.tanh(c[2] @ p["w"]), c[3] @ p["aux"]), None

        return lax.scan(body, (x, x, x, x), None, 4)[0][0]

    layers = trace_layers({"w": struct(8, 8), "aux": struct(8, 8)}, apply_fn, struct(4, 8))
    assert [(layer.path, layer.uses) for layer in layers] == [("w", 4)]
    assert layers.unused == ("aux",)


SHARES = {
    "softmax": lambda z: jax.nn.softmax(z),
    "best two": lambda z: jnp.where(z >= jnp.sort(z)[:, -2:-1], jax.nn.softmax(z), 0.0),
    "best two, by their sum": lambda z: (lambda g: g / g.sum(1, keepdims=True))(
        jnp.where(z >= jnp.sort(z)[:, -2:-1], jax.nn.sigmoid(z), 0.0)
    ),
}


@pytest.mark.parametrize("gates", SHARES)
@pytest.mark.parametrize("mixture", ["product", "sum"])
def test_a_mean_of_outputs_by_shares_adds_no_inputs(gates, mixture):
    """A mean over experts in one kernel, which has the layout of the weights that a hypernetwork makes."""
    params = {"gate": struct(8, 4), "experts": struct(8, 4, 6)}

    def apply_fn(p, x, gates):
        outputs, shares = jnp.einsum("bd,deo->beo", x, p["experts"]), gates(x @ p["gate"])
        return (
            jnp.einsum("beo,be->bo", outputs, shares) if mixture == "product" else (outputs * shares[..., None]).sum(1)
        )

    layers = trace_layers(params, lambda p, x: apply_fn(p, x, SHARES[gates]), struct(5, 8))
    assert layers["experts"].fan_in == 8
    # Of numbers that do not add up to one, each is an input of the weight that is made.
    layers = trace_layers(params, lambda p, x: apply_fn(p, x, jnp.tanh), struct(5, 8))
    assert layers["experts"].fan_in == 4 * 8
