"""`initialize` draws a leaf only if its use shows its role; everything else keeps its value and is named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxinit
import jaxinit.linen
import jaxinit.nnx
from jaxinit import initialize

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 4))
SOME = jnp.linspace(0.3, 0.9, 8)  # values that no rule draws


def ones(*shape):
    return jnp.ones(shape)


def shapes(params):
    return jax.eval_shape(lambda: params)


def drawn(params, apply_fn, batch=X, **options):
    """The new parameters, and role and reason of each leaf."""
    new, report = initialize(KEY, params, apply_fn, batch, return_report=True, **options)
    return new, {row.path: row for row in report.rows}


def rms(x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


# State beside parameters.


class Net(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


def trained():
    """Variables whose statistics are those of data, and which no rule would draw."""
    variables = Net(train=True).init(KEY, X)
    statistics = jax.tree.map(lambda x: 0 * x + SOME, variables["batch_stats"])
    return {**variables, "batch_stats": statistics}


def linen_returned(variables, x):
    return Net(train=True).apply(variables, x, mutable=["batch_stats"])


def linen_dropped(variables, x):
    return linen_returned(variables, x)[0]


@pytest.mark.parametrize("apply_fn", [linen_returned, linen_dropped, Net(train=False).apply])
def test_running_statistics_keep_their_values(apply_fn):
    old = trained()
    new, rows = drawn(old, apply_fn)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"][name], SOME)
        assert rows[f"batch_stats/BatchNorm_0/{name}"].init == "kept"
    assert not np.array_equal(new["params"]["Dense_0"]["kernel"], old["params"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(new["params"]["BatchNorm_0"]["scale"], 1)


def test_state_of_nnx_and_of_the_linen_adapter_stays():
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)), nnx.relu)
    model.layers[1].mean[...] = SOME
    model.layers[1].var[...] = SOME
    for training in (True, False):
        model.train() if training else model.eval()
        jaxinit.nnx.initialize(KEY, model, X, wrt=(nnx.Param, nnx.BatchStat))
        np.testing.assert_array_equal(model.layers[1].mean[...], SOME)
        np.testing.assert_array_equal(model.layers[1].var[...], SOME)
    new = jaxinit.linen.initialize(KEY, Net(train=True), trained(), X, mutable=["batch_stats"])
    np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["var"], SOME)


def test_starts_of_a_study_keep_state():
    from jaxinit._study._starts import as_draw

    old = trained()
    for start in ("auto", jaxinit.he_normal()):
        new = as_draw("start", start, old, linen_returned)(KEY, X)
        np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["var"], SOME)


def test_state_that_a_program_of_ones_own_returns_changed():
    def apply_fn(p, x):
        h = x @ p["w"]
        largest = jnp.maximum(0.9 * p["largest"], jnp.max(jnp.abs(h), axis=0))
        return {"logits": jnp.tanh(h), "state": (largest, p["count"] + 1)}

    old = {"w": ones(4, 8), "largest": SOME, "count": jnp.zeros((), jnp.int32) + 7}
    new, rows = drawn(old, apply_fn)
    assert rows["largest"].role == "state"
    np.testing.assert_array_equal(new["largest"], SOME)
    assert int(new["count"]) == 7


@pytest.mark.parametrize("folded", [False, True])
def test_running_statistics_are_known_where_they_are_read(folded):
    """A normalization by running statistics, as it is, or folded into one factor and one offset."""

    def apply_fn(p, x):
        factor = p["gain"] * jax.lax.rsqrt(p["variance"] + 1e-5)
        if folded:
            return (x @ p["w"]) * factor[None] + (p["offset"] - p["mean"] * factor)[None]
        return (x @ p["w"] - p["mean"][None]) * factor[None] + p["offset"][None]

    old = {"w": ones(4, 8), "gain": SOME, "variance": SOME, "mean": SOME, "offset": SOME}
    new, rows = drawn(old, apply_fn)
    assert {path: row.role for path, row in rows.items()} == {
        "w": "dense", "gain": "scale", "variance": "state", "mean": "state", "offset": "offset"
    }  # fmt: skip
    np.testing.assert_array_equal(new["variance"], SOME)
    np.testing.assert_array_equal(new["mean"], SOME)
    np.testing.assert_array_equal(new["gain"], 1)
    np.testing.assert_array_equal(new["offset"], 0)
    # Of shapes: as they change nothing.
    new, _ = drawn(shapes(old), apply_fn)
    np.testing.assert_array_equal(new["variance"], 1)
    np.testing.assert_array_equal(new["mean"], 0)


# Leaves that are not read, and leaves that are not known.


def encoder(p, x):
    return jnp.tanh(x @ p["encoder"])


def test_leaves_that_the_function_does_not_read_keep_their_values():
    old = {"encoder": ones(4, 8), "decoder": ones(8, 4) * 3, "bias": SOME}
    new, rows = drawn(old, encoder)
    np.testing.assert_array_equal(new["decoder"], 3)
    np.testing.assert_array_equal(new["bias"], SOME)
    assert (rows["decoder"].role, rows["decoder"].init, rows["decoder"].reason) == (
        "unread", "kept", "no output depends on it"
    )  # fmt: skip
    for both in (False, True):
        new, rows = drawn({**old, "decoder": jax.ShapeDtypeStruct((100, 400), jnp.float32)}, encoder, unread="draw")
        assert float(jnp.std(new["decoder"])) == pytest.approx(0.1, rel=0.02), both
        np.testing.assert_array_equal(new["bias"], SOME)


def test_shapes_of_leaves_to_keep_are_an_error_that_lists_them_all():
    old = {"encoder": ones(4, 8), "decoder": ones(8, 4), "bias": SOME, "temperature": ones()}

    def apply_fn(p, x):
        return encoder(p, x) * p["temperature"]

    with pytest.raises(
        ValueError, match=r"bias \(unread: .*decoder \(unread: .*temperature \(unknown: multiplies data"
    ):
        initialize(KEY, shapes(old), apply_fn, X)
    with pytest.raises(ValueError, match='unread="draw" draws kernels') as error:
        initialize(KEY, shapes(old), apply_fn, X, overrides={"bias": jaxinit.ones})
    assert "bias" not in str(error.value)
    named = {"temperature": jaxinit.constant(0.1), "bias": jaxinit.zeros}
    new, rows = drawn(shapes(old), apply_fn, overrides=named, unread="draw")
    assert float(new["temperature"]) == pytest.approx(0.1)
    assert rows["temperature"].reason == "override"


@pytest.mark.parametrize(
    "use",
    [
        lambda x, t: jax.nn.softmax(x * t),
        lambda x, t: jax.nn.softmax(x / t),
        lambda x, t: x * jnp.exp(t),
        lambda x, t: rms(x) * t,  # one number for all channels
        lambda x, t: jnp.maximum(x, t),
        lambda x, t: x + jnp.exp(t),
    ],
)
def test_what_multiplies_data_that_is_neither_normalised_nor_a_branch_is_unknown(use):
    new, rows = drawn({"w": ones(4, 8), "t": ones() * 0.07}, lambda p, x: use(x @ p["w"], p["t"]))
    assert (rows["t"].role, rows["t"].init) == ("unknown", "kept")
    assert float(new["t"]) == pytest.approx(0.07)


def test_parameters_that_are_outputs_stay():
    """The standard deviations of a policy."""
    new, rows = drawn(
        {"w": ones(4, 8), "log_std": SOME}, lambda p, x: (x @ p["w"], jnp.exp(p["log_std"]) + 0 * x[0, 0])
    )
    np.testing.assert_array_equal(new["log_std"], SOME)
    new, rows = drawn({"w": ones(4, 8), "log_std": SOME}, lambda p, x: (x @ p["w"], p["log_std"]))
    assert rows["log_std"].role == "unknown"
    np.testing.assert_array_equal(new["log_std"], SOME)


# Decays and step sizes.


def scanned(decay):
    def apply_fn(p, x):
        def step(h, u):
            h = decay(p)[None] * h + (u @ p["b"]).astype(h.dtype)
            return h, h.real

        start = jnp.zeros((32, 8), jnp.result_type(decay(p)))
        return jax.lax.scan(step, start, jnp.broadcast_to(x, (5, *x.shape)))[1]

    return apply_fn


def diagonal(p):
    return jnp.exp((p["re"] + 1j * p["im"]) * jnp.exp(p["log_step"]))


def ring(p):
    return jnp.exp(-jnp.exp(p["re"]) + 1j * jnp.exp(p["im"])) * jnp.exp(-jnp.exp(p["log_step"]))


DECAYS = {
    "S5": diagonal,
    "LRU": ring,
    "sigmoid": lambda p: jax.nn.sigmoid(p["re"]) ** jax.nn.softplus(p["im"]) * jnp.exp(p["log_step"]),
    "RWKV": lambda p: jnp.exp(-jnp.exp(p["re"])) - 0.1 * p["im"] * p["log_step"],
    "plain": lambda p: p["re"] * p["im"] * p["log_step"],
}


@pytest.mark.parametrize("name", DECAYS)
def test_decays_of_a_recurrence_keep_their_values(name):
    old = {"b": ones(4, 8), "re": -SOME, "im": SOME, "log_step": -2 * SOME}
    with jax.numpy_dtype_promotion("standard"):
        new, rows = drawn(old, scanned(DECAYS[name]))
    for path in ("re", "im", "log_step"):
        assert (rows[path].role, rows[path].init) == ("decay", "kept")
        np.testing.assert_array_equal(new[path], old[path])


def test_decays_that_data_steps_through_keep_their_values():
    """Mamba: exp(Δ A), where Δ is computed from data, is the factor of the state."""

    def selective(p, x):
        a = -jnp.exp(p["a_log"])

        def step(h, u):
            delta = jax.nn.softplus(u @ p["delta"])
            h = jnp.exp(delta[..., None] * a[None]) * h + (delta * (u @ p["in"]))[..., None] * (u @ p["b"])[:, None]
            return h, jnp.sum(h * (u @ p["c"])[:, None], axis=-1)

        return jax.lax.scan(step, jnp.zeros((32, 8, 3)), jnp.broadcast_to(x, (5, *x.shape)))[1]

    a_log = jnp.log(jnp.broadcast_to(jnp.arange(1.0, 4.0), (8, 3)))
    old = {"a_log": a_log, "delta": ones(4, 8), "in": ones(4, 8), "b": ones(4, 3), "c": ones(4, 3)}
    new, rows = drawn(old, selective)
    assert rows["a_log"].role == "decay"
    np.testing.assert_array_equal(new["a_log"], a_log)


def by_halves(decays, inputs, axis=0):
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decays, inputs), axis=axis)[1]


def step_by_step(decays, inputs):
    return jax.lax.scan(lambda h, x: (x[0] * h + x[1],) * 2, jnp.zeros_like(inputs[0]), (decays, inputs))[1]


@pytest.mark.parametrize("recurrence", [by_halves, step_by_step])
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("repeated", [False, True])
def test_decays_that_are_repeated_for_every_step_keep_their_values(recurrence, length, repeated):
    """A factor of the state's input is not a decay."""

    def apply_fn(p, x):
        inputs = jnp.broadcast_to((x @ p["b"]) * jnp.exp(p["gamma"])[None], (length, 32, 8))
        decay = jnp.exp(-jnp.exp(p["nu"]))
        many = jnp.repeat(decay[None], 32 * length, 0).reshape(length, 32, 8)
        return recurrence(many if repeated else jnp.broadcast_to(decay, inputs.shape), inputs)

    new, rows = drawn({"b": ones(4, 8), "nu": SOME, "gamma": SOME}, apply_fn)
    assert (rows["nu"].role, rows["gamma"].role) == ("decay", "unknown")
    np.testing.assert_array_equal(new["nu"], SOME)


def test_a_stack_of_scales_is_not_a_stack_of_decays():
    """A loop over layers multiplies what it carries by another slice in each step."""

    def apply_fn(p, x):
        def layer(x, q):
            return x * q["scale"][None] + jnp.tanh(x @ q["w"]), None

        return jax.lax.scan(layer, x, p)[0]

    _, rows = drawn({"scale": ones(3, 4), "w": ones(3, 4, 4)}, apply_fn)
    assert rows["scale"].role != "decay"


DECAYED = 6  # steps of a sequence


def gated_by_sums(p, x):
    """Chunks of a selective state-space model: decays from one step to another are differences of sums."""
    steps = jax.nn.softplus(x @ p["step"] + p["bias"][None, None])
    total = jnp.cumsum(-jnp.exp(p["rate"])[None, None] * steps, axis=1)
    decays = jnp.where(jnp.tri(DECAYED)[None, :, :, None] > 0, jnp.exp(total[:, :, None] - total[:, None]), 0)
    return jnp.einsum("bijd,bjd->bid", decays, x @ p["in"])


def forgetting(p, x):
    """Gated linear attention, stabilised by the largest exponent; what is taken in has a gate of its own."""
    total = jnp.cumsum(jax.nn.log_sigmoid(x @ p["step"] + p["bias"][None, None]), axis=1)
    exponents = total[:, :, None] - total[:, None] + (x @ p["in"] + p["other"][None, None])[:, None]
    exponents = jnp.where(jnp.tri(DECAYED)[None, :, :, None] > 0, exponents, -jnp.inf)
    decays = jnp.exp(exponents - jnp.max(exponents, axis=2, keepdims=True))
    return jnp.einsum("bijd,bjd->bid", decays, jnp.broadcast_to(x[..., :1], (*x.shape[:2], 8)))


def gated_in_a_loop(p, x):
    def step(h, u):
        decay = jnp.exp(-8 * jax.nn.softplus(p["rate"])[None] * jax.nn.sigmoid(u @ p["step"] + p["bias"][None]))
        h = decay * h + jnp.sqrt(1 - decay**2) * (u @ p["in"])
        return h, h

    return jax.lax.scan(step, jnp.zeros((8, 8)), jnp.swapaxes(x, 0, 1))[1]


def decays_before_a_loop(p, x):
    decays = jnp.exp(-jax.nn.softplus(x @ p["step"] + p["bias"][None, None]) * jnp.exp(p["rate"])[None, None])
    inputs = (jnp.swapaxes(decays, 0, 1), jnp.swapaxes(x @ p["in"], 0, 1))
    return jax.lax.scan(lambda h, xs: (xs[0] * h + xs[1],) * 2, jnp.zeros((8, 8)), inputs)[1]


def decays_of_a_recurrence_by_halves(p, x):
    decays = jnp.exp(-jax.nn.softplus(x @ p["step"] + p["bias"][None, None]) * jnp.exp(p["rate"])[None, None])
    return by_halves(decays, x @ p["in"] + p["other"][None, None], axis=1)


@pytest.mark.parametrize(
    "recurrence",
    [gated_by_sums, forgetting, gated_in_a_loop, decays_before_a_loop, decays_of_a_recurrence_by_halves],
)
def test_what_is_added_to_the_exponent_of_a_decay_keeps_its_value(recurrence):
    old = dict.fromkeys(("bias", "rate", "other"), SOME) | {"step": ones(4, 8), "in": ones(4, 8)}
    new, rows = drawn(old, recurrence, jnp.broadcast_to(X[:8, None], (8, DECAYED, 4)))
    assert (rows["bias"].role, rows["bias"].init) == ("decay", "kept")
    np.testing.assert_array_equal(new["bias"], SOME)
    if recurrence in (forgetting, decays_of_a_recurrence_by_halves):
        assert rows["other"].role == "bias"
    if recurrence is not forgetting:  # which has no rate
        assert (rows["rate"].role, rows["rate"].init) == ("decay", "kept")


@pytest.mark.parametrize(
    "apply_fn",
    [
        lambda p, x: jax.nn.softmax(p["rate"][None] * (x @ p["step"] + p["bias"][None])) @ p["in"].T,
        lambda p, x: x[:, :1] * jnp.exp(p["rate"][None] * jnp.tanh(x @ p["step"] + p["bias"][None])) @ p["in"].T,
        lambda p, x: jax.nn.softplus(x @ p["step"] + p["bias"][None]) * p["rate"][None] @ p["in"].T,
    ],
)
def test_biases_of_other_exponentials_are_drawn(apply_fn):
    old = {"bias": SOME, "rate": SOME, "step": ones(4, 8), "in": ones(4, 8)}
    assert drawn(old, apply_fn)[1]["bias"].role == "bias"


# Scales.


def layer_norm(x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


NORMS = {
    "root mean square": rms,
    "two passes": layer_norm,
    "variance": lambda x: (x - x.mean(0)[None]) * jax.lax.rsqrt(x.var(0) + 1e-5)[None],
    "one pass": lambda x: (x - x.mean(0)[None]) / jnp.sqrt((x**2).mean(0) - x.mean(0) ** 2 + 1e-5)[None],
    "groups": lambda x: layer_norm(x.reshape(32, 2, 4)).reshape(32, 8),
    "euclidean": lambda x: 8**0.5 * x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "einsum": lambda x: x / (jnp.einsum("bd,bd->b", x, x)[:, None] ** 0.5 + 1e-6),
    "standardize": jax.nn.standardize,
}


def over_devices(x):
    """Batch normalization over a mapped axis: mean and mean square are put together as one array."""
    parts = jnp.stack([x.mean(0), (x**2).mean(0)])
    mean, square = jax.lax.pmean(parts, "devices")
    return (x - mean[None]) * jax.lax.rsqrt(square - mean**2 + 1e-5)[None]


NORMS["devices"] = lambda x: jax.vmap(over_devices, axis_name="devices")(x.reshape(4, 8, 8)).reshape(32, 8)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("einsum", [False, True])
def test_the_gain_of_a_norm_is_one_however_it_is_written(norm, einsum):
    def apply_fn(p, x):
        x = NORMS[norm](x @ p["w"])
        x = jnp.einsum("bd,d->bd", x, p["gain"]) if einsum else x * p["gain"][None]
        return jnp.tanh(x + p["offset"][None])

    new, rows = drawn(shapes({"w": ones(4, 8), "gain": SOME, "offset": SOME}), apply_fn)
    assert (rows["gain"].role, rows["offset"].role) == ("scale", "offset")
    np.testing.assert_array_equal(new["gain"], 1)
    np.testing.assert_array_equal(new["offset"], 0)


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(2), nn.BatchNorm(False), nn.InstanceNorm()]
)
def test_gains_of_linen_are_one(module):
    x = jax.random.normal(KEY, (4, 6, 8))

    def apply_fn(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])

    new, rows = drawn({"params": shapes(module.init(KEY, x)["params"])}, apply_fn, x)
    np.testing.assert_array_equal(new["params"]["scale"], 1)
    assert rows["params/scale"].role == "scale"


@pytest.mark.parametrize(
    ("function", "neutral"),
    [
        (lambda s: 1 + s, 0.0),
        (lambda s: 1 - 2 * s, 0.0),
        (lambda s: jnp.exp(s), 0.0),
        (jax.nn.softplus, np.log(np.e - 1)),
        (lambda s: 2 * jax.nn.sigmoid(3 * s), 0.0),
        (lambda s: s.astype(jnp.bfloat16).astype(jnp.float32) + 0.5, 0.5),
        (lambda s: 2 / (1 + jnp.exp(s)), 0.0),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_scales_start_where_the_product_changes_nothing(function, neutral, residual):
    def apply_fn(p, x):
        if residual:
            return (x + jnp.tanh(x @ p["v"]) * function(p["gain"])[None]) @ p["w"]
        return jnp.tanh(rms(x @ p["w"]) * function(p["gain"])[None])

    params = {"w": ones(4, 8), "gain": SOME[:4] if residual else SOME} | ({"v": ones(4, 4)} if residual else {})
    new, rows = drawn(shapes(params), apply_fn)
    assert rows["gain"].role == "scale"
    np.testing.assert_allclose(new["gain"], neutral, atol=1e-5)
    np.testing.assert_allclose(function(new["gain"]), 1, atol=1e-5)


def test_a_scale_that_can_change_nothing_at_no_value_is_kept():
    new, rows = drawn({"w": ones(4, 8), "gain": SOME}, lambda p, x: rms(x @ p["w"]) * jax.nn.sigmoid(p["gain"])[None])
    assert rows["gain"].init == "kept"
    np.testing.assert_array_equal(new["gain"], SOME)


def test_a_layer_scale_is_a_scale_behind_masks_and_offsets_too():
    mask = jax.random.bernoulli(KEY, 0.5, (32, 4))

    def apply_fn(p, x):
        branch = p["gain"][None] * jnp.tanh(x @ p["v"]) + p["offset"][None]
        return (x + jnp.where(mask, branch / 0.5, 0.0)) @ p["w"]

    new, rows = drawn({"w": ones(4, 8), "v": ones(4, 4), "gain": SOME[:4], "offset": SOME[:4]}, apply_fn)
    assert (rows["gain"].role, rows["offset"].role) == ("scale", "offset")
    np.testing.assert_array_equal(new["gain"], 1)


def test_statistics_that_a_layer_has_gone_through_normalise_nothing():
    """Squeeze and excitation: a factor from statistics, but by weights of its own."""

    def apply_fn(p, x):
        x = x @ p["w"]
        return x * jax.nn.sigmoid(x.mean(0, keepdims=True) @ p["excite"]) * p["gain"][None]

    new, rows = drawn({"w": ones(4, 8), "excite": ones(8, 8), "gain": SOME}, apply_fn)
    assert rows["gain"].role == "unknown"
    np.testing.assert_array_equal(new["gain"], SOME)


# Slopes, buffers, quantised weights.


def prelu(x, slope):
    return jnp.where(x > 0, x, slope[None] * x)


@pytest.mark.parametrize("activation", [prelu, lambda x, a: jnp.maximum(x, 0) + a[None] * jnp.minimum(x, 0)])
@pytest.mark.parametrize("norm", [lambda x: x, rms])
def test_slopes_of_an_activation_keep_their_values(activation, norm):
    new, rows = drawn({"w": ones(4, 8), "slope": SOME}, lambda p, x: activation(norm(x @ p["w"]), p["slope"]))
    if activation is prelu:
        assert rows["slope"].role == "slope"
        np.testing.assert_array_equal(new["slope"], SOME)
    elif norm is not rms:
        np.testing.assert_array_equal(new["slope"], SOME)


def test_the_slope_of_linen_stays():
    model = nn.Sequential([nn.Dense(8), nn.PReLU()])
    variables = model.init(KEY, X)
    new, _rows = drawn(variables, model.apply)
    assert float(new["params"]["layers_1"]["negative_slope"]) == pytest.approx(0.01)


def test_what_the_program_uses_behind_stop_gradient_only_is_a_buffer():
    stop = jax.lax.stop_gradient

    def apply_fn(p, x):
        features = jnp.sin(x @ stop(p["frequencies"]))
        return (features + stop(p["table"])) @ p["w"] * stop(p["scale"])

    old = {"frequencies": ones(4, 8) * 3, "table": ones(32, 8), "w": ones(8, 2), "scale": ones() * 2}
    new, rows = drawn(old, apply_fn)
    for path in ("frequencies", "table", "scale"):
        assert rows[path].role == "buffer"
        np.testing.assert_array_equal(new[path], old[path])
    assert rows["w"].role == "dense"


def test_layers_before_a_stopped_gradient_of_data_are_drawn():
    def apply_fn(p, x):
        return jax.lax.stop_gradient(jnp.tanh(x @ p["backbone"])) @ p["head"]

    _, rows = drawn(shapes({"backbone": ones(4, 8), "head": ones(8, 2)}), apply_fn)
    assert {row.role for row in rows.values()} == {"dense"}


def dequantised(form):
    def by_number(p):
        return p["q"].astype(jnp.float32) * p["s"]

    def by_column(p):
        return p["q"].astype(jnp.float32) * p["s"][None]

    def with_zero_points(p):
        return (p["q"].astype(jnp.float32) - p["z"][None]) * p["s"][None]

    def by_blocks(p):
        return (p["q"].reshape(2, 2, 8).astype(jnp.float32) * p["s"]).reshape(4, 8)

    def by_table(p):
        return jnp.array([-1.0, 0.5, 2.0])[p["q"]] * p["s"]

    forms = {"number": by_number, "columns": by_column, "zero points": with_zero_points}
    return (forms | {"blocks": by_blocks, "table": by_table})[form]


@pytest.mark.parametrize(
    ("form", "shape"),
    [("number", ()), ("columns", (8,)), ("zero points", (8,)), ("blocks", (2, 1, 8)), ("table", (4, 1))],
)
def test_scales_of_quantised_weights_keep_their_values(form, shape):
    old = {"q": jnp.ones((4, 8), jnp.int8), "s": jnp.full(shape, 1e-3), "z": jnp.full(8, 3.0), "w": ones(8, 2)}
    new, rows = drawn(old, lambda p, x: jnp.tanh(x @ dequantised(form)(p)) @ p["w"])
    assert (rows["s"].role, rows["s"].init) == ("quantisation scale", "kept")
    np.testing.assert_array_equal(new["s"], old["s"])
    np.testing.assert_array_equal(new["z"], old["z"])
    assert rows["w"].role == "dense"


# Tokens, positions, offsets, gates.


@pytest.mark.parametrize("pieces", [1, 3])
def test_tokens_joined_to_a_sequence_are_drawn_as_positions_are(pieces):
    def apply_fn(p, x):
        h = x.reshape(8, 4, 4) @ p["w"]
        token = jnp.broadcast_to(p["token"], (8, pieces, 400))
        h = jnp.concatenate([token, h], axis=1) + p["position"]
        return rms(h) * p["gain"][None, None]

    params = {"w": ones(4, 400), "token": ones(1, pieces, 400), "position": ones(1, 4 + pieces, 400), "gain": ones(400)}
    new, rows = drawn(shapes(params), apply_fn)
    assert {path: row.role for path, row in rows.items()} == {
        "w": "dense", "token": "token", "position": "position", "gain": "scale"
    }  # fmt: skip
    assert float(jnp.std(new["token"])) == pytest.approx(0.02, rel=0.15)


def test_a_token_in_the_place_of_masked_data():
    def apply_fn(p, x):
        h = x @ p["w"]
        return jnp.where(x[:, :1] > 0, p["token"][None], h)

    _, rows = drawn(shapes({"w": ones(4, 8), "token": ones(8)}), apply_fn)
    assert rows["token"].role == "token"


def test_features_that_are_parameters_are_no_tokens():
    def apply_fn(p, x):
        return jnp.concatenate([x, jnp.broadcast_to(p["extra"], (32, 8))], axis=1) @ p["w"]

    _new, rows = drawn({"w": ones(12, 8), "extra": SOME}, apply_fn)
    assert rows["extra"].init == "kept"


def attend(q, k, v):
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / 8**0.5) @ v


def pooled(p, x):
    return attend(p["queries"] @ p["q"] + p["bias"][None], x @ p["k"], x @ p["v"]) @ p["out"]


def pooled_in_copies(p, x):
    queries = jnp.tile(p["queries"][None], (len(x), 1, 1)) @ p["q"] + p["bias"][None, None]
    return attend(queries, x @ p["k"], x @ p["v"]) @ p["out"]


def queries_among_themselves(p, x):
    own = attend(p["queries"] @ p["k"], p["queries"] @ p["k"], p["queries"])
    return attend(own @ p["q"] + p["bias"][None], x @ p["k"], x @ p["v"]) @ p["out"]


def memory(p, x):
    return attend(x @ p["q"] + p["bias"][None, None], p["queries"] @ p["k"], p["queries"] @ p["v"]) @ p["out"]


@pytest.mark.parametrize("apply_fn", [pooled, pooled_in_copies, queries_among_themselves, memory])
def test_layers_of_learned_queries_are_layers(apply_fn):
    """What a leaf is multiplied with before attention is a kernel, and what is added to it is a bias, not a weight."""
    keys = dict(zip(("queries", "q", "k", "v", "out"), jax.random.split(KEY, 5), strict=True))
    old = {name: jax.random.normal(key, (3 if name == "queries" else 8, 8)) for name, key in keys.items()}
    old["bias"] = SOME
    x = jax.random.normal(KEY, (16, 5, 8))
    new, rows = drawn(old, apply_fn, x)
    assert rows["queries"].role == "embedding"
    assert float(jnp.std(new["queries"])) == pytest.approx(1, rel=0.4)
    assert rows["bias"].role == "bias"
    for name in ("q", "k", "v", "out"):
        assert rows[name].role.startswith("dense")
        if name != "out":
            assert float(jnp.std(new[name])) == pytest.approx(8**-0.5, rel=0.4)
    # A mean over five keys or fewer comes in.
    assert 0.7 * 8**-0.5 < float(jnp.std(new["out"])) < 1.3 * (5 / 8) ** 0.5
    if apply_fn is pooled:
        scaled = jaxinit.lsuv(old, apply_fn, x)
        np.testing.assert_array_equal(scaled["queries"], old["queries"])
        np.testing.assert_array_equal(scaled["bias"], SOME)
        for value in (scaled["queries"] @ scaled["q"] + SOME[None], x @ scaled["k"], x @ scaled["v"]):
            assert float(jnp.std(value)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("biased", [0.0, 1.0])
def test_what_makes_an_array_that_is_added_to_data_is_a_layer(biased):
    """Features of positions times a kernel, known or learned: drawing the kernel as positions would ignore its fans."""
    table = jnp.sin(jnp.outer(jnp.arange(5.0), jnp.arange(1.0, 7.0)))
    old = {"w": ones(8, 8), "kernel": ones(6, 8), "features": ones(5, 6), "bias": ones(8)}
    for features in (lambda p: table, lambda p: p["features"]):
        _new, rows = drawn(
            old,
            lambda p, x, of=features: jnp.tanh(
                x @ p["w"] + (of(p) @ p["kernel"])[None] + biased * p["bias"][None, None]
            ),
            ones(4, 5, 8),
        )
        assert rows["kernel"].role == "dense"
    assert rows["features"].role == "embedding"


def test_an_array_added_to_data_times_another_leaf_keeps_its_value():
    """Constant noise and its strength: the program does not show which of the two starts at zero, if any."""
    old = {"w": ones(4, 8), "noise": 3 * jax.random.normal(KEY, (32, 8)), "strength": SOME}
    new, rows = drawn(old, lambda p, x: jnp.tanh(x @ p["w"] + p["noise"] * p["strength"][None]))
    for name in ("noise", "strength"):
        assert (rows[name].role, rows[name].init) == ("unknown", "kept")
        np.testing.assert_array_equal(new[name], old[name])


def test_two_factors_of_a_weight_are_no_queries():
    """Neither weighs anything by its exponential: an output of low rank, and an addition to a weight."""
    old = {"e": ones(6, 3), "p": ones(3, 8), "w": ones(8, 8)}
    for apply_fn in (
        lambda p, x: jnp.tanh(x @ p["w"]) @ (p["e"] @ p["p"]).T,
        lambda p, x: x @ (p["w"] + (p["e"] @ p["p"])[:1].T @ p["p"][:1]),
    ):
        _new, rows = drawn(old, apply_fn, ones(4, 8))
        assert not {"embedding", "bias"} & {row.role for row in rows.values()}


@pytest.mark.parametrize("scaled", [False, True])
def test_the_bias_of_a_norm_over_two_axes_is_no_position(scaled):
    def apply_fn(p, x):
        h = rms(x.reshape(8, 4, 4) @ p["w"])
        return jnp.tanh(h * p["gain"][None] + p["bias"][None]) if scaled else jnp.tanh(h + p["bias"][None])

    new, rows = drawn(shapes({"w": ones(4, 8), "gain": ones(4, 8), "bias": ones(4, 8)}) if scaled else
                      shapes({"w": ones(4, 8), "bias": ones(4, 8)}), apply_fn)  # fmt: skip
    assert rows["bias"].role == ("offset" if scaled else "position")
    assert bool(jnp.any(new["bias"] != 0)) is not scaled


def test_positions_added_to_a_layer_are_no_bias_and_biases_no_positions():
    _new, rows = drawn(
        shapes({"w": ones(4, 8), "bias": ones(8), "position": ones(4, 8)}),
        lambda p, x: jnp.tanh(x.reshape(8, 4, 4) @ p["w"] + p["bias"][None, None] + p["position"][None]),
    )
    assert {path: row.role for path, row in rows.items()} == {"w": "dense", "bias": "bias", "position": "position"}
    for spread in (lambda b: jnp.broadcast_to(b, (8, 4, 8)), lambda b: jnp.tile(b, (8, 4, 1))):
        _new, rows = drawn(
            shapes({"w": ones(4, 8), "bias": ones(8)}),
            lambda p, x, spread=spread: jnp.tanh(x.reshape(8, 4, 4) @ p["w"] + spread(p["bias"])),
        )
        assert rows["bias"].role == "bias"
    _heads, rows = drawn(
        shapes({"w": ones(4, 2, 3), "bias": ones(2, 3)}),
        lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"]) + p["bias"][None],
    )
    assert rows["bias"].role == "bias"


@pytest.mark.parametrize("swapped", [False, True])
def test_gates_over_positions_begin_open_and_gates_over_features_as_they_did(swapped):
    def spatial(p, x):
        u, v = jnp.split(x.reshape(8, 4, 4) @ p["w"], 2, axis=-1)
        if swapped:
            v = jnp.swapaxes(jnp.swapaxes(rms(v), 1, 2) @ p["mix"] + p["bias"][None, None], 1, 2)
        else:
            v = jnp.einsum("bnd,nm->bmd", rms(v), p["mix"]) + p["bias"][None, :, None]
        return u * v

    new, rows = drawn(shapes({"w": ones(4, 8), "mix": ones(4, 4), "bias": ones(4)}), spatial)
    assert rows["bias"].role == "gate bias"
    np.testing.assert_array_equal(new["bias"], 1)
    new, rows = drawn(
        shapes({"w": ones(4, 8), "mix": ones(4, 8), "bias": ones(8)}),
        lambda p, x: (x @ p["w"]) * (x @ p["mix"] + p["bias"][None]),
    )
    assert rows["bias"].role == "bias"
    np.testing.assert_array_equal(new["bias"], 0)


# Kernels whose scale cannot be set.


@pytest.mark.parametrize(
    "standardised",
    [
        lambda w: w / jnp.linalg.norm(w, axis=0)[None],
        lambda w: (w - w.mean(0)[None]) / jnp.sqrt(w.var(0) + 1e-4)[None],
    ],
)
def test_kernels_that_are_divided_by_their_own_norm_are_drawn(standardised):
    new, rows = drawn(shapes({"w": ones(4, 400)}), lambda p, x: jnp.tanh(x @ standardised(p["w"])))
    assert float(jnp.std(new["w"])) == pytest.approx(1 / 2, rel=0.1)
    assert rows["w"].role in ("dense", "kernel")


def test_weights_merged_with_others_keep_their_values():
    """A low-rank pair that is added to the weight before data meets it: its zero factor must stay zero."""
    old = {"w": ones(4, 8), "a": ones(4, 2), "b": jnp.zeros((2, 8))}
    new, rows = drawn(old, lambda p, x: x @ (p["w"] + p["a"] @ p["b"]))
    assert (rows["a"].init, rows["b"].init) == ("kept", "kept")
    np.testing.assert_array_equal(new["b"], 0)


@pytest.mark.parametrize("form", [lambda p: p["re"] + 1j * p["im"], lambda p: jax.lax.complex(p["re"], p["im"])])
def test_a_complex_weight_has_half_of_its_variance_in_each_part(form):
    params = shapes({"re": ones(4, 400), "im": ones(4, 400)})
    with jax.numpy_dtype_promotion("standard"):
        new, _ = drawn(params, lambda p, x: jnp.abs(x.astype(jnp.complex64) @ form(p)))
    for part in ("re", "im"):
        assert float(jnp.var(new[part])) == pytest.approx(1 / 8, rel=0.2)
    assert not np.array_equal(new["re"], new["im"])


def test_kept_leaves_stay_under_jit_and_vmap():
    old = trained()
    keys = jax.random.split(KEY, 2)
    new = jax.jit(jax.vmap(lambda key: initialize(key, old, linen_returned, X)))(keys)
    np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["var"], jnp.stack([SOME, SOME]))


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def scanned_pairs(p, x):
    def step(h, pair):
        return h + jnp.tanh(normalized(h) * pair[0][None] + pair[1][None]) @ p["w"][:8], None

    return jax.lax.scan(step, x, p["p"])[0]


SLICES = {
    "rows": ((2, 8), lambda p, x: (normalized(x) * p["p"][:1] + p["p"][1:]) @ p["w"][:8], [[1.0], [0.0]]),
    "columns": (
        (8, 2),
        lambda p, x: (normalized(x) * p["p"][:, 0][None] + p["p"][:, 1][None]) @ p["w"][:8],
        [[1.0, 0.0]],
    ),
    "about one": (
        (2, 8),
        lambda p, x: (normalized(x) * (1 + p["p"][0])[None] + p["p"][1][None]) @ p["w"][:8],
        [[0.0], [0.0]],
    ),
    "halves": (
        (16,),
        lambda p, x: (normalized(x) * jnp.split(p["p"], 2)[0][None] + jnp.split(p["p"], 2)[1][None]) @ p["w"][:8],
        [1.0] * 8 + [0.0] * 8,
    ),
    "bias too": (
        (4, 8),
        lambda p, x: (
            (
                normalized((normalized(x) * p["p"][0][None] + p["p"][1][None]) @ p["w"][:8] + p["p"][2][None])
                * p["p"][3][None]
            )
            ** 2
        ),
        [[1.0], [0.0], [0.0], [1.0]],
    ),
    "scan": ((3, 2, 8), scanned_pairs, [[1.0], [0.0]]),
}


@pytest.mark.parametrize("form", SLICES)
def test_slices_of_a_leaf_have_roles_of_their_own(form):
    shape, apply_fn, wanted = SLICES[form]
    params = {"p": jax.ShapeDtypeStruct(shape, jnp.float32), "w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    new, report = jaxinit.initialize(jax.random.key(0), params, apply_fn, jnp.ones((4, 8)), return_report=True)
    np.testing.assert_array_equal(new["p"], np.broadcast_to(np.array(wanted), shape))
    rows = [row for row in report.rows if row.path.startswith("p[")]
    assert {row.role for row in rows} <= {"scale", "offset", "bias"}
    assert sum(np.prod(row.shape) for row in rows) == np.prod(shape)
    over = jaxinit.initialize(jax.random.key(0), params, apply_fn, jnp.ones((4, 8)), overrides={"p": jaxinit.ones})
    np.testing.assert_array_equal(over["p"], 1)


def test_a_kernel_and_slices_of_other_roles_may_lie_in_one_leaf():
    """Rows 0 to 8 are a kernel, row 8 its bias, row 9 a gain; nothing reads row 10, and row 11 is a slope."""

    def apply_fn(p, x):
        z = normalized(x @ p[:8] + p[8][None]) * p[9][None]
        return jnp.where(z > 0, z, p[11][None] * z)

    old = jax.random.normal(jax.random.key(1), (12, 8))
    new, report = jaxinit.initialize(jax.random.key(0), old, apply_fn, jnp.ones((4, 8)), return_report=True)
    np.testing.assert_array_equal(new[8:10], [[0.0] * 8, [1.0] * 8])
    np.testing.assert_array_equal(new[10:], old[10:])
    assert not np.any(new[:8] == old[:8])
    (kept,) = (row for row in report.rows if row.init == "kept")
    assert "slope" in kept.reason
    with pytest.raises(ValueError, match="slope"):
        jaxinit.initialize(jax.random.key(0), jax.eval_shape(lambda: old), apply_fn, jnp.ones((4, 8)))
