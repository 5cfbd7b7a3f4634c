"""JAX with one primitive fewer, or one more: the library imports, reads the rest, and names what it cannot read."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jaxinit

WITHOUT = r'''
import re, sys
import jax, jax.numpy as jnp
import jax.extend.core.primitives as named
from jax import lax
import jaxinit._reading

def dense(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]

def convolution(params, x):
    y = lax.conv_general_dilated(x[:, :, None], params["taps"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jax.nn.relu(y).max(1) @ params["w"]

def scan(params, x):
    def step(x, w):
        return x + jax.nn.gelu(x @ w), None
    x, _ = lax.scan(jax.checkpoint(step), x, params["stack"])
    return jax.nn.softmax(x) * params["scale"][None]

def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)

# The function, its parameters, and the fans of the weights.
CASES = {
    "dense": (dense, {"w1": shape(6, 8), "b1": shape(8), "w2": shape(8, 4)}, {"w1": (6, 8), "w2": (8, 4)}),
    "convolution": (convolution, {"taps": shape(3, 1, 5), "w": shape(5, 2)}, {"taps": (3, 15), "w": (5, 2)}),
    "scan": (scan, {"stack": shape(3, 6, 6), "scale": shape(6)}, {"stack": (6, 6)}),
}

def primitives_of(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives_of(getattr(inner, "jaxpr", inner))

def read(removed):
    """Imports the library afresh, and reads all programs."""
    for module in [m for m in sys.modules if m.startswith(("jaxinit._program", "jaxinit._reading"))]:
        del sys.modules[module]
    del jaxinit._program, jaxinit._reading
    from jaxinit._reading import trace_layers
    for case, (function, params, wanted) in CASES.items():
        layers = trace_layers(params, function, shape(4, 6))
        found = {layer.path: (layer.fan_in, layer.fan_out) for layer in layers}
        if used[case].isdisjoint(removed):
            assert found == wanted and not layers.unvisited, (names, case, str(layers))
        else:
            # Right, or named: never wrong, never lost.
            assert all(wanted[path] == fans for path, fans in found.items()), (names, case, str(layers))
            assert wanted.keys() <= found.keys() | {e.path for e in layers.unvisited}, (names, case, str(layers))

used = {
    case: set(primitives_of(jax.make_jaxpr(function)(params, shape(4, 6)).jaxpr))
    for case, (function, params, _) in CASES.items()
}
used_anywhere = set().union(*used.values())
source = open(jaxinit._program._primitives.__file__).read()
found = {name: getattr(named, name + "_p", None) or getattr(lax, name + "_p", None)
         for name in set(re.findall(r'"([a-z0-9_]+)"', source))}
found = {name: primitive for name, primitive in sorted(found.items()) if primitive is not None}
assert len(found) > 100, found
others = [name for name in found if found[name] not in used_anywhere]
size = int(sys.argv[1])
groups = [[name] for name in found if found[name] in used_anywhere]
groups += [others[i : i + size] for i in range(0, len(others), size)]
for names in groups:
    held = [(m, name + "_p") for name in names for m in (named, lax) if hasattr(m, name + "_p")]
    for module, attribute in held:
        delattr(module, attribute)
    try:
        read({found[name] for name in names})
    finally:
        for module, attribute in held:
            setattr(module, attribute, found[attribute[:-2]])
print(sum(map(len, groups)), "primitives")
'''


@pytest.mark.parametrize("at_once", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_without_a_primitive_the_rest_is_read(at_once):
    """Primitives that the programs use are removed one by one; the others, which must not matter, several at once."""
    command = [sys.executable, "-c", WITHOUT, str(at_once)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.endswith("primitives\n")


def _doubled(x, *others):
    return 2 * x


mystery_p = Primitive("mystery")
"""A primitive that no release of JAX has: twice the first operand."""
mystery_p.def_impl(_doubled)
mystery_p.def_abstract_eval(lambda x, *others: x)
mlir.register_lowering(mystery_p, mlir.lower_fun(_doubled, multiple_results=False))


def between_layers(params, x):
    return mystery_p.bind(jnp.tanh(x @ params["w1"])) @ params["w2"]


def in_a_loop(params, x):
    x, _ = jax.lax.scan(lambda x, _: (mystery_p.bind(x), None), jnp.tanh(x @ params["w1"]), None, length=2)
    return x @ params["w2"]


def on_a_weight(params, x):
    return jnp.tanh(x @ mystery_p.bind(params["w1"])) @ params["w2"]


def with_data(params, x):
    return jnp.tanh(mystery_p.bind(x, params["w1"])) @ params["w2"]


def _params():
    k1, k2 = jax.random.split(jax.random.key(0))
    return {"w1": jax.random.normal(k1, (6, 8)), "w2": jax.random.normal(k2, (8, 4))}


X = jax.random.normal(jax.random.key(1), (64, 6))


@pytest.mark.parametrize("apply_fn", [between_layers, in_a_loop])
def test_layers_around_a_new_primitive_are_read_and_scaled(apply_fn):
    params = _params()
    layers = jaxinit.trace_layers(params, apply_fn, X)
    assert [(layer.path, layer.fan_in, layer.fan_out) for layer in layers] == [("w1", 6, 8), ("w2", 8, 4)]
    new = jaxinit.lsuv(params, apply_fn, X)
    np.testing.assert_allclose(jnp.std(X @ new["w1"]), 1, rtol=1e-4)
    np.testing.assert_allclose(jnp.std(apply_fn(new, X)), 1, rtol=1e-4)


def test_a_weight_that_enters_a_new_primitive_is_named_with_it():
    params = _params()
    layers = jaxinit.trace_layers(params, on_a_weight, X)
    assert [layer.path for layer in layers] == ["w2"]
    assert ("w1", "it enters mystery, whose program is not read") in [(e.path, e.reason) for e in layers.unvisited]
    assert "w1: it enters mystery" in str(layers)
    new = jaxinit.lsuv(params, on_a_weight, X)
    np.testing.assert_array_equal(new["w1"], params["w1"])
    np.testing.assert_allclose(jnp.std(on_a_weight(new, X)), 1, rtol=1e-4)


def test_what_enters_a_new_primitive_with_data_is_named_with_it():
    params = {"w1": jnp.ones((6, 8)), "w2": jnp.ones((6, 4))}
    layers = jaxinit.trace_layers(params, with_data, X)
    assert [layer.path for layer in layers] == ["w2"]
    assert ("w1", "it enters mystery, whose program is not read") in [(e.path, e.reason) for e in layers.unvisited]
