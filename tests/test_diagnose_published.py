"""`diagnose` on published initializations: it finds no fault in them, and finds each planted fault at its layer.

All tests of a family share one compiled program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import promotion
from helpers.published import STARTS, Draws, dense, tokens, vectors
from helpers.reports import faults

from jaxinit import diagnose
from jaxinit._reading import layers_of, trace

KEY = jax.random.key(0)
FAST = ("fixup_resnet", "gru_of_tokens", "ppo", "siren", "vit")
"""Families that stand for all others where time is short."""


@pytest.fixture(autouse=True)
def _models_as_they_are_published():
    with promotion.of_models_alone():
        yield


@functools.cache
def built(name):
    return STARTS[name]()


def family(name):
    return pytest.param(name, marks=() if name in FAST else pytest.mark.slow)


def report_of(name, params=None):
    own, apply_fn, batch = built(name)
    return diagnose(own if params is None else params, apply_fn, batch, lanczos_steps=0)


REMARKS = {
    "resnet": ("4 branches start closed", "they add nothing", "blocks/0/conv2"),
    "unet": ("5 branches start closed", "out starts small"),
    "convnext": ("4 branches start closed",),
    "fixup_resnet": ("4 branches start closed", "out/w is zero", "gradients were not judged"),
    "vit": ("out/w is zero, so no gradient reaches the layers before", "gradients were not judged"),
    "dit": ("6 branches start closed", "out/w is zero"),
    "cait": ("8 branches start closed",),
    "rezero": ("8 branches start closed", "they add nothing"),
    "mixer": ("out/w is zero",),
    "mamba": ("The verdict does not cover 2 leaves that could not be read: blocks/A_log",),
    "lru": ("The verdict does not cover 4 leaves",),
    "ppo": ("actor/2/w starts small", "The verdict does not cover 1 leaf that could not be read: log_std"),
    "ppo_of_images": ("policy/w starts small",),
    "small_heads": ("policy/w starts small",),
}


@pytest.mark.parametrize("name", [family(name) for name in STARTS])
def test_no_fault_is_found_on_what_authors_publish(name):
    report = report_of(name)
    assert report.healthy, report.verdict
    for remark in REMARKS.get(name, ()):
        assert remark in report.verdict, (remark, report.verdict)
    if name not in REMARKS:
        assert not report.remarks()
    if "gradients were not judged" in report.verdict:
        assert "gradients keep" not in report.verdict
    if report.unread:
        assert "through all layers" not in report.verdict


def planted(params, path, change, at=None):
    """Parameters with one leaf, or one slice of it, changed."""

    def one(where, leaf):
        if jax.tree_util.keystr(where, simple=True, separator="/") != path:
            return leaf
        return change(leaf) if at is None else leaf.at[at].set(change(leaf[at]))

    return jax.tree_util.tree_map_with_path(one, params)


LARGE, SMALL = (lambda w: 100 * w), (lambda w: 0.01 * w)
SATURATED = lambda w: 30 * w  # noqa: E731
DEAD = lambda b: b - 10  # noqa: E731
EQUAL = lambda w: jnp.broadcast_to(w[..., :1], w.shape)  # noqa: E731

PLANTED = [
    ("resnet", "blocks/1/conv1", None, LARGE, "outlier", "blocks/1/conv1"),
    ("resnet", "blocks/1/conv1", None, SMALL, "outlier", "blocks/1/conv1"),
    ("resnet", "blocks/1/bn1/b", None, DEAD, "dead", "blocks/1/conv1"),
    ("resnet", "blocks/1/conv1", None, EQUAL, "equal units", "blocks/1/conv1"),
    ("unet", "middle/0/conv1", None, LARGE, "outlier", "middle/0/conv1"),
    ("unet", "down/1/conv1", None, SMALL, "outlier", "down/1/conv1"),
    ("vit", "blocks/up/w", 1, LARGE, "outlier", "blocks/up/w[1]"),
    ("vit", "blocks/up/w", 2, SMALL, "outlier", "blocks/up/w[2]"),
    ("vit", "blocks/up/b", 1, DEAD, "dead", "blocks/up/w[1]"),
    ("vit", "blocks/up/w", 1, EQUAL, "equal units", "blocks/up/w[1]"),
    ("gpt2", "blocks/2/up/w", None, LARGE, "outlier", "blocks/2/up/w"),
    ("gpt2", "blocks/1/up/w", None, SMALL, "outlier", "blocks/1/up/w"),
    ("gpt2", "blocks/2/down/w", None, SMALL, "outlier", "blocks/2/down/w"),
    ("gpt2", "blocks/2/up/b", None, DEAD, "dead", "blocks/2/up/w"),
    ("dit", "blocks/up/w", 1, LARGE, "outlier", "blocks/up/w[1]"),
    ("dit", "blocks/qkv/w", 2, SMALL, "outlier", "blocks/qkv/w[2]"),
    ("dit", "blocks/up/b", 1, DEAD, "dead", "blocks/up/w[1]"),
    ("mamba", "blocks/in", 1, LARGE, "outlier", "blocks/in[1]"),
    ("mamba", "blocks/in", 1, SMALL, "outlier", "blocks/in[1]"),
    ("mamba", "blocks/out", 1, SMALL, "outlier", "blocks/out[1]"),
    ("lru", "blocks/1/glu/w", None, LARGE, "outlier", "blocks/1/glu/w"),
    ("gru", "cells/1/wx", None, LARGE, "outlier", "cells/1/wx"),
    ("gru", "cells/1/wx", None, SMALL, "outlier", "cells/1/wx"),
    ("gru", "cells/0/wx", None, lambda w: 60 * w, "saturated", "cells/0/wx"),
    ("siren", "hidden/1/w", None, LARGE, "outlier", "hidden/1/w"),
    ("siren", "hidden/1/w", None, SMALL, "outlier", "hidden/1/w"),
    ("mixer", "blocks/1/tokens/up/w", None, LARGE, "outlier", "blocks/1/tokens/up/w"),
    ("mixer", "blocks/1/channels/up/w", None, SMALL, "outlier", "blocks/1/channels/up/w"),
    ("mixer", "blocks/1/channels/up/b", None, DEAD, "dead", "blocks/1/channels/up/w"),
    ("mixer", "blocks/1/channels/up/w", None, EQUAL, "equal units", "blocks/1/channels/up/w"),
    ("ppo", "critic/1/w", None, LARGE, "outlier", "critic/1/w"),
    ("ppo", "critic/1/w", None, SMALL, "outlier", "critic/1/w"),
    ("ppo", "actor/0/w", None, SATURATED, "saturated", "actor/0/w"),
    ("ppo", "critic/1/w", None, EQUAL, "equal units", "critic/1/w"),
    ("ppo_of_images", "convs/1/w", None, LARGE, "outlier", "convs/1/w"),
    ("ppo_of_images", "dense/w", None, SMALL, "outlier", "dense/w"),
    ("ppo_of_images", "dense/b", None, DEAD, "dead", "dense/w"),
]


@pytest.mark.parametrize(
    ("name", "path", "at", "change", "fault", "layer"),
    [pytest.param(*row, marks=() if row[0] in FAST else pytest.mark.slow) for row in PLANTED],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_planted_fault_is_named_at_its_layer(name, path, at, change, fault, layer):
    report = report_of(name, planted(built(name)[0], path, change, at))
    assert faults(report).get(fault) == layer, report.verdict


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("siren", 10.0),
        pytest.param("fixup_resnet", 30.0, id="closed"),
        pytest.param("lstm", 50.0, marks=pytest.mark.slow),
        pytest.param("unet", 30.0, marks=pytest.mark.slow),
    ],
)
def test_what_all_layers_blow_up_explodes(name, factor):
    params, apply_fn, batch = built(name)
    if name == "fixup_resnet":  # its branches opened, as He would
        draws = Draws(1)
        open_blocks = [{**p, "conv2": draws.he_out(3, 3, 16, 16)} for p in params["blocks"]]
        params = {**params, "blocks": open_blocks, "out": {"w": draws.lecun(16, 10), "b": jnp.zeros(10)}}
        factor = 3.0
    large = jax.tree.map(lambda w: factor * w if jnp.ndim(w) > 1 else w, params)
    steps = 2 if name == "lstm" else 0
    found = faults(diagnose(large, apply_fn, batch, lanczos_steps=steps))
    assert {"exploding gradient", "exploding signal", "saturated"} & set(found), name


def test_a_mask_that_is_multiplied_by_a_billion_is_no_sensitivity():
    draws, width = Draws(), 16
    params = {name: draws.lecun(width, width) for name in "qkv"}
    params |= {"embed": draws.normal(1.0, 64, width), "in": draws.lecun(4, width), "out": draws.lecun(width, 3)}
    mask = (jnp.arange(12)[None] < jnp.arange(4, 20)[:, None]).astype(jnp.float32)

    def attention(params, x, scores):
        scores = jnp.einsum("nqd,nkd->nqk", x @ params["q"], x @ params["k"]) / width**0.5 + scores
        return jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(scores), x @ params["v"]) @ params["out"]

    def of_tokens(params, batch):
        t, mask = batch
        return attention(params, params["embed"][t], ((1 - mask) * -1e9)[:, None])

    def of_numbers(params, batch):
        x, mask = batch
        return attention(params, (x * mask[..., None]) @ params["in"], 1e9 * (mask[:, None] - 1))

    def looped(params, batch):
        t, mask = batch

        def block(x, _):
            return x + attention(params, x, -1e9 * (1 - mask)[:, None]) @ params["out"].T, None

        return jax.lax.scan(block, params["embed"][t], None, length=2)[0]

    numbers = jax.random.normal(KEY, (16, 12, 4))
    for apply_fn, data in ((of_tokens, tokens()), (looped, tokens()), (of_numbers, numbers)):
        report = diagnose(params, apply_fn, (data, mask))
        assert "exploding gradient" not in faults(report), (apply_fn, report.verdict)
    # Inputs of two values that a layer takes are what the model sees.
    binary = (numbers > 0).astype(jnp.float32)
    steep = diagnose(1e6 * params["in"], lambda w, x: x @ w, binary.reshape(-1, 4))
    assert float(steep.jacobian_mean_square) > 1e10


def test_few_samples_do_not_make_units_dead():
    def apply_fn(params, x):
        for w, b in params:
            x = jax.nn.relu(x @ w + b)
        return x

    draws = Draws(3)
    params = [(draws.normal((2 / 32) ** 0.5, 32, 32), jnp.zeros(32)) for _ in range(12)]
    one = jax.random.normal(KEY, (1, 32))
    close = one + 0.3 * vectors(32, 2)  # alike, as samples come to be behind many rectified layers
    report = diagnose(params, apply_fn, close, lanczos_steps=0)
    assert np.max(report.dead) > 0.4
    assert "dead" not in faults(report), report.verdict
    # How far off units are is known of a few samples, too.
    killed = [(w, b - 100.0 if i == 5 else b) for i, (w, b) in enumerate(params)]
    assert faults(diagnose(killed, apply_fn, vectors(32, 4), lanczos_steps=0)) == {"dead": "5/0"}


def test_shares_that_few_samples_give_are_said_with_doubt():
    w = jnp.concatenate([-jnp.ones((1, 24)), jnp.ones((1, 8))], 1) * jnp.linspace(0.5, 2, 32)
    two = jnp.array([[1.0], [0.1]])
    report = diagnose([w, jnp.eye(32)], lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], two, lanczos_steps=0)
    assert report.dead[0] == pytest.approx(0.75)
    assert "dead" not in faults(report)
    assert "75% of the units of 0 are flat at all samples of this batch, which is too small" in report.verdict


def steps(parametrization):
    """A recurrence whose steps or decays are computed from data, small as their authors want them."""
    draws, width = Draws(), 16
    start = {"softplus": -5.0, "exp": -5.0, "decay": -4.0, "log_sigmoid": 5.0}[parametrization]
    params = {
        "in": draws.lecun(3, width),
        "step": {"w": 0.3 * draws.lecun(width, width), "b": jnp.full(width, start)},
        "value": draws.lecun(width, width),
        "out": draws.lecun(width, 2),
    }

    def apply_fn(params, x):
        x = x @ params["in"]
        z = dense(params["step"], x)
        size = {
            "softplus": lambda z: jax.nn.softplus(z),
            "exp": lambda z: jnp.exp(z),
            "decay": lambda z: jnp.exp(-jnp.exp(z)),
            "log_sigmoid": lambda z: jnp.exp(jax.nn.log_sigmoid(z)),
        }[parametrization](z)
        decay = jnp.exp(-size) if parametrization in ("softplus", "exp") else size
        added = (size if parametrization in ("softplus", "exp") else 1.0) * (x @ params["value"])

        def step(h, at):
            h = at[0] * h + at[1]
            return h, h

        last, _ = jax.lax.scan(step, jnp.zeros(x.shape[::2]), (jnp.swapaxes(decay, 0, 1), jnp.swapaxes(added, 0, 1)))
        return last @ params["out"]

    return params, apply_fn, jax.random.normal(KEY, (16, 12, 3))


@pytest.mark.parametrize("parametrization", ["softplus", "exp", "decay", "log_sigmoid"])
def test_small_steps_and_decays_near_one_are_not_saturated(parametrization):
    report = diagnose(*steps(parametrization), lanczos_steps=0)
    assert not {"saturated", "dead"} & set(faults(report)), report.verdict


def _norms():
    def centred(x):
        return x - x.mean(-1, keepdims=True)

    return {
        "var": lambda x: centred(x) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6),
        "std": lambda x: centred(x) / (x.std(-1, keepdims=True) + 1e-6),
        "mean of squares": lambda x: centred(x) * jax.lax.rsqrt((centred(x) ** 2).mean(-1, keepdims=True) + 1e-6),
        "fast": lambda x: (
            centred(x) * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 1e-6)
        ),
        "root of means": lambda x: x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6),
        "sums": lambda x: x * (jnp.sum(x * x, -1, keepdims=True) / x.shape[-1] + 1e-6) ** -0.5,
        "einsum": lambda x: x / jnp.sqrt(jnp.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1] + 1e-6),
        "norm": lambda x: x.shape[-1] ** 0.5 * x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        "power": lambda x: x * jnp.power(jnp.mean(jnp.abs(x) ** 2.0, -1, keepdims=True) + 1e-6, -0.5),
        "standardize": lambda x: jax.nn.standardize(x, epsilon=1e-6),
    }


@pytest.mark.parametrize(
    "norm", [pytest.param(n, marks=() if n in ("var", "sums") else pytest.mark.slow) for n in _norms()]
)
def test_small_embeddings_behind_a_norm_have_no_activation_and_no_fault(norm):
    normalize, draws = _norms()[norm], Draws()
    params = [draws.normal(0.02, 64, 32), draws.normal(0.02, 3, 32), draws.lecun(32, 32), draws.lecun(32, 4)]

    def apply_fn(params, batch):
        t, x = batch
        h = normalize(params[0][t] + x @ params[1])
        return jax.nn.relu(h @ params[2]) @ params[3]

    report = diagnose(params, apply_fn, (tokens(), jax.random.normal(KEY, (16, 12, 3))), lanczos_steps=0)
    assert report.healthy, report.verdict
    assert [row.activation for row in report.rows] == [None, None, "relu", None]


def depths(params, apply_fn, batch):
    traced = trace(params, apply_fn, batch)
    names = [layer.name for layer in layers_of(traced)]
    return {name: traced.depths[unit][0].layers for name, unit in zip(names, traced.analysis.weights, strict=True)}


def skips(params, apply_fn, batch):
    return {layer.name: layer.skip for layer in layers_of(trace(params, apply_fn, batch))}


def test_what_conditions_a_model_makes_it_no_deeper():
    found = depths(*built("dit"))
    assert (found["time/1/w"], found["blocks/qkv/w"], found["blocks/proj/w"]) == (1, 1, 2)
    found = depths(*built("unet"))
    assert (found["down/0/time/w"], found["down/0/conv1"], found["down/0/conv2"]) == (2, 1, 2)
    towers = {i: [jnp.ones((4, 8)), jnp.ones((8, 8))] for i in range(40)}

    def beside(params, x):
        return sum(jax.nn.relu(jax.nn.relu(x @ a) @ b) for a, b in params.values())

    assert max(depths(towers, beside, vectors(4)).values()) == 1


def test_sums_with_what_is_the_same_at_all_positions_are_no_skip_connections():
    w = jnp.ones((8, 8))

    def beside(params, x):
        return x @ params["x"] + (jax.nn.relu(x.mean(1) @ params["a"]) @ params["b"])[:, None]

    def of_parts(params, x):
        return x[:, 1:] @ params["x"] + (jax.nn.relu(x[:, 0] @ params["a"]) @ params["b"])[:, None]

    def of_another_layer(params, x):
        place = jax.nn.relu(jnp.arange(5.0)[:, None] * x.mean((0, 1)) @ params["a"]) @ params["b"]
        return x @ params["x"] + place

    def residual(params, x):
        return x @ params["x"] + jax.nn.relu(x @ params["a"]) @ params["b"]

    params, x = dict.fromkeys("xab", w), jnp.ones((4, 5, 8))
    for apply_fn in (beside, of_parts, of_another_layer):
        assert set(skips(params, apply_fn, x).values()) == {None}, apply_fn
    assert skips(params, residual, x) == {"x": None, "a": 0, "b": 0}


def test_readouts_may_be_small_and_inner_layers_may_not():
    def apply_fn(params, x):
        h = x
        for w in params["trunk"]:
            h = jnp.tanh(h @ w)
        return [h @ w for w in params["heads"]]

    draws = Draws()
    params = {
        "trunk": [draws.lecun(16, 32), draws.lecun(32, 32), draws.lecun(32, 32)],
        "heads": [draws.normal(s, 32, 4) for s in (1e-4, 0.05 / 32, 0.2)],
    }
    report = diagnose(params, apply_fn, vectors(16), lanczos_steps=0)
    assert report.healthy, report.verdict
    assert "heads/0, heads/1 start small" in report.verdict
    params["heads"][2] = 0 * params["heads"][2]
    params["trunk"][1] *= 0.01
    assert faults(diagnose(params, apply_fn, vectors(16), lanczos_steps=0))["outlier"] == "trunk/1"


def test_nothing_is_praised_that_was_not_read():
    def apply_fn(params, x):
        h = jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"])
        return jnp.sin(h * jnp.exp(params["rate"])) @ params["c"], jnp.sum(params["unread"])

    draws = Draws()
    params = {name: draws.lecun(16, 16) for name in "abc"} | {"rate": jnp.zeros(16), "unread": jnp.ones(3)}
    verdict = diagnose(params, apply_fn, vectors(16), lanczos_steps=0).verdict
    assert "through all layers" not in verdict
    assert "in the 3 layers that were read" in verdict
    assert "The verdict does not cover 2 leaves that could not be read: rate (" in verdict


def test_a_small_layer_beside_another_one_of_the_same_data_is_no_outlier():
    def noisy(params, x):
        for mean, spread in params:
            noise = jax.random.normal(jax.random.key(1), x.shape)
            x = jax.nn.relu(x @ mean + (x @ spread) * noise)
        return x

    draws = Draws()
    params = [(draws.normal(0.25, 32, 32), draws.normal(1e-3, 32, 32)) for _ in range(3)]
    report = diagnose(params, noisy, vectors(32), lanczos_steps=0)
    assert "outlier" not in faults(report), report.verdict


def test_features_of_wide_waves_are_no_vanishing_signal():
    """As in Tancik et al., 2020: what bounded waves remove from large phases was not signal."""
    draws = Draws()
    params = {"waves": draws.normal(10.0, 2, 24), "hidden": [draws.torch(48, 48), draws.torch(48, 48)]}

    def apply_fn(params, x):
        phases = 2 * jnp.pi * x @ params["waves"]
        x = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], -1)
        for p in params["hidden"]:
            x = jax.nn.relu(dense(p, x))
        return x

    report = diagnose(params, apply_fn, jax.random.uniform(KEY, (128, 2)), lanczos_steps=0)
    assert report.healthy, report.verdict
