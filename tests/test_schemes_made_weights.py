"""Weights that a program makes of leaves or of data: `initialize` sets the variance where data meets them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
import jaxinit.schemes

WIDTH = 128


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def forward(layer, params, x):
    """The pre-activations of ReLU layers, one after another."""
    found = []
    for p in params:
        found.append(layer(p, x))
        x = jax.nn.relu(found[-1])
    return found


def drawn(layer, params, x):
    """The pre-activations under new parameters; ReLU follows every layer."""
    new = jaxinit.initialize(jax.random.key(5), params, lambda p, x: jax.nn.relu(forward(layer, p, x)[-1]), x)
    return [float(jnp.sqrt(jnp.mean(y**2))) for y in forward(layer, new, x)], new


def over_norm(v, axis):
    return v / jnp.linalg.norm(v, axis=axis, keepdims=True)


def standardised(v):
    return (v - jnp.mean(v, 0, keepdims=True)) / jnp.sqrt(jnp.var(v, 0, keepdims=True) + 1e-6)


GATHERED = np.array([[(j - i) % WIDTH for j in range(WIDTH)] for i in range(WIDTH)])
UPPER = np.triu_indices(WIDTH)
BASES = normal(3, 40, WIDTH * WIDTH)
SQUARE = {"w": (WIDTH, WIDTH)}
MADE = {
    "plain": (SQUARE, lambda p, x: x @ p["w"]),
    "scaled": (SQUARE, lambda p, x: x @ (p["w"] * (2 / WIDTH) ** 0.5)),
    "scaled transposed": (SQUARE, lambda p, x: x @ (0.1 * p["w"]).T),
    "divided": (SQUARE, lambda p, x: jnp.einsum("bi,io->bo", x, p["w"] / jnp.sqrt(float(WIDTH)))),
    "symmetric": (SQUARE, lambda p, x: x @ (p["w"] + p["w"].T)),
    "skew": (SQUARE, lambda p, x: x @ (p["w"] - p["w"].T)),
    "mixtures of bases": ({"e": (40,)}, lambda p, x: x @ (p["e"] @ BASES).reshape(WIDTH, WIDTH)),
    "bases on one side": (
        {"e": (WIDTH, 40)},
        lambda p, x: x @ (p["e"] @ BASES[:, :WIDTH]),
    ),
    "bases by tensordot": ({"e": (40,)}, lambda p, x: x @ jnp.tensordot(p["e"], BASES.reshape(40, WIDTH, WIDTH), 1)),
    "gain and norm": ({"g": (WIDTH,), "v": (WIDTH, WIDTH)}, lambda p, x: x @ (p["g"][None] * over_norm(p["v"], 0))),
    "gain and norm by rows": (
        {"g": (WIDTH, 1), "v": (WIDTH, WIDTH)},
        lambda p, x: x @ (p["g"] * over_norm(p["v"], 1)).T,
    ),
    "one gain": ({"g": (), "v": (WIDTH, WIDTH)}, lambda p, x: x @ (p["g"] * over_norm(p["v"], (0, 1)))),
}


@pytest.mark.parametrize("form", MADE)
def test_the_weight_that_meets_the_data_has_the_variance_meant(form):
    shapes, layer = MADE[form]
    params = [{name: normal(i, *shape) for name, shape in shapes.items()} for i in range(3)]
    stds, _ = drawn(layer, params, normal(9, 256, WIDTH))
    # Every pre-activation has unit variance but for the scatter of the draws.
    assert stds[0] == pytest.approx(1, rel=0.05)
    assert stds == pytest.approx([1] * 3, rel=0.2)


@pytest.mark.parametrize("indices", [GATHERED, (np.arange(WIDTH)[:, None] - np.arange(WIDTH)) % (2 * WIDTH - 1)])
def test_a_gathered_weight_has_the_fan_in_of_what_is_made(indices):
    size = int(indices.max()) + 1
    x = normal(9, 256, WIDTH)
    (layer,) = jaxinit.trace_layers(normal(0, size), lambda w, x: x @ w[indices], x)
    assert (layer.fan_in, layer.fan_out) == (WIDTH, WIDTH)
    new = jaxinit.initialize(jax.random.key(0), normal(0, size), lambda w, x: jax.nn.relu(x @ w[indices]), x)
    np.testing.assert_allclose(jnp.mean(new[indices] ** 2), 1 / WIDTH / jnp.mean(x**2), rtol=1e-3)


def test_four_equalised_layers_end_as_loud_as_with_the_constant_on_the_outputs_side():
    params = [{"w": normal(i, WIDTH, WIDTH)} for i in range(4)]
    c = (2 / WIDTH) ** 0.5
    outside, _ = drawn(lambda p, x: (x @ p["w"]) * c, params, normal(9, 256, WIDTH))
    inside, _ = drawn(lambda p, x: x @ (p["w"] * c), params, normal(9, 256, WIDTH))
    assert inside == pytest.approx(outside, rel=0.2)


def test_slices_of_a_scan_are_scaled_one_by_one():
    x = normal(9, 256, WIDTH)

    def apply_fn(w, x):
        def step(h, own):
            y = h @ (own * 0.05)
            return jax.nn.relu(y), y

        return jax.lax.scan(step, x, w)

    new = jaxinit.initialize(jax.random.key(0), normal(0, 3, WIDTH, WIDTH), lambda w, x: apply_fn(w, x)[0], x)
    _, outputs = apply_fn(new, x)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(outputs**2, (1, 2))), 1, rtol=0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p["g"][None] * standardised(p["v"]),
        lambda p: (p["g"][None] * standardised(p["v"]) / WIDTH**0.5) * 3.0,
        lambda p: p["v"] - jnp.mean(p["v"], 0, keepdims=True),
    ],
    ids=["gain", "scaled gain", "centred alone"],
)
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.sigmoid], ids=["relu", "sigmoid"])
def test_layers_with_centred_weights_keep_the_size_of_signals(make, activation):
    """Centred weights do not see the mean of their inputs: Brock et al. 2021, equation 4."""
    x = normal(9, 512, WIDTH)

    def through(params, x):
        found = []
        for p in params:
            found.append(x @ make(p))
            x = activation(found[-1])
        return found

    params = [{"g": jnp.ones(WIDTH), "v": normal(i, WIDTH, WIDTH)} for i in range(4)]
    new = jaxinit.initialize(jax.random.key(1), params, lambda p, x: activation(through(p, x)[-1]), x)
    assert [float(jnp.std(y)) for y in through(new, x)] == pytest.approx([1] * 4, rel=0.1)


@pytest.mark.parametrize("make", [standardised, lambda v: over_norm(v, 0), lambda v: v / jnp.max(jnp.abs(v))])
def test_a_kernel_that_no_scale_changes_is_a_layer_that_says_so(make):
    v, x = normal(0, 16, 8), normal(1, 32, 16)
    (layer,) = jaxinit.trace_layers(v, lambda v, x: jnp.tanh(x @ make(v)), x)
    assert (layer.fan_in, layer.fan_out) == (16, 8)
    assert "scaling it changes nothing" in layer.note


QUANTISED = {
    "by columns": ((8,), lambda q, s: q.astype(jnp.float32) * s[None]),
    "by rows": ((16, 1), lambda q, s: s * q.astype(jnp.float32)),
    "by groups": ((4, 1, 8), lambda q, s: (q.astype(jnp.float32).reshape(4, 4, 8) * s).reshape(16, 8)),
    "one": ((), lambda q, s: s * (q.astype(jnp.float32) - 3.0)),
}


@pytest.mark.parametrize("form", QUANTISED)
def test_the_scales_of_integers_stay(form):
    shape, make = QUANTISED[form]
    params = {"q": jnp.arange(128, dtype=jnp.int8).reshape(16, 8), "s": jnp.full(shape, 0.001)}
    x = normal(1, 32, 16)
    new, report = jaxinit.initialize(
        jax.random.key(0), params, lambda p, x: jnp.tanh(x @ make(p["q"], p["s"])), x, return_report=True
    )
    chex.assert_trees_all_equal(new, params)
    assert {row.path: row.role for row in report.rows}["s"] == "quantisation scale"


# Low-rank additions


@pytest.mark.parametrize(
    ("shapes", "weight"),
    [
        (((16, 2), (2, 8)), lambda p: p["w"] + 2.0 * p["a"] @ p["b"]),
        (((2, 16), (8, 2)), lambda p: p["w"] + (p["b"] @ p["a"]).T),
        (((16, 2), (2, 8)), lambda p: jnp.einsum("ir,ro->io", p["a"], p["b"]) * 0.5 + p["w"]),
    ],
)
def test_the_factors_of_what_is_added_to_a_weight_stay(shapes, weight):
    a, b = shapes
    params = {"w": normal(0, 16, 8), "a": normal(1, *a), "b": jnp.zeros(b)}
    new, report = jaxinit.initialize(
        jax.random.key(0), params, lambda p, x: jax.nn.relu(x @ weight(p)), normal(2, 32, 16), return_report=True
    )
    roles = {row.path: row.role for row in report.rows}
    assert (roles["a"], roles["b"], roles["w"]) == ("low-rank factor", "low-rank factor", "dense")
    for name in "ab":
        np.testing.assert_array_equal(new[name], params[name])
    # 128 draws of variance 1 / 16.
    np.testing.assert_allclose(jnp.mean(new["w"] ** 2), 1 / 16, rtol=0.4)


BESIDE = {
    "beside": lambda p, x: x @ p["w"] + 2.0 * (x @ p["a"]) @ p["b"],
    "frozen": lambda p, x: 0.5 * ((x @ p["a"]) @ p["b"]) + x @ jax.lax.stop_gradient(p["w"]),
    "with a bias": lambda p, x: (x @ p["w"] + 1.0) + (x @ p["a"] / 2.0) @ p["b"],
}


@pytest.mark.parametrize("form", BESIDE)
def test_an_adapter_that_starts_as_zero_stays(form):
    params, x = {"w": normal(0, 16, 8), "a": normal(1, 16, 2), "b": jnp.zeros((2, 8))}, normal(2, 32, 16)
    new, report = jaxinit.initialize(
        jax.random.key(0), params, lambda p, x: jax.nn.relu(BESIDE[form](p, x)), x, return_report=True
    )
    # Beside a weight that is frozen, and so kept, it is drawn anew.
    np.testing.assert_array_equal(new["b"], params["b"])
    assert np.array_equal(new["a"], params["a"]) == (form != "frozen")
    assert [row.role for row in report.rows if row.path in "ab"] == ["adapter", "adapter"]


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda p, x: x @ p["w"] + jax.nn.relu(x @ p["a"]) @ p["b"],
        lambda p, x: jax.nn.relu(x @ p["w"] + 1.0) @ jnp.ones((8, 16)) @ p["a"] @ p["b"],
    ],
    ids=["with an activation", "nothing beside"],
)
def test_other_narrow_layers_are_drawn_even_if_they_are_zero(apply_fn):
    params, x = {"w": normal(0, 16, 8), "a": normal(1, 16, 2), "b": jnp.zeros((2, 8))}, normal(2, 32, 16)
    new = jaxinit.initialize(jax.random.key(0), params, apply_fn, x)
    assert jnp.any(new["b"] != 0)


# Weights that data make


def generated(p, x):
    return jax.nn.relu(x[:, 0] @ p["u"]) @ p["v"]


HYPER = {
    "einsum": lambda p, x: jnp.einsum("btd,bde->bte", x, generated(p, x).reshape(-1, 8, 5)),
    "outputs first": lambda p, x: jnp.einsum("bed,btd->bte", generated(p, x).reshape(-1, 5, 8), x),
    "vmap": lambda p, x: jax.vmap(lambda s, w: s @ w.reshape(8, 5))(x, generated(p, x)),
    "scaled": lambda p, x: jnp.einsum("btd,bde->bte", x, generated(p, x).reshape(-1, 8, 5) / 8**0.5),
    "sum of products": lambda p, x: jnp.sum(x[:, 1, :, None] * generated(p, x).reshape(-1, 8, 5), 1),
    "with a made bias": lambda p, x: (
        jnp.einsum("btd,bde->bte", x, jnp.split(generated(p, x), [40], -1)[0].reshape(-1, 8, 5))
        + jnp.split(generated(p, x), [40], -1)[1][:, None]
    ),
}


@pytest.mark.parametrize("form", HYPER)
def test_a_hypernetwork_counts_the_inputs_of_the_weight_that_it_makes(form):
    columns = 45 if form == "with a made bias" else 40
    params, x = {"u": normal(0, 8, 64), "v": normal(1, 64, columns)}, normal(2, 512, 4, 8)
    layers = jaxinit.trace_layers(params, HYPER[form], x)
    assert (layers["u"].fan_in, layers["v"].fan_in) == (8, 64 * 8)
    new = jaxinit.initialize(jax.random.key(0), params, HYPER[form], x)
    # What x of unit variance and a made weight of variance 1/8 give; x is part of both, and draws of u and v scatter.
    assert float(jnp.std(HYPER[form](new, x))) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("form", [form for form in HYPER if form != "with a made bias"])
def test_lsuv_gives_the_product_with_a_made_weight_unit_variance(form):
    params, x = {"u": normal(0, 8, 64), "v": normal(1, 64, 40)}, normal(2, 512, 4, 8)
    new, report = jaxinit.lsuv(params, HYPER[form], x, return_report=True)
    (note,) = report.problems()["v"]
    assert "weight of 8 inputs" in note
    made = float(jnp.std(generated(new, x)))
    assert made == pytest.approx(1 if form == "scaled" else 8**-0.5, rel=1e-2)
    assert float(jnp.std(HYPER[form](new, x))) == pytest.approx(1, rel=0.2)


def heads(x, w, n):
    return (x @ w).reshape(*x.shape[:-1], n, -1)


def attention(q, k, v):
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", scores, v)


def rotated(t):
    a, b = jnp.split(t, 2, -1)
    angles = jnp.arange(t.shape[1], dtype=t.dtype).reshape(1, -1, *[1] * (t.ndim - 2))
    return jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), a * jnp.sin(angles) + b * jnp.cos(angles)], -1)


NO_HYPER = {
    "attention": ((8, 8, 8), lambda x, q, k, v: attention(heads(x, q, 2), heads(x, k, 2), heads(x, v, 2))),
    "one key for all heads": (
        (8, 4, 4),
        lambda x, q, k, v: jnp.einsum(
            "bhts,bsd->bthd", jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", heads(x, q, 2), x @ k)), x @ v
        ),
    ),
    "one rotated key": (
        (8, 4, 4),
        lambda x, q, k, v: jnp.einsum(
            "bhts,bsd->bthd",
            jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", rotated(heads(x, q, 2)), rotated(x @ k))),
            x @ v,
        ),
    ),
    "linear": (
        (8, 4, 4),
        lambda x, q, k, v: jnp.einsum("bthd,bde->bthe", heads(x, q, 2), jnp.einsum("bsd,bse->bde", x @ k, x @ v)),
    ),
    "gates": ((8, 8, 8), lambda x, q, k, v: (jax.nn.silu(x @ q) * (x @ k)) @ v),
    "modulation": ((8, 8, 8), lambda x, q, k, v: ((x @ q) * jnp.mean(x @ k, 1, keepdims=True)) @ v),
}


@pytest.mark.parametrize("form", NO_HYPER)
def test_attention_and_gates_are_no_hypernetworks(form):
    widths, function = NO_HYPER[form]
    params = [normal(i, 8, width) for i, width in enumerate(widths)]
    layers = jaxinit.trace_layers(params, lambda p, x: function(x, *p), normal(9, 8, 6, 8))
    assert [layer.fan_in for layer in layers] == [8, 8, 8]


# Towers on constants

COORDINATES = normal(7, 10, 3)


def in_a_closure(p, x):
    return jax.nn.relu(COORDINATES @ p["t"] + p["b"][None]) @ p["u"]


def by_frequencies(p, x):
    return jnp.sin(jnp.einsum("nd,dk->nk", COORDINATES, p["t"])) @ p["u"]


def in_a_loop(p, x):
    h = jnp.tanh(COORDINATES @ p["t"])
    return jax.lax.fori_loop(0, 1, lambda i, h: h, h) @ p["u"]


TOWERS = {"closure": in_a_closure, "frequencies": by_frequencies, "loop": in_a_loop}


@pytest.mark.parametrize("form", TOWERS)
def test_towers_on_constants_are_layers(form):
    params = {"t": normal(0, 3, 16), "u": normal(1, 16, 8), "w": normal(2, 8, 5)} | (
        {"b": jnp.zeros(16)} if form == "closure" else {}
    )
    tower = TOWERS[form]

    def apply_fn(p, x):
        return jnp.tanh(x @ p["w"]) * jnp.mean(jnp.tanh(tower(p, x)))

    x = normal(3, 32, 8)
    layers = jaxinit.trace_layers(params, apply_fn, x)
    assert {layer.path: layer.fan_in for layer in layers} == {"t": 3, "u": 16, "w": 8}
    new = jaxinit.lsuv(params, apply_fn, x)
    np.testing.assert_allclose(jnp.std(COORDINATES @ new["t"]), 1, rtol=1e-3)
    np.testing.assert_allclose(jnp.std(tower(new, x)), 1, rtol=1e-3)


TABLE = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)


def bent_in_a_scan(p, x):
    h = TABLE @ p["first"]
    return jax.lax.scan(lambda x, w: (jnp.tanh(x + (jnp.tanh(h) @ w)[None]), None), x, p["stack"])[0]


def bent_step_by_step(p, x):
    h = jnp.stack([TABLE @ p["first"]] * 3)
    step = (h, p["stack"])
    return jax.lax.scan(lambda x, hw: (jnp.tanh(x + (jnp.tanh(hw[0].T).T @ hw[1])[None]), None), x, step)[0]


def bent_in_a_branch(p, x):
    h = TABLE @ p["first"]
    return jax.lax.cond(jnp.sum(x) > -1e9, lambda x: x + (jax.nn.relu(h) @ p["stack"][0])[None], lambda x: x, x)


def bent_in_a_loop(p, x):
    h = TABLE @ p["first"]
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x + (jax.jit(jnp.tanh)(h) @ p["stack"][i])[None]), x)


@pytest.mark.parametrize("apply_fn", [bent_in_a_scan, bent_step_by_step, bent_in_a_branch, bent_in_a_loop])
def test_the_nonlinearity_of_a_tower_may_lie_in_a_loop(apply_fn):
    x, params = normal(0, 32, 10, 8), {"first": 4 * normal(1, 4, 6), "stack": normal(2, 3, 6, 8)}
    assert jaxinit.trace_layers(params, apply_fn, x)["first"].fan_in == 4
    new = jaxinit.lsuv(params, apply_fn, x)
    np.testing.assert_allclose(jnp.std(TABLE @ new["first"]), 1, rtol=1e-3)


def test_a_basis_times_coefficients_is_a_weight_of_the_loop_that_takes_it():
    def apply_fn(p, x):
        w = TABLE[:8] @ p["first"]
        return jax.lax.scan(lambda x, v: (jnp.tanh(x @ w @ v), None), x, p["stack"])[0]

    x, params = normal(0, 32, 8), {"first": 4 * normal(1, 4, 6), "stack": normal(2, 3, 6, 8)}
    assert jaxinit.trace_layers(params, apply_fn, x)["first"].fan_in == 8


def test_arrays_of_keyword_arguments_are_data_of_towers():
    def model(params, x, *, grid):
        h = jnp.sin(30 * (grid @ params["t"]))
        return (x @ params["w"]) * jnp.mean(jnp.tanh(h @ params["u"]))

    params = {"t": normal(0, 3, 16), "u": normal(1, 16, 8), "w": normal(2, 8, 5)}
    x = normal(3, 32, 8)
    _, report = jaxinit.lsuv(params, lambda p, x: model(p, x, grid=COORDINATES), x, return_report=True)
    assert set(report.paths) == {"t", "u", "w"}


def test_relative_positions_meet_queries_as_a_layer_of_their_own():
    table = jnp.sin(jnp.arange(16.0)[:, None] * jnp.arange(8.0)[None])

    def apply_fn(p, x):
        q, k, r = x @ p["q"], x @ p["k"], table @ p["r"]
        return jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) + jnp.einsum("btd,sd->bts", q, r)) @ x

    params = {name: normal(i, 8, 8) for i, name in enumerate("qkr")}
    layers = jaxinit.trace_layers(params, apply_fn, normal(9, 4, 16, 8))
    assert {layer.path: (layer.fan_in, layer.fan_out) for layer in layers} == dict.fromkeys("qkr", (8, 8))


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ((40,), lambda e: (e @ BASES).reshape(WIDTH, WIDTH)),
        ((WIDTH, 40), lambda e: e @ BASES[:, :WIDTH]),
        ((40, WIDTH), lambda e: BASES[:, :WIDTH].T @ e),
        ((40, 40), lambda e: BASES[:, :WIDTH].T @ e @ BASES[:, WIDTH : 2 * WIDTH]),
    ],
)
def test_bases_of_a_weight_are_no_towers(shape, make):
    x = normal(9, 32, WIDTH)
    (layer,) = jaxinit.trace_layers(normal(0, *shape), lambda e, x: jnp.tanh(x @ make(e)), x)
    assert (layer.fan_in, layer.fan_out, str(layer.activation)) == (WIDTH, WIDTH, "<tanh>")


def test_parts_of_a_weight_that_kept_leaves_multiply_have_half_the_variance_each():
    def apply_fn(params, x):
        decay = jnp.exp(jax.lax.complex(params["re"], params["im"]) * jnp.exp(params["step"]))
        weight = (1 - decay)[:, None] * jax.lax.complex(params["b"][..., 0], params["b"][..., 1])

        def step(h, u):
            h = decay * h + u
            return h, jnp.real(h)

        return jax.lax.scan(step, jnp.zeros(64, jnp.complex64), x.astype(jnp.complex64) @ weight.T)[1]

    params = {"re": -jnp.ones(64), "im": jnp.arange(64.0), "step": jnp.full(64, -4.0), "b": jnp.ones((64, 128, 2))}
    x = jax.ShapeDtypeStruct((20, 128), jnp.float32)
    new, report = jaxinit.initialize(jax.random.key(0), params, apply_fn, x, return_report=True)
    assert all(np.array_equal(new[name], params[name]) for name in ("re", "im", "step"))
    assert {row.init for row in report.rows if row.path in ("re", "im", "step")} == {"kept"}
    # 16,384 normal numbers: the standard error of their variance is 1.1%.
    assert float(jnp.var(new["b"])) == pytest.approx(1 / (2 * 128), rel=0.06)
