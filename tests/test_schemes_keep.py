"""`initialize(..., keep=...)`: kept leaves do not change, and later layers are drawn for their outputs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit

KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (512, 64))


def apply_fn(params, x):
    for p in params["backbone"]:
        x = jax.nn.relu(x @ p["w"] + p["b"][None])
    return x @ params["head"]["w"] + params["head"]["b"][None]


def pretrained(scale=0.3):
    backbone = [{"w": scale * jax.random.normal(k, (64, 64)), "b": jax.random.normal(k, (64,)) / 10} for k in KEYS[1:4]]
    return {"backbone": backbone, "head": {"w": jnp.zeros((64, 512)), "b": jnp.ones(512)}}


CHOICES = {
    "pattern": "backbone*",
    "patterns": ["backbone/0/*", "backbone/1/*", "backbone/2/*"],
    "predicate": lambda path, layer: path.startswith("backbone"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_backbone_stays_and_its_head_is_drawn_for_what_it_gives(choice):
    """Outputs of unit variance on data, for any scale of the backbone: the head's variance differs from that alone."""
    for scale in (0.3, 0.05):
        params = pretrained(scale)
        new, report = jaxinit.initialize(KEYS[5], params, apply_fn, X, keep=CHOICES[choice], return_report=True)
        chex.assert_trees_all_equal(new["backbone"], params["backbone"])
        assert float(jnp.std(apply_fn(new, X))) == pytest.approx(1, rel=0.15)
        roles = {row.path: row.role for row in report.rows}
        assert {role for path, role in roles.items() if path.startswith("backbone")} == {"kept"}
        assert not np.any(new["head"]["b"])


def test_parts_of_layers_can_be_kept():
    params = pretrained()
    new = jaxinit.initialize(KEYS[5], params, apply_fn, X, "torch_default", keep="*/b")
    chex.assert_trees_all_equal([p["b"] for p in new["backbone"]], [p["b"] for p in params["backbone"]])
    assert not any(np.array_equal(a["w"], b["w"]) for a, b in zip(new["backbone"], params["backbone"], strict=True))

    def predicate(path, layer):
        return layer is not None and layer.fan_out == 512

    new = jaxinit.initialize(KEYS[5], params, apply_fn, X, keep=predicate)
    chex.assert_trees_all_equal(new["head"]["w"], params["head"]["w"])


def test_kept_weights_stay_where_a_scheme_decides_from_data():
    """Admin sets the multipliers of shortcuts after all else is drawn, but not those that are kept."""

    def residual(params, x):
        for p in params:
            y = p["omega"][None] * x + jax.nn.relu(x @ p["a"]) @ p["b"]
            x = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-6)
        return x

    params = [{"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64)), "omega": jnp.full(64, 7.0)} for _ in range(3)]
    new = jaxinit.initialize(KEYS[5], params, residual, X, "admin", keep="1/omega")
    assert bool(jnp.all(new[1]["omega"] == 7))
    assert not bool(jnp.any(new[2]["omega"] == 7))


def test_in_a_trace_it_stays_too():
    params = pretrained()
    traced = jax.jit(lambda key, p: jaxinit.initialize(key, p, apply_fn, X, keep="backbone*"))(KEYS[5], params)
    chex.assert_trees_all_equal(traced["backbone"], params["backbone"])
    assert np.any(traced["head"]["w"])


SHAPES = jax.eval_shape(lambda: pretrained())
WRONG = {
    "no match": (lambda: pretrained(), {"keep": "body/*"}, ValueError, "keep names 'body/\\*', which matches no leaf"),
    "kind": (lambda: pretrained(), {"keep": 3}, TypeError, "keep must be one or more path patterns"),
    "answer": (lambda: pretrained(), {"keep": lambda path, layer: path}, TypeError, "keep must return True or False"),
    "shapes": (lambda: SHAPES, {"keep": "backbone/0/w"}, ValueError, "no values to keep: backbone/0/w"),
    "both": (
        lambda: pretrained(),
        {"keep": "head/w", "overrides": {"head*": jaxinit.zeros}},
        ValueError,
        "head/w is both kept and overridden",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_says_why(case):
    params, options, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        jaxinit.initialize(KEYS[5], params(), apply_fn, X, **options)


@pytest.mark.parametrize("scheme", ["auto", "torch_default"])
def test_a_low_rank_pair_beside_a_kept_weight_starts_at_zero(scheme):
    """A is uniform by the inputs of its layer in any layout, B zero; what is behind is drawn for the base alone."""
    params = {
        "base": {"w": normal(0, 64, 48) / 8, "b": normal(1, 48)},
        "a": normal(2, 4, 64),
        "b": normal(3, 48, 4),
        "head": jnp.zeros((48, 512)),
    }

    def apply_fn(p, x):
        y = x @ p["base"]["w"] + p["base"]["b"][None]
        return jax.nn.relu(y + 0.5 * (x @ p["a"].T) @ p["b"].T) @ p["head"]

    new, report = jaxinit.initialize(KEYS[5], params, apply_fn, X, scheme, keep="*base*", return_report=True)
    chex.assert_trees_all_equal(new["base"], params["base"])
    assert not np.any(new["b"])
    assert 0.9 / 8 < float(jnp.max(jnp.abs(new["a"]))) <= 1 / 8
    assert float(jnp.mean(new["a"] ** 2)) == pytest.approx(1 / (3 * 64), rel=0.3)
    assert [row.role for row in report.rows if row.path in ("a", "b")] == ["adapter", "adapter"]
    if scheme == "auto":
        assert float(jnp.std(apply_fn(new, X))) == pytest.approx(1, rel=0.15)
    # What the user decides stays decided; without a kept base both are layers like others.
    told = jaxinit.initialize(KEYS[5], params, apply_fn, X, scheme, keep=["*base*", "a"], overrides={"b": jaxinit.ones})
    chex.assert_trees_all_equal((told["a"], told["b"]), (params["a"], jnp.ones((48, 4))))
    assert np.any(jaxinit.initialize(KEYS[5], params, apply_fn, X, scheme)["b"])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)
