"""`schemes.transformer` has the initial weights of today's language models, in unrolled and in scanned blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from jaxinit import schemes

KEY = jax.random.key(0)
WIDTH, BLOCKS = 64, 4
TOKENS = jnp.zeros((2, 8), jnp.int32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH, name="down")(y), None


class Model(nn.Module):
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(100, WIDTH, name="tokens")(tokens)
        x = x + self.param("positions", nn.initializers.zeros, (1, 8, WIDTH))
        if self.scanned:
            x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=BLOCKS)(
                name="blocks"
            )(x, None)
        else:
            for i in range(BLOCKS):
                x, _ = Block(name=f"block_{i}")(x)
        return nn.Dense(100, name="readout")(nn.LayerNorm()(x))


def stds(scheme, scanned=False):
    """The standard deviation of each kind of weight, block by block."""
    model = Model(scanned)
    shapes = jax.eval_shape(model.init, KEY, TOKENS)
    params = jaxinit.initialize(KEY, shapes, model.apply, TOKENS, scheme)["params"]
    if scanned:
        blocks = [jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(BLOCKS)]
    else:
        blocks = [params[f"block_{i}"] for i in range(BLOCKS)]
    found = {
        "query": [b["attention"]["query"]["kernel"] for b in blocks],
        "value": [b["attention"]["value"]["kernel"] for b in blocks],
        "out": [b["attention"]["out"]["kernel"] for b in blocks],
        "up": [b["up"]["kernel"] for b in blocks],
        "down": [b["down"]["kernel"] for b in blocks],
        "tokens": [params["tokens"]["embedding"]],
        "positions": [params["positions"]],
        "readout": [params["readout"]["kernel"]],
    }
    return {name: [float(jnp.std(x)) for x in xs] for name, xs in found.items()}


INDEX = [1 / np.sqrt(2 * (i + 1)) for i in range(BLOCKS)]
RECIPES = {
    "gpt2": (schemes.gpt2(), {"query": 0.02, "out": 0.02 / 8**0.5, "down": 0.02 / 8**0.5, "positions": 0.01}),
    "depth": (schemes.transformer(position=0.01), {"up": 0.02, "out": 0.02 / 8**0.5, "positions": 0.01}),
    "index": (
        schemes.transformer(residual="index"),
        {"value": 0.02, "out": [0.02 * x for x in INDEX], "down": [0.02 * x for x in INDEX], "readout": 0.02},
    ),
    "neox": (
        schemes.transformer("small", residual="wang"),
        {"query": (2 / 320) ** 0.5, "up": (2 / 320) ** 0.5, "down": 2 / (4 * 8), "tokens": (2 / 320) ** 0.5},
    ),
    "olmo": (schemes.transformer("width", residual=None, truncate=3.0), {"out": 0.9866 / 8, "down": 0.9866 / 8}),
    "spectral": (
        schemes.transformer("spectral", residual=None, readout=0.0),
        {"query": 1 / 8, "up": 1 / 8, "down": 1 / 32, "tokens": 1.0, "readout": 0.0},
    ),
    "sub_ln": (
        schemes.transformer("fan_in", residual="sub_ln"),
        {"query": 1 / 8, "value": np.log(8) ** 0.5 / 8, "up": np.log(8) ** 0.5 / 8, "down": np.log(8) ** 0.5 / 16},
    ),
}


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name, scanned):
    """Within five standard errors: 6% for 4,096 numbers, 18% for the 512 of positions."""
    scheme, wanted = RECIPES[name]
    found = stds(scheme, scanned)
    for weight, stddev in wanted.items():
        expected = stddev if isinstance(stddev, list) else [stddev] * len(found[weight])
        np.testing.assert_allclose(found[weight], expected, rtol=0.18 if weight == "positions" else 0.06)


def test_a_model_as_wide_as_the_base_of_mup_is_of_its_family():
    """Queries and the readout are zero at every width, and hidden weights shrink as the family's do."""

    def params_of(width, base):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.relu(nn.Dense(width, name="a")(x))
                return nn.Dense(3, name="c")(nn.relu(nn.Dense(width, name="b")(x)))

        def shapes(w):
            leaves = {"a": (8, w), "b": (w, w), "c": (w, 3)}
            return {
                "params": {
                    k: {
                        "kernel": jax.ShapeDtypeStruct(s, jnp.float32),
                        "bias": jax.ShapeDtypeStruct(s[1:], jnp.float32),
                    }
                    for k, s in leaves.items()
                }
            }

        scheme = schemes.mup(shapes(base))
        return jaxinit.initialize(KEY, shapes(width), Net().apply, jnp.ones((4, 8)), scheme)["params"]

    for width in (64, 256):
        params = params_of(width, 64)
        np.testing.assert_array_equal(params["c"]["kernel"], 0)
        assert np.any(params["b"]["kernel"])


CONFIGS = [
    schemes.gpt2(0.01),
    schemes.fixup(branches=3),
    schemes.recurrent(max_timescale=50.0),
    schemes.closed(readout=True),
    schemes.transformer("small", residual="wang", truncate=3.0),
    schemes.mup(({"a": jnp.ones((2, 3))},)),
    schemes.auto(),
]


@pytest.mark.parametrize("scheme", CONFIGS, ids=repr)
def test_schemes_go_through_configurations(scheme):
    import json

    config = json.loads(json.dumps(scheme.to_config()))
    assert schemes.from_config(config) == scheme


WRONG = {
    "name": (lambda: schemes.from_config({"name": "gpt3"}), ValueError, "scheme must be one of"),
    "no name": (lambda: schemes.from_config({"stddev": 1.0}), TypeError, "with the scheme's 'name'"),
    "field": (lambda: schemes.from_config({"name": "gpt2", "std": 1.0}), ValueError, r"but not \['std'\]"),
    "value": (lambda: schemes.from_config({"name": "gpt2", "stddev": {}}), TypeError, "numbers, strings and lists"),
    "word": (lambda: schemes.transformer("large"), ValueError, "stddev must be one of"),
    "residual": (lambda: schemes.transformer(residual="none"), ValueError, "residual must be one of"),
    "negative": (
        lambda: schemes.transformer(readout=-1.0),
        ValueError,
        "readout must be a finite number, zero or more",
    ),
    "gpt2": (lambda: schemes.gpt2(-0.02), ValueError, "stddev must be a finite number, zero or more"),
    "fixup": (lambda: schemes.fixup(branches=0), ValueError, "branches"),
    "recurrent": (lambda: schemes.recurrent(max_timescale=1.0), ValueError, "max_timescale"),
    "sparse": (lambda: schemes.sparse(num_nonzero=1.5), TypeError, "num_nonzero"),
    "critical": (lambda: schemes.orthogonal_critical(bias_variance=-1.0), ValueError, "bias_variance"),
    "closed": (lambda: schemes.closed(readout=1), TypeError, "readout must be True or False"),
}


@pytest.mark.parametrize("case", WRONG)
def test_fields_are_checked_when_a_scheme_is_made(case):
    make, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        make()
