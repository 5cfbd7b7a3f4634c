"""The page of roles shows what `initialize` draws; and of each family what every leaf is was decided by hand."""

import collections
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers import families
from helpers.promotion import of_models_alone

import jaxinit

pytestmark = pytest.mark.filterwarnings("ignore")

ROLES = {
    "MLP": {"dense": 2, "bias": 2},
    "CNN": {"conv": 2, "dense": 1, "bias": 2},
    "ResNet": {"conv": 10, "dense": 1, "bias": 1, "scale": 10, "offset": 10},
    "GNN": {"dense": 3, "bias": 3},
    "MoE": {"einsum": 3, "dense": 2, "embed": 1, "scale": 1},
    "SIREN": {"dense": 5, "bias": 5},
}
"""How many leaves of each role there are, by hand."""


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_page_shows_what_is_drawn(name):
    """Word by word, and numbers to a hundredth, since sums are rounded otherwise on other machines."""
    with of_models_alone():
        drawn = families.section(name)
    shown = next(s for s in families.PAGE.read_text().split("\n## ") if s.startswith(f"{name}\n")).rstrip()
    number = r"\d+\.\d+(?:e-?\d+)?"
    assert re.sub(number, "#", drawn.removeprefix("## ")) == re.sub(number, "#", shown)
    numbers = [[float(x) for x in re.findall(number, text)] for text in (drawn, shown)]
    np.testing.assert_allclose(*numbers, rtol=0.01)


@pytest.mark.parametrize("name", ROLES)
def test_roles_are_those_of_the_model(name):
    with of_models_alone():
        rows = families.rows(name)
    assert collections.Counter(row.role for row in rows) == ROLES[name]


@pytest.mark.parametrize("scheme", ["auto", "recurrent"])
def test_a_convolution_on_a_state_keeps_it_place_by_place(scheme):
    model = nn.RNN(nn.ConvLSTMCell(5, (3, 3)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 6, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(1), x)
    params = jaxinit.initialize(jax.random.key(2), shapes, model.apply, x, scheme)["params"]
    kernel = np.array(params["cell"]["hh"]["kernel"])
    for gate in np.split(kernel, 4, -1):
        np.testing.assert_allclose(gate[1, 1].T @ gate[1, 1], np.eye(5), atol=1e-5)
        gate[1, 1] = 0
        assert not gate.any()


@pytest.mark.parametrize("cell", ["linear", "gated"])
def test_a_recurrence_keeps_its_state(cell):
    """Orthogonal kernels on the state, gate by gate; those on the input have unit variance, in one step and in all."""
    width, steps = 64, 50
    x = jax.random.normal(jax.random.key(0), (256, steps, 8))

    def step(p, h, x):
        z = x @ p["x"] + h @ p["h"]
        if cell == "linear":
            return z
        gate, candidate = jax.numpy.split(z, 2, -1)
        gate = jax.nn.sigmoid(gate)
        return gate * h + (1 - gate) * jax.numpy.tanh(candidate)

    def apply_fn(p, x):
        h = jax.numpy.zeros((len(x), width))
        return jax.lax.scan(lambda h, x: (step(p, h, x), None), h, x.swapaxes(0, 1))[0]

    columns = width if cell == "linear" else 2 * width
    shapes = {"x": jax.numpy.zeros((8, columns)), "h": jax.numpy.zeros((width, columns))}
    params = jaxinit.initialize(jax.random.key(1), shapes, apply_fn, x)
    for kernel in np.split(np.asarray(params["h"]), columns // width, -1):
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(width), atol=1e-5)
    assert float((x[:, 0] @ params["x"]).std()) == pytest.approx(1, rel=0.15)
    if cell == "linear":  # what was in the state at the beginning is there in the end, as large as it was

        def last(h):
            return jax.lax.scan(lambda h, x: (step(params, h, x), None), h, 0 * x.swapaxes(0, 1))[0]

        start = jax.random.normal(jax.random.key(2), (256, width))
        np.testing.assert_allclose(np.linalg.norm(last(start), axis=-1), np.linalg.norm(start, axis=-1), rtol=1e-4)
