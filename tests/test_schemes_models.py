"""Schemes for transformers, recurrent, residual and wide networks: each one's claim, on weights and on outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.architectures import encoder_decoder, equinox_lstm, residual, run_cell, struct
from helpers.models import MODELS

import jaxinit
from jaxinit import initialize, schemes

KEY = jax.random.key(0)


def drawn(params, apply_fn, batch, scheme, key=KEY):
    return jax.jit(lambda key: initialize(key, params, apply_fn, batch, scheme))(key)


def std(x):
    return float(jnp.std(x))


def glorot(shape):
    return (2 / sum(shape)) ** 0.5


@pytest.mark.parametrize("stacked", [False, True])
def test_t_fixup_scales_values_outputs_and_feed_forward_weights_by_depth(stacked):
    params, apply_fn, batch = encoder_decoder(blocks=3, d=64, stacked=stacked)
    new = drawn(params, apply_fn, batch, "t_fixup")
    encoder, decoder = (new[n] if stacked else new[n][1] for n in ("encoder", "decoder"))
    # At least 4,096 numbers: five standard errors of a standard deviation are 5.5%.
    square, wide = glorot((64, 64)), glorot((64, 256))
    for block, factor in ((encoder, 0.67 * 3**-0.25), (decoder, 27**-0.25)):
        for attention in (block["self"], block.get("cross", block["self"])):
            assert std(attention["q"]) == pytest.approx(square, rel=0.055)
            assert std(attention["k"]) == pytest.approx(square, rel=0.055)
            assert std(attention["v"]) == pytest.approx(factor * square, rel=0.055)
            assert std(attention["o"]) == pytest.approx(factor * square, rel=0.055)
        assert std(block["up"]) == pytest.approx(factor * wide, rel=0.055)
        assert std(block["down"]) == pytest.approx(factor * wide, rel=0.055)
    assert std(new["embed"]) == pytest.approx(64**-0.5 * 27**-0.25, rel=0.1)


@pytest.mark.parametrize("scheme", ["auto", "random_walk", "orthogonal_critical"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_no_gain_makes_up_for_what_attention_divides_its_queries_by(scheme, by_hand):
    """The division makes scores of unit size: their variance is one, not the head size of 16."""
    x = jax.random.normal(KEY, (2, 5, 64))

    def attend(p, x):
        q, k, v = ((x @ p[name]).reshape(2, 5, 4, 16) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", 0.25 * q, k))
        return jnp.einsum("bhij,bjhd->bihd", scores, v).reshape(2, 5, 64) @ p["o"]

    if by_hand:
        query = drawn({name: struct(64, 64) for name in "qkvo"}, attend, x, scheme)["q"]
    else:
        module = nn.MultiHeadDotProductAttention(4)
        query = drawn(jax.eval_shape(module.init, KEY, x), module.apply, x, scheme)["params"]["query"]["kernel"]
    assert 64 * float(jnp.var(query)) == pytest.approx(1, rel=0.12)  # 4,096 numbers: five standard errors


@pytest.mark.parametrize(("scheme", "size"), [("auto", 1), ("sparse", 1), ("random_walk", 1), ("torch_default", 8)])
def test_a_table_that_reads_out_as_well_is_drawn_for_the_readout(scheme, size):
    """Logits of unit size; PyTorch's standard normal table yields logits of the root of the width."""

    def tied(p, tokens):
        x = p["table"][tokens]
        x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)
        return x @ p["table"].T

    shapes = {"table": struct(300, 64), "up": struct(64, 64), "down": struct(64, 64)}
    tokens = jnp.arange(64) * 4
    new = drawn(shapes, tied, tokens, scheme)
    assert std(tied(new, tokens)) == pytest.approx(size, rel=0.25)


def test_running_means_of_a_collection_among_the_parameters_stay_zero():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))

    net, x = Net(), jnp.ones((4, 3))
    statistics = drawn(jax.eval_shape(net.init, KEY, x), net.apply, x, "torch_default")["batch_stats"]["BatchNorm_0"]
    assert not statistics["mean"].any()
    assert (statistics["var"] == 1).all()


def fused(d=64):
    def apply_fn(p, x):
        q, k, v = (z.reshape(2, 5, 4, d // 4) for z in jnp.split(x @ p["qkv"], 3, axis=-1))
        return x + jax.nn.dot_product_attention(q, k, v).reshape(2, 5, d) @ p["out"]

    return {"qkv": struct(d, 3 * d), "out": struct(d, d)}, apply_fn, jnp.ones((2, 5, d))


def test_of_a_fused_weight_the_values_alone_are_scaled_and_each_has_its_own_fans():
    new = drawn(*fused(), "t_fixup")
    query, key, value = jnp.split(new["qkv"], 3, axis=1)
    assert std(query) == pytest.approx(1 / 8, rel=0.055)
    assert std(key) == pytest.approx(1 / 8, rel=0.055)
    assert std(value) == pytest.approx(0.67 / 8, rel=0.055)


def test_deepnorm_has_the_constants_of_the_paper():
    # Table 1: 6 + 6, 100 + 100 blocks, and 18 blocks of one kind.
    encoder, decoder = schemes.deepnorm_constants(6, 6)
    assert encoder.alpha == pytest.approx(0.81 * 6 ** (5 / 16))
    assert encoder.beta == pytest.approx(0.87 * 6 ** (-5 / 16))
    assert decoder == pytest.approx((18**0.25, 72**-0.25))
    assert schemes.deepnorm_constants(encoder_layers=18)[0] == pytest.approx((36**0.25, 144**-0.25))
    assert schemes.deepnorm_constants() == (None, None)
    params, apply_fn, batch = encoder_decoder(blocks=2, d=64)
    new = drawn(params, apply_fn, batch, "deepnorm")
    of_encoder, of_decoder = schemes.deepnorm_constants(2, 2)
    assert std(new["encoder"][0]["self"]["v"]) == pytest.approx(of_encoder.beta / 8, rel=0.055)
    assert std(new["decoder"][0]["cross"]["o"]) == pytest.approx(of_decoder.beta / 8, rel=0.055)
    assert std(new["decoder"][0]["cross"]["q"]) == pytest.approx(1 / 8, rel=0.055)


def test_mimetic_products_are_noise_plus_a_multiple_of_the_identity():
    new = drawn(*fused(), schemes.mimetic())
    query, key, value = jnp.split(new["qkv"], 3, axis=1)
    product = value @ new["out"]
    # Diagonal −0.4 + 0.4 Z, Z of variance 1/64, over 64 entries; off it 0.4 / 8 over 4,032.
    assert float(jnp.mean(jnp.diag(product))) == pytest.approx(-0.4, abs=5 * 0.4 / 64)
    off = product[~np.eye(64, dtype=bool)]
    assert float(jnp.std(off)) == pytest.approx(0.4 / 8, rel=0.06)
    for head in range(4):
        columns = slice(16 * head, 16 * (head + 1))
        singular = np.linalg.svd(query[:, columns] @ key[:, columns].T, compute_uv=False)
        # Of the 64 singular values of 0.7 (Z + I) the 16 largest are kept: the norm of Z + I is about 2.5.
        assert singular[0] < 0.7 * 2.8
        assert singular[15] > 0.7
        assert singular[16] < 1e-5
    assert not np.allclose(query[:, :16], query[:, 16:32])


def test_mimetic_refuses_projections_of_different_widths():
    params = {"q": struct(8, 8), "k": struct(6, 8), "v": struct(6, 8), "o": struct(8, 8)}

    def apply_fn(p, batch):
        x, memory = batch
        heads = (z.reshape(2, -1, 2, 4) for z in (x @ p["q"], memory @ p["k"], memory @ p["v"]))
        return jax.nn.dot_product_attention(*heads).reshape(2, 5, 8) @ p["o"]

    with pytest.raises(schemes.MisfitError, match=r"of \['q', 'k'\] one pair"):
        initialize(KEY, params, apply_fn, (struct(2, 5, 8), struct(2, 7, 6)), "mimetic")


@pytest.mark.parametrize("scheme", ["skip_init", "rezero"])
def test_closed_branches_make_the_identity(scheme):
    params, apply_fn, x = residual(5, alpha=True)
    new = drawn(params, apply_fn, x, scheme)
    np.testing.assert_array_equal(apply_fn(new, x), x)
    assert std(new[0]["a"]) > 0.05
    with pytest.raises(schemes.MisfitError, match=r"\['0/a', '0/b'\]"):
        initialize(KEY, *residual(2), scheme)


def test_admin_weighs_skip_connections_by_the_variance_of_the_branches_before():
    params, apply_fn, x = residual(6, omega=True)
    new, report = initialize(KEY, params, apply_fn, x, "admin", return_report=True)
    total = 1.0
    for p in new:
        np.testing.assert_allclose(p["omega"], total**0.5, rtol=1e-4)
        # The profile is taken where all ω are one: run the network so.
        total += float(jnp.var(profile(new, x)[len_of(new, p)]))
    assert [r.reason for r in report.rows if r.path == "0/omega"] == ["the measured variance of the branches before it"]
    with pytest.raises(schemes.MisfitError, match="the batch must be arrays, got shapes"):
        initialize(KEY, params, apply_fn, struct(4, 64), "admin")
    with pytest.raises(schemes.MisfitError, match=r"\['0/a', '0/b'\]"):
        initialize(KEY, *residual(2), "admin")


def profile(params, x):
    """The output of every branch while all skip connections have the weight one."""
    outputs = []
    for p in params:
        branch = jax.nn.relu(x @ p["a"]) @ p["b"]
        outputs.append(branch)
        x = x + branch
        x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))
    return outputs


def len_of(blocks, block):
    return next(i for i, other in enumerate(blocks) if other is block)


def test_admin_takes_the_turns_of_a_scan_one_after_the_other():
    unrolled, apply_fn, x = residual(4, omega=True)
    stack = {k: struct(4, *v.shape) for k, v in unrolled[0].items()}

    def scanned(params, x):
        return jax.lax.scan(lambda x, p: (apply_fn([p], x), None), x, params)[0]

    new = initialize(KEY, stack, scanned, x, "admin")
    blocks = [jax.tree.map(lambda a, i=i: a[i], new) for i in range(4)]
    variances = [float(jnp.var(branch)) for branch in profile(blocks, x)]
    expected = np.sqrt(1 + np.concatenate([[0], np.cumsum(variances[:3])]))
    np.testing.assert_allclose(new["omega"][:, 0], expected, rtol=1e-4)


def test_recurrent_kernels_are_orthogonal_gate_by_gate_and_forget_gates_open():
    new = drawn(*equinox_lstm(), "recurrent")
    for gate in range(4):
        kernel = new.weight_hh[7 * gate : 7 * (gate + 1)]
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(7), atol=1e-5)
    np.testing.assert_array_equal(new.bias, np.repeat([0.0, 1.0, 0.0, 0.0], 7))


def test_a_gate_that_the_program_opens_gets_no_second_bias():
    params, apply_fn, x = MODELS["haiku_lstm"]()
    new = drawn(params, apply_fn, x, schemes.recurrent(forget=1.5))["lstm/linear"]
    np.testing.assert_allclose(new["b"][14:21], 0.5, atol=1e-4)
    for gate in range(4):
        kernel = new["w"][6:, 7 * gate : 7 * (gate + 1)]
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(7), atol=1e-5)
    assert drawn(params, apply_fn, x, "keras_default")["lstm/linear"]["b"][14] == pytest.approx(0, abs=1e-4)


def test_chrono_gates_mirror_each_other_and_spread_over_time_scales():
    cell = drawn(*run_cell(nn.LSTMCell(300)), schemes.recurrent(max_timescale=50))["params"]["cell"]
    np.testing.assert_array_equal(cell["hi"]["bias"], -cell["hf"]["bias"])
    steps = np.exp(cell["hf"]["bias"])
    # U(1, 49): mean 25, standard error 48 / sqrt(12 · 300) = 0.8.
    assert steps.min() >= 1
    assert steps.max() <= 49
    assert steps.mean() == pytest.approx(25, abs=5 * 0.8)


def test_keras_default_opens_forget_gates_of_lstm_cells_only():
    cell = drawn(*run_cell(nn.OptimizedLSTMCell(7)), "keras_default")["params"]["cell"]
    assert {name: float(leaf["bias"][0]) for name, leaf in cell.items() if "bias" in leaf} == {
        "hf": 1.0, "hg": 0.0, "hi": 0.0, "ho": 0.0
    }  # fmt: skip
    cell = drawn(*run_cell(nn.GRUCell(7)), "keras_default")["params"]["cell"]
    assert not any(np.any(leaf["bias"]) for leaf in cell.values() if "bias" in leaf)


def test_irnn_adds_its_input_to_its_state():
    params, apply_fn, x = run_cell(nn.SimpleCell(200, activation_fn=nn.relu))
    new = drawn(params, apply_fn, x, "irnn")["params"]["cell"]
    np.testing.assert_array_equal(new["h"]["kernel"], np.eye(200))
    assert std(new["i"]["kernel"]) == pytest.approx(0.001, rel=0.15)  # five standard errors of 600 numbers
    with pytest.raises(schemes.MisfitError, match=r"has gates; see schemes\.recurrent"):
        initialize(KEY, *run_cell(nn.LSTMCell(7)), "irnn")
    with pytest.raises(schemes.MisfitError, match="no loop of this model carries a state"):
        initialize(KEY, *residual(2), "irnn")


def crelu(x):
    return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)


@pytest.mark.parametrize("kind", ["crelu", "conv", "conv crelu", "scan"])
def test_looks_linear_networks_are_linear_to_rounding(kind):
    act = crelu if "crelu" in kind else jax.nn.relu
    if "conv" in kind:

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                for _ in range(6):
                    x = act(nn.Conv(8 if act is crelu else 16, (3, 3))(x))
                return nn.Conv(8, (3, 3))(x)

        net, x = Net(), jax.random.normal(KEY, (8, 5, 5, 8))
        params, apply_fn = jax.eval_shape(net.init, KEY, x), net.apply
    elif kind == "crelu":

        def apply_fn(p, x):
            for w in p[:-1]:
                x = act(x @ w)
            return x @ p[-1]

        x, params = jax.random.normal(KEY, (32, 16)), [struct(16, 16)] + [struct(32, 16)] * 20
    else:

        def apply_fn(p, x):
            x = jax.lax.scan(lambda x, w: (act(x @ w), None), act(x @ p["in"]), p["stack"])[0]
            return x @ p["out"]

        x = jax.random.normal(KEY, (32, 16))
        params = {"in": struct(16, 32), "stack": struct(30, 32, 32), "out": struct(32, 16)}
    new = drawn(params, apply_fn, x, "looks_linear")
    y = apply_fn(new, x)
    assert float(jnp.mean(y**2)) == pytest.approx(float(jnp.mean(x**2)), rel=1e-4)
    np.testing.assert_allclose(apply_fn(new, x + x[::-1]), y + y[::-1], atol=2e-5)
    np.testing.assert_allclose(apply_fn(new, -3 * x), -3 * y, atol=2e-5)


def test_looks_linear_wants_the_ends_of_the_network_outside_of_a_scan():
    def apply_fn(p, x):
        return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, p["stack"])[0] @ p["out"]

    with pytest.raises(schemes.MisfitError, match="but stack holds 3 layers"):
        initialize(KEY, {"out": struct(8, 2), "stack": struct(3, 8, 8)}, apply_fn, struct(4, 8), "looks_linear")


def wide(width):
    shapes = {"in": struct(8, width), "hidden": struct(width, width), "bias": struct(width), "out": struct(width, 1)}

    def apply_fn(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["in"]) @ p["hidden"] + p["bias"][None]) @ p["out"]

    return shapes, apply_fn


def test_mup_has_the_variances_and_learning_rates_of_table_3():
    x = jax.random.normal(KEY, (32, 8))
    shapes, apply_fn = wide(256)
    scheme = schemes.mup(wide(64)[0], zero_output=False)
    new = drawn(shapes, apply_fn, x, scheme)
    assert std(new["hidden"]) == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert std(new["in"]) == pytest.approx((1 / 8) ** 0.5, rel=0.08)
    # Base √2/8, and four times the fan-in: √2/8 / 4.
    assert std(new["out"]) == pytest.approx(2**0.5 / 32, rel=0.25)
    assert not np.any(drawn(shapes, apply_fn, x, schemes.mup(wide(64)[0]))["out"])
    adam = scheme.learning_rates(shapes, apply_fn, x)
    assert adam == {"bias": 1.0, "hidden": 0.25, "in": 1.0, "out": 0.25}
    sgd = scheme.learning_rates(shapes, apply_fn, x, optimizer="sgd")
    assert sgd == {"bias": 4.0, "hidden": 1.0, "in": 4.0, "out": 0.25}
    with pytest.raises(
        schemes.MisfitError, match=r"only the base has \['bias', 'hidden', 'in'\], only the model has \['qkv'\]"
    ):
        initialize(KEY, *fused(), scheme)


def test_coordinates_are_flat_in_width_under_mup_and_grow_without():
    x = jax.random.normal(KEY, (32, 8))

    def loss_fn(out, x):
        return jnp.mean((out[:, 0] - jnp.sin(x[:, 0])) ** 2)

    def build(width, key, scheme):
        shapes, apply_fn = wide(width)
        params = initialize(key, shapes, apply_fn, x, scheme)
        factors = jax.tree.map(lambda _: 1.0, shapes)
        if scheme != "auto":
            factors = scheme.learning_rates(shapes, apply_fn, x)
        scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
        return params, apply_fn, optax.chain(optax.adam(0.02), scale)

    def slopes(scheme):
        widths = (64, 512)
        report = schemes.coordinate_check(lambda w, k: build(w, k, scheme), widths, loss_fn, x, steps=3, seeds=2)
        assert "slope" in str(report)
        return dict(zip(report.layers, report.slopes, strict=True))

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam relies on it
        parametrized, standard = slopes(schemes.mup(wide(64)[0])), slopes("auto")
    assert all(abs(slope) < 0.25 for slope in parametrized.values())
    assert standard["out"] > 0.5
    assert standard["hidden"] > 0.2


def test_schemes_that_measure_jit_and_vmap_over_seeds():
    params, apply_fn, x = residual(2, omega=True, width=8)
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: initialize(key, params, apply_fn, x, "admin")))(keys)
    for i, key in enumerate(keys):
        one = initialize(key, params, apply_fn, x, "admin")
        np.testing.assert_allclose(together[1]["omega"][i], one[1]["omega"], rtol=1e-4)


def test_rules_of_the_user():
    """A custom scheme is a subclass with the rules that differ."""
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class _wide_queries(schemes.auto):
        def weight(self, matrix, model):
            rule = super().weight(matrix, model)
            return schemes.Rule(jaxinit.scaled(rule.init, 3.0), "mine") if matrix.role == "query" else rule

    query, key, _ = jnp.split(drawn(*fused(), _wide_queries())["qkv"], 3, axis=1)
    assert std(query) == pytest.approx(3 * std(key), rel=0.1)
