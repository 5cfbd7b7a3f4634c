"""Low-rank adapters: what moves into them, that the function stays, in any framework and storage layout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.compilations import compilations
from jax import lax

from jaxinit import lora

IN, OUT, RANK, ALPHA = 12, 10, 3, 8.0


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 40, IN)


def matrices(seed=1, *, out=OUT, stack=()):
    return {
        "w": normal(seed, *stack, IN, out),
        "a": normal(seed + 1, *stack, IN, RANK),
        "b": 0.3 * normal(seed + 2, *stack, RANK, out),
    }


def transposed(params):
    return {name: jnp.swapaxes(x, -1, -2) for name, x in params.items()}


class LinenAdapter(nn.Module):
    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.he_uniform(), (IN, RANK))
        b = self.param("b", nn.initializers.normal(), (RANK, OUT))
        return nn.Dense(OUT, name="w")(x) + (x @ a) @ b * (ALPHA / RANK)


def linen():
    def read(variables):
        p = variables["params"]
        return p["w"]["kernel"], p["a"], p["b"]

    return LinenAdapter().init(jax.random.key(0), X), LinenAdapter().apply, read


def nnx_lora():
    model = nnx.LoRALinear(IN, OUT, lora_rank=RANK, b_initializer=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    def read(state):
        return state["kernel"][...], state["lora"]["lora_a"][...], state["lora"]["lora_b"][...]

    return state, lambda p, x: nnx.merge(graph, p)(x), read


def equinox_style():
    """Rows of W are outputs, and samples are mapped over."""

    def layer(p, x):
        return p["w"] @ x + p["b"] @ (p["a"] @ x) * 2.0

    return transposed(matrices()), lambda p, x: jax.vmap(lambda x: layer(p, x))(x), read_transposed


def heads():
    """Projections to heads, of which the adapter is stored flat."""

    def apply_fn(p, x):
        x = x.reshape(4, 10, IN)
        flat = (x @ p["a"]) / 4.0 @ p["b"]
        return jnp.einsum("bti,ihd->bthd", x, p["w"].reshape(IN, 5, 2)) - flat.reshape(4, 10, 5, 2) * -1.0

    return matrices(), apply_fn, read_plain


def halves():
    """Queries of a fused projection, with a negative constant computed in the program."""

    def apply_fn(p, x):
        q, k = jnp.split(x @ p["w"].astype(jnp.float32) + 1.0, 2, axis=-1)
        return (q - 1.0 + -jnp.sqrt(x.shape[0] * 0.1) * ((x @ p["a"]) @ p["b"])) * jnp.tanh(k)

    return matrices() | {"w": normal(5, IN, 2 * OUT)}, apply_fn, lambda p: (p["w"][:, :OUT], p["a"], p["b"])


def read_plain(p):
    return p["w"], p["a"], p["b"]


def read_transposed(p):
    return p["w"].T, p["a"].T, p["b"].T


FORMS = {f.__name__: f for f in (linen, nnx_lora, equinox_style, heads, halves)}
FACTORS = {"linen": ALPHA / RANK, "nnx_lora": 1.0, "equinox_style": 2.0, "heads": 0.25, "halves": -2.0}


def closer_than(new, old, tolerance):
    assert float(jnp.max(jnp.abs(new - old))) <= tolerance * float(jnp.max(jnp.abs(old)))


@pytest.fixture(autouse=True)
def _flax_promotes_freely():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("form", FORMS)
def test_pissa_moves_the_top_singular_values_and_keeps_the_function(form):
    params, apply_fn, read = FORMS[form]()
    c = FACTORS[form]
    new = lora.pissa(params, apply_fn, X)
    closer_than(apply_fn(new, X), apply_fn(params, X), 1e-6)
    (w, a, b), (w0, a0, b0) = (map(np.float64, read(p)) for p in (new, params))
    s = np.linalg.svd(w0 + c * a0 @ b0, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(c * a @ b, compute_uv=False)[:RANK], s[:RANK], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False)[: OUT - RANK], s[RANK:], rtol=1e-4)
    # Each side has the root.
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.sqrt(s[:RANK] / abs(c)), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), np.sqrt(s[:RANK] / abs(c)), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_olora_keeps_the_function_and_has_orthonormal_outputs(form):
    params, apply_fn, read = FORMS[form]()
    new = lora.olora(params, apply_fn, X)
    closer_than(apply_fn(new, X), apply_fn(params, X), 1e-6)
    (_, a, b), (w0, a0, b0) = (map(np.float64, read(p)) for p in (new, params))
    np.testing.assert_allclose(b @ b.T, np.eye(RANK), atol=1e-5)
    whole = w0 + FACTORS[form] * a0 @ b0
    # Q's first columns span those of the transpose of W.
    np.testing.assert_allclose(whole[:RANK] @ b.T @ b, whole[:RANK], atol=1e-4)
    assert np.linalg.matrix_rank(a @ b) == RANK


@pytest.mark.parametrize("form", FORMS)
def test_standard_and_eva_add_nothing(form):
    params, apply_fn, read = FORMS[form]()
    planted = normal(3, 300, 3) * jnp.array([9.0, 6.0, 4.0]) @ jnp.linalg.qr(normal(4, IN, 3))[0].T
    batch = 5.0 + planted[:40] + 0.01 * X
    for new in (lora.standard(jax.random.key(0), params, apply_fn, X), lora.eva(params, apply_fn, batch)):
        w, a, b = read(new)
        np.testing.assert_array_equal(w, read(params)[0])
        assert not np.any(b)
        assert np.all(np.isfinite(apply_fn(new, X)))
    # A of EVA spans what was planted.
    top = np.linalg.svd(np.float64(planted), full_matrices=False)[2][:RANK].T
    np.testing.assert_allclose(top.T @ a @ a.T @ top, np.eye(RANK), atol=1e-3)
    a = read(lora.standard(jax.random.key(0), params, apply_fn, X))[1]
    assert 0.8 * IN**-0.5 < float(jnp.max(jnp.abs(a))) <= IN**-0.5
    assert np.linalg.matrix_rank(a) == RANK


@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize("reverse", [False, True])
def test_slices_of_a_scan_are_handled_one_by_one(layout, reverse):
    params = matrices(out=IN, stack=(4,))
    params = {"w": 0.3 * params["w"], "a": params["a"], "b": 0.1 * params["b"]}
    at = (lambda p: p) if layout == "plain" else transposed

    def apply_fn(p, x):
        def step(x, p):
            p = at(p)
            return jnp.tanh(x @ p["w"] + 0.5 * (x @ p["a"]) @ p["b"]), None

        return lax.scan(step, x, p, reverse=reverse)[0]

    params = at(params)
    new = jax.jit(lambda p: lora.pissa(p, apply_fn, X))(params)
    closer_than(apply_fn(new, X), apply_fn(params, X), 2e-6)
    a, b = (np.float64(at(new)[name]) for name in "ab")
    old = np.float64(at(params)["w"]) + 0.5 * np.float64(at(params)["a"]) @ np.float64(at(params)["b"])
    s = np.linalg.svd(old, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(0.5 * a @ b, compute_uv=False)[:, :RANK], s[:, :RANK], rtol=1e-5)
    # Of EVA, each slice sees its own inputs.
    x, found, p = X, at(lora.eva(params, apply_fn, X))["a"], at(params)
    for i in reversed(range(4)) if reverse else range(4):
        top = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:RANK].T
        np.testing.assert_allclose(np.abs(np.sum(top * found[i], 0)), 1, atol=1e-3)
        x = jnp.tanh(x @ p["w"][i] + 0.5 * (x @ p["a"][i]) @ p["b"][i])


def test_a_layer_that_is_used_twice_keeps_its_function():
    def apply_fn(p, x):
        for _ in range(2):
            x = jnp.tanh(x @ p["w"] + (x @ p["a"]) @ p["b"])
        return x

    params = {"w": normal(1, IN, IN), "a": normal(2, IN, RANK), "b": normal(3, RANK, IN)}
    closer_than(apply_fn(lora.pissa(params, apply_fn, X), X), apply_fn(params, X), 1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_several_adapters_of_one_layer_are_all_found(nested):
    def apply_fn(p, x):
        one, two = ((x @ p[name]["a"]) @ p[name]["b"] for name in ("one", "two"))
        return x @ p["w"] - (one + 0.5 * two) if nested else (x @ p["w"] + one) + 0.5 * two

    one, two = matrices(4), matrices(8)
    params = {"w": one.pop("w"), "one": one, "two": two}
    del two["w"]
    new = lora.pissa(params, apply_fn, X)
    closer_than(apply_fn(new, X), apply_fn(params, X), 2e-6)
    assert not np.array_equal(new["one"]["a"], params["one"]["a"])
    assert not np.array_equal(new["two"]["a"], params["two"]["a"])
    drawn = lora.standard(jax.random.key(0), params, apply_fn, X)
    np.testing.assert_array_equal(apply_fn(drawn, X), X @ params["w"])


def test_in_traces_and_in_half_precision():
    params, apply_fn, _ = equinox_style()
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.vmap(lambda key: lora.standard(key, params, apply_fn, X))(keys)
    np.testing.assert_array_equal(drawn["a"][1], lora.standard(keys[1], params, apply_fn, X)["a"])
    assert len(np.unique(drawn["a"])) == drawn["a"].size
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), matrices())

    def wide(p, x):
        return x @ p["w"].astype("float32") + (x @ p["a"].astype("float32")) @ p["b"].astype("float32")

    new = lora.pissa(half, wide, X)
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    closer_than(wide(new, X), wide(half, X), 2**-8)
    assert np.all(np.isfinite(lora.pissa(jax.tree.map(jnp.zeros_like, half), wide, X)["w"].astype("float32")))


def test_a_second_call_compiles_nothing():
    params, apply_fn, _ = equinox_style()
    for method in (lora.pissa, lora.eva):
        method(params, apply_fn, X)
        others = jax.tree.map(lambda x: 2 * x, params)
        with compilations() as count:
            method(others, apply_fn, X)
        assert not count


def quantised(p, x):
    return (x @ p["w"].astype(jnp.float32)) * p["scale"] + (x @ p["a"]) @ p["b"]


BY_CHANNEL = np.linspace(1, 2, OUT, dtype=np.float32)
WRONG = {
    "no pair": (lambda p, x: jnp.tanh(x @ p["w"]), "pissa", "apply_fn has none"),
    "added before": (lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), "pissa", "apply_fn has none"),
    "scale": (
        lambda p, x: x @ p["w"] + p["scale"][0] * (x @ p["a"]) @ p["b"],
        "pissa",
        r"\(a, b\) of w cannot be handled: .*depends on the parameter scale",
    ),
    "scale of W": (
        lambda p, x: x @ (p["w"] * p["scale"][None]) + (x @ p["a"]) @ p["b"],
        "pissa",
        "makes its weight of scale, w",
    ),
    "by channel": (
        lambda p, x: x @ p["w"] + BY_CHANNEL[None] * ((x @ p["a"]) @ p["b"]),
        "olora",
        "different numbers for different outputs",
    ),
    "used elsewhere": (
        lambda p, x: x @ p["w"] + (x @ p["a"]) @ p["b"] + jnp.sin(x) @ p["w"],
        "pissa",
        "w is used elsewhere too",
    ),
    "an output": (
        lambda p, x: (x @ p["w"] + (x @ p["a"]) @ p["b"], jnp.sum(p["w"] ** 2)),
        "pissa",
        "w is used elsewhere too",
    ),
    "A elsewhere": (
        lambda p, x: x @ p["w"] + (x @ p["a"]) @ p["b"] + jnp.mean(p["a"]),
        "eva",
        "a is used elsewhere too",
    ),
    "another order": (
        lambda p, x: x @ p["w"] + ((x @ p["a"]) @ p["b"])[:, ::-1],
        "olora",
        "in another order",
    ),
    "zero": (lambda p, x: x @ p["w"] + 0.0 * (x @ p["a"]) @ p["b"], "pissa", "multiplied by zero"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_handled_says_why(case):
    apply_fn, method, words = WRONG[case]
    params = matrices() | {"scale": jnp.ones(OUT)}
    with pytest.raises(ValueError, match=words):
        getattr(lora, method)(params, apply_fn, X)


def test_a_quantised_base_and_wrong_arguments_are_errors():
    params = matrices() | {"w": jnp.ones((IN, OUT), jnp.int8), "scale": jnp.ones(OUT)}
    with pytest.raises(ValueError, match="is it quantised"):
        lora.pissa(params, quantised, X)
    # These leave the base as it is, and do not need it.
    assert not np.any(lora.standard(jax.random.key(0), params, quantised, X)["b"])
    params, apply_fn, _ = equinox_style()
    with pytest.raises(TypeError, match="key"):
        lora.standard(0, params, apply_fn, X)
    with pytest.raises(TypeError, match="ShapeDtypeStruct"):
        lora.eva(params, apply_fn, jax.ShapeDtypeStruct(X.shape, X.dtype))
    with pytest.raises(ValueError, match="finite"):
        lora.pissa(params | {"w": params["w"] * jnp.nan}, apply_fn, X)
    shapes = lora.pissa(params, apply_fn, jax.ShapeDtypeStruct(X.shape, X.dtype))
    closer_than(apply_fn(shapes, X), apply_fn(params, X), 1e-6)
