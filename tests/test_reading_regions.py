"""Layers that are written out, or of several leaves: fans by running the program on ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def fan_in_by_ones(params, linear, x):
    """How many products an output is the sum of: the layer's output for weights and data of ones."""
    return float(np.max(linear(jax.tree.map(jnp.ones_like, params), jnp.ones_like(x))))


def fan_out_by_ones(params, linear, x):
    """How many outputs an element of the data goes into: the largest derivative of the sum of all of them."""
    ones = jax.tree.map(jnp.ones_like, params)
    return float(np.max(jax.grad(lambda z: jnp.sum(linear(ones, z)))(jnp.ones_like(x))))


def shifted(x, i):
    return jnp.roll(x, i, 1)


def by_padding(w, x):
    padded = jnp.pad(x, ((0, 0), (3, 0), (0, 0)))
    return sum(padded[:, i : i + x.shape[1]] * w[i][None, None] for i in range(4))


def by_loop(w, x):
    return jax.lax.fori_loop(0, 4, lambda i, y: y + shifted(x, i) * w[i][None, None], jnp.zeros_like(x))


def by_scan(w, x):
    def step(y, turn):
        i, own = turn
        return y + shifted(x, i) * own[None, None], None

    return jax.lax.scan(step, jnp.zeros_like(x), (jnp.arange(4), w))[0]


TAPS = {
    "rolled": lambda w, x: sum(shifted(x, i) * w[i][None, None] for i in range(4)),
    "padded": by_padding,
    "backwards": lambda w, x: sum(w[3 - i][None, None] * shifted(x, i) for i in range(4)),
    "split": lambda w, x: sum(shifted(x, i) * own[None] for i, own in enumerate(jnp.split(w, 4))),
    "einsum": lambda w, x: sum(jnp.einsum("btd,d->btd", shifted(x, i), w[i]) for i in range(4)),
    "fori_loop": by_loop,
    "scan": by_scan,
}


@pytest.mark.parametrize("form", TAPS)
def test_a_depthwise_convolution_of_shifted_copies_is_a_layer_with_its_taps_as_fan_in(form):
    w, x = normal(0, 4, 8), normal(1, 32, 16, 8)
    linear = TAPS[form]
    (layer,) = jaxinit.trace_layers({"w": w}, lambda p, x: jax.nn.relu(linear(p["w"], x)), x)
    assert (layer.kind, layer.receptive_field, str(layer.activation)) == ("depthwise", 4, "<relu>")
    assert layer.fan_in == fan_in_by_ones(w, linear, x) == 4
    assert layer.fan_out == fan_out_by_ones(w, linear, x) == 4


@pytest.mark.parametrize("form", TAPS)
def test_lsuv_scales_a_depthwise_convolution_of_shifted_copies(form):
    w, x = normal(0, 4, 8), normal(1, 32, 16, 8)
    new = jaxinit.lsuv({"w": w}, lambda p, x: jax.nn.relu(TAPS[form](p["w"], x)), x)
    np.testing.assert_allclose(jnp.std(TAPS[form](new["w"], x)), 1, rtol=1e-3)


def test_initialize_draws_a_depthwise_convolution_by_its_taps():
    w, x = jax.ShapeDtypeStruct((4, 512), jnp.float32), normal(1, 8, 16, 512)
    new = jaxinit.initialize(jax.random.key(0), w, lambda p, x: jax.nn.relu(TAPS["rolled"](p, x)), x)
    # 2048 draws of variance 1 / 4: the standard error of the mean square is 3%.
    np.testing.assert_allclose(jnp.mean(new**2), 1 / 4, rtol=0.15)


def test_two_dimensional_taps_count_all_of_them():
    w, x = normal(0, 3, 3, 8), normal(1, 4, 6, 6, 8)

    def linear(w, x):
        return sum(jnp.roll(x, (i, j), (1, 2)) * w[i, j][None, None, None] for i in range(3) for j in range(3))

    (layer,) = jaxinit.trace_layers(w, lambda w, x: jnp.tanh(linear(w, x)), x)
    assert (layer.fan_in, layer.receptive_field) == (fan_in_by_ones(w, linear, x), 9)
    new = jaxinit.lsuv(w, lambda w, x: jnp.tanh(linear(w, x)), x)
    np.testing.assert_allclose(jnp.std(linear(new, x)), 1, rtol=1e-3)


CONTRACTIONS = {
    "in, out": ((8, 5), lambda w, x: jnp.sum(x[..., None] * w[None, None], -2)),
    "out, in": ((5, 8), lambda w, x: jnp.sum(x[..., None, :] * w[None, None], -1)),
    "mean": ((8, 5), lambda w, x: 8 * jnp.mean(x[..., None] * w[None, None], -2)),
    "in two steps": ((4, 2, 5), lambda w, x: jnp.sum(jnp.sum(x.reshape(32, 16, 4, 2, 1) * w[None, None], -3), -2)),
    "row by row": ((5, 8), lambda w, x: jax.vmap(lambda r: jnp.sum(x * r[None, None], -1), out_axes=-1)(w)),
    "einsum and sum": ((8, 5), lambda w, x: jnp.sum(jnp.einsum("btd,de->btde", x, w), -2)),
    "input by input": ((8, 5), lambda w, x: sum(x[..., i, None] * w[i][None, None] for i in range(8))),
}


@pytest.mark.parametrize("form", CONTRACTIONS)
def test_a_contraction_of_products_is_a_dense_layer(form):
    shape, linear = CONTRACTIONS[form]
    w, x = normal(0, *shape), normal(1, 32, 16, 8)
    (layer,) = jaxinit.trace_layers({"w": w}, lambda p, x: jnp.tanh(linear(p["w"], x)), x)
    assert layer.fan_in == pytest.approx(fan_in_by_ones(w, linear, x))
    assert layer.fan_out == pytest.approx(fan_out_by_ones(w, linear, x))
    assert (layer.fan_in, layer.fan_out, str(layer.activation)) == (8, 5, "<tanh>")
    new = jaxinit.lsuv({"w": w}, lambda p, x: jnp.tanh(linear(p["w"], x)), x)
    np.testing.assert_allclose(jnp.std(linear(new["w"], x)), 1, rtol=1e-3)


# Norms


def centred(x):
    return x - jnp.mean(x, -1, keepdims=True)


NORMS = {
    "layer": lambda x, g: centred(x) / jnp.sqrt(jnp.mean(centred(x) ** 2, -1, keepdims=True) + 1e-6) * g[None, None],
    "rms": lambda x, g: x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * g[None, None],
    "gain first": lambda x, g: centred(x) * (g[None, None] * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6)),
    "batch": lambda x, g: (
        (x - jnp.mean(x, (0, 1))[None, None]) / jnp.sqrt(jnp.var(x, (0, 1)) + 1e-5)[None, None] * g[None, None]
    ),
    "einsum": lambda x, g: jnp.einsum("btd,d->btd", jax.nn.standardize(x), g),
    "one plus": lambda x, g: jax.nn.standardize(x) * (1 + g)[None, None],
}
USES = {
    "dense": lambda y, p: jnp.tanh(y @ p["v"]),
    "another norm": lambda y, p: jnp.tanh(jax.nn.standardize(y) @ p["v"]),
    "mean over channels": lambda y, p: jnp.tanh(y @ p["v"]) + jnp.mean(y, -1, keepdims=True),
    "mean over channels alone": lambda y, p: jnp.mean(y, -1, keepdims=True) @ p["v"][:1],
    "scores": lambda y, p: jax.nn.softmax(jnp.einsum("btd,bsd->bts", y, y @ p["v"])),
    "scores by a sum": lambda y, p: jax.nn.softmax(jnp.sum(y[:, :, None] * (y @ p["v"])[:, None], -1)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_gain_of_a_norm_is_no_layer(norm, use):
    params, x = {"g": jnp.ones(8), "w": normal(0, 8, 8), "v": normal(1, 8, 8)}, normal(2, 8, 16, 8)
    layers = jaxinit.trace_layers(params, lambda p, x: USES[use](NORMS[norm](x @ p["w"], p["g"]), p), x)
    assert {path for layer in layers for path in layer.paths} == {"w", "v"}


@pytest.mark.parametrize("norm", NORMS)
def test_initialize_leaves_the_gain_of_a_norm_neutral(norm):
    params, x = {"g": jnp.full(8, 3.0), "w": normal(0, 8, 8), "v": normal(1, 8, 8)}, normal(2, 8, 16, 8)
    new = jaxinit.initialize(
        jax.random.key(0), params, lambda p, x: jnp.tanh(NORMS[norm](x @ p["w"], p["g"]) @ p["v"]), x
    )
    np.testing.assert_array_equal(new["g"], np.full(8, 0.0 if norm == "one plus" else 1.0))


# Complex weights


def parts(p):
    return cast(p["re"]) + 1j * cast(p["im"])


def cast(x):
    return x.astype(jnp.complex64)


def apart(p, x):
    a, b = x, x[::-1]
    return jnp.stack([a @ p["re"] - b @ p["im"], a @ p["im"] + b @ p["re"]])


def apart_modes(p, x):
    """The spectral layer of a Fourier neural operator in real arithmetic."""
    a, b = x.reshape(-1, 4, 16), x[::-1].reshape(-1, 4, 16)

    def product(u, w):
        return jnp.einsum("bki,iok->bko", u, w)

    return jnp.stack([product(a, p["re"]) - product(b, p["im"]), product(b, p["re"]) + product(a, p["im"])])


PAIR = {"re": (64, 48), "im": (64, 48)}
COMPLEX = {
    "re + 1j im": (PAIR, lambda p, x: cast(x) @ parts(p), 64),
    "lax.complex": (PAIR, lambda p, x: jnp.einsum("bd,de->be", cast(x), jax.lax.complex(p["re"], p["im"])), 64),
    "pairs": ({"w": (64, 48, 2)}, lambda p, x: cast(x) @ (cast(p["w"][..., 0]) + 1j * cast(p["w"][..., 1])), 64),
    "pairs in front": ({"w": (2, 48, 64)}, lambda p, x: cast(x) @ jax.lax.complex(p["w"][0], p["w"][1]).T, 64),
    "normalised modes": (
        {"re": (48, 64), "im": (48, 64), "g": (48,)},
        lambda p, x: cast(x) @ (parts(p) * cast(jnp.exp(p["g"]))[:, None]).T,
        64,
    ),
    "apart": (PAIR, apart, 128),
    "apart, by modes": ({"re": (16, 48, 4), "im": (16, 48, 4)}, apart_modes, 32),
}


@pytest.mark.parametrize("form", COMPLEX)
def test_a_complex_weight_is_one_layer_and_its_parts_share_the_variance(form):
    shapes, linear, fan_in = COMPLEX[form]
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    x = normal(9, 256, 64)
    (layer,) = jaxinit.trace_layers(params, linear, x)
    assert layer.fan_in == fan_in
    assert set(layer.paths) == set(shapes) - {"g"}
    new = jaxinit.initialize(jax.random.key(0), params, linear, x)
    # What a leaf that is kept multiplies by, such as the normalization of a recurrence's modes, stays what it is.
    due = jnp.mean(jnp.exp(2 * params["g"])) if "g" in params else 1
    # The standard error over 6144 draws of the weight is 2%, and 4% where a few modes count most.
    np.testing.assert_allclose(jnp.mean(jnp.abs(linear(new, x)) ** 2), due, rtol=0.1)
    if "re" in new:
        np.testing.assert_allclose(jnp.mean(new["re"] ** 2), jnp.mean(new["im"] ** 2), rtol=0.1)
    if "g" in new:
        np.testing.assert_array_equal(new["g"], params["g"])


@pytest.mark.parametrize("form", COMPLEX)
def test_lsuv_scales_the_parts_of_a_complex_weight_together(form):
    shapes, linear, _ = COMPLEX[form]
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    x = normal(9, 256, 64)
    new = jaxinit.lsuv(params, linear, x)
    y = linear(new, x)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.abs(y - jnp.mean(y)) ** 2)), 1, rtol=1e-2)
    if "re" in new:
        # The angle of every element stays.
        np.testing.assert_allclose(new["im"] / new["re"], params["im"] / params["re"], rtol=1e-4)


# Inputs side by side


def block(p, x):
    rows = [jnp.concatenate([p["a"], p["b"]], 1), jnp.concatenate([-p["b"], p["a"]], 1)]
    return jnp.concatenate([x, x[::-1]], -1) @ jnp.concatenate(rows)


BESIDE = {
    "inputs": (
        {"a": (64, 48), "b": (64, 48)},
        lambda p, x: jnp.concatenate([x, x[::-1]], -1) @ jnp.concatenate([*p.values()]),
    ),
    "uneven inputs": (
        {"a": (32, 48), "b": (96, 48)},
        lambda p, x: jnp.concatenate([x, x[::-1]], -1) @ jnp.concatenate([p["a"], p["b"]]),
    ),
    "blocks": ({"a": (64, 48), "b": (64, 48)}, block),
}


@pytest.mark.parametrize("form", BESIDE)
def test_leaves_side_by_side_along_the_inputs_are_one_layer(form):
    shapes, linear = BESIDE[form]
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    x = normal(9, 256, 64)
    (layer,) = jaxinit.trace_layers(params, lambda p, x: jnp.tanh(linear(p, x)), x)
    assert (layer.fan_in, set(layer.paths)) == (128, {"a", "b"})
    new = jaxinit.initialize(jax.random.key(0), params, linear, x)
    np.testing.assert_allclose(jnp.mean(linear(new, x) ** 2), 1, rtol=0.1)
    np.testing.assert_allclose(jnp.mean(new["a"] ** 2), jnp.mean(new["b"] ** 2), rtol=0.15)
    np.testing.assert_allclose(jnp.std(linear(jaxinit.lsuv(params, linear, x), x)), 1, rtol=1e-3)


# Scans over several leaves


def by_stack(ws, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h @ w), x, jnp.stack(ws))[1]


def by_stack_backwards(ws, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h @ w), x, jnp.stack(ws[::-1]), reverse=True)[1][::-1]


def by_concatenated_stacks(ws, x):
    whole = jnp.concatenate([jnp.stack(ws[:1]), jnp.stack(ws[1:])])
    return jax.lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), h @ w)), x, whole)[1]


SCANS = {"stack": by_stack, "backwards": by_stack_backwards, "concatenated": by_concatenated_stacks}


@pytest.mark.parametrize("form", SCANS)
def test_a_scan_over_several_leaves_is_read_step_by_step(form):
    ws, x = [normal(i, 8, 8) for i in range(3)], normal(9, 128, 8)
    layers = jaxinit.trace_layers(ws, SCANS[form], x)
    assert [(layer.path, layer.fan_in) for layer in layers] == [("0", 8), ("1", 8), ("2", 8)]
    new = jaxinit.lsuv(ws, SCANS[form], x)
    h = x
    for w in new:
        np.testing.assert_allclose(jnp.std(h @ w), 1, rtol=1e-3)
        h = jnp.tanh(h @ w)


def test_a_loop_that_picks_from_a_stack_of_leaves_is_read_step_by_step():
    ws, x = [normal(i, 8, 8) for i in range(3)], normal(9, 128, 8)

    def apply_fn(ws, x):
        whole = jnp.stack(ws)
        return jax.lax.fori_loop(0, 3, lambda i, h: jax.nn.relu(h @ whole[i]), x)

    layers = jaxinit.trace_layers(ws, apply_fn, x)
    assert [(layer.path, str(layer.activation)) for layer in layers] == [
        ("0", "<relu>"),
        ("1", "<relu>"),
        ("2", "<relu>"),
    ]


def test_a_scan_over_one_leaf_stays_a_loop():
    layers = jaxinit.trace_layers(
        normal(0, 3, 8, 8), lambda w, x: jax.lax.scan(lambda h, w: (h @ w, None), x, w)[0], normal(1, 4, 8)
    )
    assert [(layer.stacked, layer.shape) for layer in layers] == [(3, (3, 8, 8))]


# What is not read


@pytest.mark.parametrize(
    "follow",
    [
        lambda y, opaque: jnp.tanh(opaque(y)),
        lambda y, opaque: jnp.tanh(opaque(2.0 * y)),
        lambda y, opaque: jax.nn.relu(opaque(y.reshape(-1))),
    ],
)
def test_a_layer_whose_output_enters_what_is_not_read_says_so(follow):
    def opaque(y):
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(y.shape, y.dtype), y)

    w, x = normal(0, 8, 5), normal(1, 16, 8)
    (layer,) = jaxinit.trace_layers(w, lambda w, x: follow(x @ w, opaque), x)
    assert layer.activation is None
    assert "pure_callback" in layer.note
    (layer,) = jaxinit.trace_layers(w, lambda w, x: opaque(follow(x @ w, lambda y: y)), x)
    assert layer.note is None
    _, report = jaxinit.initialize(jax.random.key(0), w, lambda w, x: follow(x @ w, opaque), x, return_report=True)
    assert "pure_callback" in report.rows[0].reason


JOINED = {
    "outputs": lambda p, x: (x[..., None] * jnp.concatenate([p["a"], p["b"]], 1)[None]).sum(1),
    "outputs, inputs last": lambda p, x: (x[:, None] * jnp.concatenate([p["a"].T, p["b"].T])[None]).sum(-1),
    "einsum and sum": lambda p, x: (
        jnp.einsum("bd,df->bdf", x, 0.1 * jnp.concatenate([p["a"], p["b"]], 1)).sum(1) + p["bias"][None]
    ),
}


@pytest.mark.parametrize("form", JOINED)
def test_weights_that_are_joined_are_scaled_each_by_itself_in_layers_that_are_spelled_out(form):
    """The first has only one output, but it is a weight."""
    params = {"a": 7 * normal(0, 8, 1), "b": normal(1, 8, 5), "bias": 0.3 * normal(2, 6)}
    x = normal(3, 256, 8)
    layers = jaxinit.trace_layers(params, lambda p, x: jnp.tanh(JOINED[form](p, x)), x)
    assert [(layer.path, layer.fan_in, layer.fan_out) for layer in layers] == [("a", 8, 1), ("b", 8, 5)]
    assert [str(layer.activation) for layer in layers] == ["<tanh>"] * 2
    new = jaxinit.lsuv(params, lambda p, x: jnp.tanh(JOINED[form](p, x)), x, orthonormalize=False)
    y = JOINED[form](new, x)
    np.testing.assert_allclose([jnp.std(y[:, :1]), jnp.std(y[:, 1:])], 1, rtol=1e-3)


def test_weights_that_are_joined_along_inputs_are_one():
    params = {"a": 7 * normal(0, 3, 6), "b": normal(1, 5, 6)}
    x = normal(3, 256, 8)

    def linear(p, x):
        return (x[..., None] * jnp.concatenate([p["a"], p["b"]])[None]).sum(1)

    (layer,) = jaxinit.trace_layers(params, lambda p, x: jnp.tanh(linear(p, x)), x)
    assert (set(layer.paths), layer.fan_in) == ({"a", "b"}, 8)
    new = jaxinit.lsuv(params, lambda p, x: jnp.tanh(linear(p, x)), x, orthonormalize=False)
    np.testing.assert_allclose(jnp.std(linear(new, x)), 1, rtol=1e-3)


ONE_INPUT = {
    "product and sum": lambda w, x: (x[..., None] * w[None]).sum(1),
    "inputs last": lambda w, x: (x[:, None] * w.T[None]).sum(-1),
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_a_layer_of_one_input_that_is_spelled_out_is_one(form):
    w, x = 7 * normal(0, 1, 6), normal(1, 256, 1)
    (layer,) = jaxinit.trace_layers(w, lambda w, x: jnp.tanh(ONE_INPUT[form](w, x)), x)
    assert (layer.kind, layer.fan_in, layer.fan_out) == ("dense", 1, 6)
    new = jaxinit.lsuv(w, lambda w, x: jnp.tanh(ONE_INPUT[form](w, x)), x)
    np.testing.assert_allclose(jnp.std(ONE_INPUT[form](new, x)), 1, rtol=1e-3)


@pytest.mark.parametrize("pool", [jnp.mean, jnp.sum])
def test_a_scale_of_what_is_pooled_over_one_position_is_not_a_layer(pool):
    layers = jaxinit.trace_layers(
        normal(0, 8), lambda w, x: jnp.tanh(pool(x[:, None] * w[None, None], axis=1)), normal(1, 16, 8)
    )
    assert len(layers) == 0


def test_spelled_out_layers_follow_one_another_without_an_activation():
    def apply_fn(p, x):
        x = jnp.sum(x[..., None] * p["first"][None], -2)
        x = jnp.sum(x[..., None] * p["second"][None], -2) * p["gain"][None]
        return jnp.sum(x[..., None] * p["third"][None], -2)

    params = {"first": jnp.ones((4, 3)), "second": jnp.ones((3, 5)), "gain": jnp.ones(5), "third": jnp.ones((5, 2))}
    layers = jaxinit.trace_layers(params, apply_fn, jnp.ones((7, 4)))
    assert [(layer.path, layer.fan_in, layer.fan_out) for layer in layers] == [
        ("first", 4, 3),
        ("second", 3, 5),
        ("third", 5, 2),
    ]
    assert layers.unvisited == ()
