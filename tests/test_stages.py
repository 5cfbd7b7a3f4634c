"""Programs run stage by stage return what they return as one, and compile each distinct stage once."""

import functools
import sys
import time
from collections import OrderedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilations import compilations
from helpers.terminal import Terminal
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit
from jaxinit import _program as ir
from jaxinit._stages import _compiled, _waiting, in_stages, kind_of, plan_of
from jaxinit._stages._cut import Stage, cut
from jaxinit._stages._numpy import computation

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 12))
MATRICES = [0.3 * jax.random.normal(key, (12, 12)) for key in jax.random.split(KEY, 10)]


def mlp(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def scanned(params, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), x[0]), x, jnp.stack(params))


def branching(params, x):
    x = lax.cond(x[0, 0] > 0, lambda x: x @ params[0], lambda x: x @ params[1], x)
    return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params[2]), x)


def normalizing(params, x):
    """Attention and layer normalization, with numbers that the function closes over."""
    mask = jnp.tril(jnp.ones((16, 16), bool))
    for w in params[:6]:
        x = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        scores = jnp.where(mask, (x @ w) @ x.T, -1e9)
        x = x + jax.nn.softmax(scores) @ x @ w.T
    return x, jnp.argmax(x, -1), {"none": None, "input": params[0], "number": jnp.float32(2)}


FUNCTIONS = (mlp, scanned, branching, normalizing)


def assert_same(found, wanted, **tolerances):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(x, jax.Array)
        assert (x.shape, x.dtype, x.weak_type, x.committed) == (y.shape, y.dtype, y.weak_type, y.committed)
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerances)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_program_in_stages_gives_what_it_gives_as_one(function):
    assert_same(in_stages(function)(MATRICES, X), jax.jit(function)(MATRICES, X), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_so_do_its_derivatives(function):
    def loss(params, x):
        return jnp.mean(jax.tree.leaves(function(params, x))[0] ** 2)

    derivative = jax.grad(loss) if function is not branching else jax.jacfwd(loss)
    assert_same(in_stages(derivative)(MATRICES, X), jax.jit(derivative)(MATRICES, X), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("depth", [4, 10])
def test_equal_layers_are_compiled_once(depth):
    jax.clear_caches()
    jaxinit.clear_caches()
    with compilations() as count:
        in_stages(mlp)(MATRICES[:depth], X)
    assert len(count) <= 3  # the first layer, those after it, the last tanh


def test_another_function_with_the_same_equations_compiles_nothing():
    wanted = in_stages(mlp)(MATRICES, X)
    with compilations() as count:
        found = in_stages(lambda params, x: mlp(params, x))(MATRICES, X)
        in_stages(lambda params, x: mlp(params[:7], x))(MATRICES, X)
    assert not count
    assert_same(found, wanted)


def test_numbers_in_a_program_tell_stages_apart():
    for slope in (0.5, 2.0, 0.5):
        found = in_stages(lambda x, slope=slope: jnp.tanh(slope * x @ MATRICES[0]))(X)
        np.testing.assert_allclose(found, jnp.tanh(slope * X @ MATRICES[0]), rtol=1e-5, atol=1e-6)


def test_an_array_that_a_function_closes_over_is_not_part_of_a_stage():
    for constant in MATRICES[:3]:
        found = in_stages(lambda x, constant=constant: jnp.tanh(x @ constant))(X)
        np.testing.assert_allclose(found, jnp.tanh(X @ constant), rtol=1e-5, atol=1e-6)


def test_what_no_output_needs_is_not_run():
    program, _ = ir.flat(lambda x: (jnp.linalg.svd(x), x @ x.T)[1], X)
    assert len(cut(program)) == 2  # the transpose and the product


def test_values_are_let_go_of_once_no_step_needs_them():
    plan = plan_of(mlp, MATRICES, X)
    alive = most = 0
    for step in plan.steps:
        alive += len(step.outputs)
        most = max(most, alive)
        alive -= len(set(step.done_with) - set(plan.inputs))
    assert alive == 1
    assert most == 2


# Where a program stays one.


def _one_device():
    return NamedSharding(jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,)), PartitionSpec("d"))


UNUSUAL = {
    "several devices": lambda: jax.device_put(X, _one_device()),
    "another device": lambda: jax.device_put(X, jax.devices()[1]),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_arrays_that_lie_elsewhere_stay_there(kind):
    x = UNUSUAL[kind]()
    assert kind_of((x,)) is None
    assert in_stages(jnp.tanh)(x).sharding == jax.jit(jnp.tanh)(x).sharding


def test_what_a_function_closes_over_may_lie_elsewhere():
    matrix = jax.device_put(MATRICES[0], jax.devices()[1])

    def function(x):
        return jnp.tanh(x @ matrix)

    assert plan_of(function, X) is None
    assert_same(in_stages(function)(X), jax.jit(function)(X))


@pytest.mark.parametrize("setting", ["jax_disable_jit", "jax_debug_nans"])
def test_where_one_looks_for_faults_a_program_stays_one(setting):
    jax.config.update(setting, True)
    try:
        assert kind_of((X,)) is None
        if setting == "jax_debug_nans":
            with pytest.raises(FloatingPointError):
                in_stages(lambda x: jnp.log(x - x) - jnp.log(x - x))(X)
    finally:
        jax.config.update(setting, False)


def test_effects_keep_their_order(capsys):
    def talking(x):
        for w in MATRICES[:3]:
            x = x @ w
            jax.debug.print("{}", x[0, 0] > 1e9, ordered=True)
        return x

    assert plan_of(talking, X) is None
    in_stages(talking)(X)
    jax.effects_barrier()
    assert capsys.readouterr().out == "False\n" * 3


def test_it_can_be_transformed_and_called_in_a_trace():
    run = in_stages(mlp)
    many = jnp.stack([X, 2 * X])
    wanted = jax.vmap(functools.partial(mlp, MATRICES))(many)
    np.testing.assert_allclose(jax.vmap(functools.partial(run, MATRICES))(many), wanted, atol=1e-6)

    @jax.jit
    def closing_over_a_tracer(scale):
        return in_stages(lambda x: jnp.tanh(x * scale))(X)

    np.testing.assert_allclose(closing_over_a_tracer(2.0), jnp.tanh(2 * X), atol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(run(params, X)))(MATRICES)
    np.testing.assert_allclose(gradient[3], jax.grad(lambda p: jnp.sum(mlp(p, X)))(MATRICES)[3], rtol=1e-4, atol=1e-5)


def test_committed_arrays_give_committed_ones():
    x = jax.device_put(X, jax.devices()[0])
    assert_same(in_stages(mlp)(MATRICES, x), jax.jit(mlp)(MATRICES, x), rtol=1e-5, atol=1e-6)


def test_settings_that_change_a_program_change_its_plan():
    def exact(x):
        return x.astype(jnp.float64).sum() if jax.config.jax_enable_x64 else x.sum()

    run = in_stages(exact)
    assert run(X).dtype == np.float32
    with jax.enable_x64(True):
        assert run(X).dtype == np.float64


# What NumPy computes.

A, B = np.asarray(X[:4, :6]), np.asarray(X[4:8, :6])
FEW = np.array([-np.inf, -2.5, -0.0, 0.0, 1.0, np.nan, np.inf], np.float32)
NUMPY = {
    "arithmetic": (lambda a, b: (a + b, a - b, a * b, a / b, -a, abs(a), jnp.maximum(a, b), jnp.minimum(a, b)), A, B),
    "powers": (lambda a: (a**2, a**3, jnp.square(a), jnp.sqrt(a), lax.rsqrt(a), jnp.exp2(a), a**1.5), A),
    "transcendental": (lambda a: (jnp.exp(a), jnp.log(a), jnp.tanh(a), jnp.log1p(a), jnp.expm1(a)), A),
    "comparison": (lambda a, b: (a < b, a <= b, a > b, a >= b, a == b, a != b, jnp.isfinite(a), jnp.sign(a)), A, B),
    "extremes": (lambda a: (jnp.maximum(a, 0), jnp.minimum(a, 1), jnp.sign(a), a.max(), a.min(), abs(a), a + a), FEW),
    "infinite": (lambda a: (jnp.sqrt(a), jnp.isfinite(a), a == a, a > 0, jnp.where(a > 0, a, 1), 1 / a, a**2), FEW),
    "logic": (lambda a: (a & ~a, a | ~a, a ^ True, a.any(), a.all(0)), A > 0),
    "bits": (
        lambda a: (a & 5, a | 5, a ^ 5, ~a, a + a, a * a, -a, jnp.maximum(a, 3)),
        np.arange(-4, 4, dtype=np.int32),
    ),
    "selection": (lambda a, b: (jnp.where(a > 0, a, b), lax.clamp(-0.5, a, 0.5)), A, B),
    "casts": (lambda a: (a.astype(jnp.bfloat16), (a > 0).astype(jnp.float32), (a > 0).astype(jnp.int32)), A),
    "rearranging": (lambda a: (a.T, a.reshape(8, 3), a[1:3, ::2], a[:, None], jnp.flip(a, 0), a.ravel()), A),
    "joining": (lambda a, b: (jnp.concatenate([a, b], 1), jnp.stack([a, b]), *jnp.split(a, [2, 3], 1)), A, B),
    "broadcasting": (lambda a: (jnp.broadcast_to(a[:, :, None], (3, 4, 6, 2)), jnp.arange(7), jnp.ones((3, 2))), A),
    "reductions": (lambda a: (a.sum(), a.sum(0), a.sum((0, 1)), a.max(1), a.min(), jnp.mean(a, 1)), A),
    "narrow sums": (lambda a: (a.sum(0), a.sum()), np.asarray(jnp.ones((999, 2), jnp.bfloat16))),
    "counts": (lambda a: ((a > 0).sum(0, dtype=jnp.int32), jnp.cumsum(a, 0), jnp.sort(a, 1)), A),
    "products": (lambda a, b: (a @ b.T, a.T @ b, jnp.einsum("ij,kj->ik", a, b), jnp.einsum("ij,ij->j", a, b)), A, B),
    "batched": (lambda a: jnp.einsum("bij,bkj->kbi", a[None] * jnp.ones((3, 1, 1)), a[None] * jnp.ones((3, 1, 1))), A),
    "complex": (lambda a, b: (lambda z: (z * z, z.real, z.imag, z + z, abs(z), z == z))(lax.complex(a, b)), A, B),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_computes_what_xla_does(name):
    """Checks every equation by itself; those that NumPy should compute must not be skipped."""
    function, *arguments = NUMPY[name]
    program, _ = ir.flat(function, *arguments)
    values = dict(zip(program.inputs, arguments, strict=True))
    skipped = set()
    for equation in program.equations:
        taken = [np.asarray(a.value, a.dtype) if isinstance(a, ir.Constant) else values[a] for a in equation.inputs]
        wanted = equation.bind(*taken)
        compute = computation(equation)
        if compute is None:
            skipped.add(str(equation.primitive))
            results = list(map(np.asarray, wanted))
        else:
            with np.errstate(all="ignore"):
                results = compute(*taken)
            results = results if equation.primitive.multiple_results else [results]
        for v, x, y in zip(equation.outputs, results, wanted, strict=True):
            assert (np.shape(x), np.asarray(x).dtype) == (y.shape, y.dtype), equation.primitive
            np.testing.assert_allclose(np.asarray(x, complex), np.asarray(y, complex), rtol=1e-5, atol=1e-6)
            values[v] = np.asarray(x)
    assert skipped <= {"complex", "integer_pow", "copy_p"}


# LSUV.


class Net(nn.Module):
    """Convolutions, normalization, attention and lookups, some layers alike."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(20, 8)(tokens)
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Conv(8, (3,))(x)))
        for _ in range(2):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        return nn.Dense(3, use_bias=False, param_dtype=jnp.bfloat16, dtype=jnp.float32)(x.mean(1))


@pytest.fixture(scope="module")
def net():
    tokens = jax.random.randint(KEY, (8, 6), 0, 20)
    params = jax.jit(Net().init)(KEY, tokens)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.1, x.dtype) * jax.random.normal(KEY, x.shape, x.dtype), params
    ), tokens


OPTIONS = {
    "default": {},
    "scales alone": {"orthonormalize": False},
    "channels": {"statistic": "channel"},
    "centred": {"center": True, "target": 0.5},
    "verified": {"verify": True, "orthonormalize": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_lsuv_in_stages_gives_what_it_gives_as_one(net, name):
    params, tokens = net

    def lsuv(params, tokens):
        return jaxinit.lsuv(params, Net().apply, tokens, return_report=True, **OPTIONS[name])

    assert kind_of((params, tokens)) is not None
    found, report = lsuv(params, tokens)
    wanted, wanted_report = jax.jit(lsuv)(params, tokens)
    assert_same(found, wanted, rtol=2e-4, atol=2e-4)
    assert report.paths == wanted_report.paths
    assert_same(report, wanted_report, rtol=2e-3, atol=2e-4)


def test_a_deep_net_compiles_no_more_than_a_shallow_one():
    counts = []
    for depth in (4, 10):
        jax.clear_caches()
        jaxinit.clear_caches()
        with compilations() as count:
            jaxinit.lsuv(MATRICES[:depth], mlp, X)
        counts.append(len(count))
    assert counts[0] == counts[1] <= 3


def test_stages_have_keys():
    """A stage without a key would be compiled again for each program."""
    for function in FUNCTIONS:
        program, _ = ir.flat(function, MATRICES, X)
        assert all(step.key is not None for step in cut(program) if isinstance(step, Stage))


def test_the_programs_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(_compiled, "_KEPT", 2)
    monkeypatch.setattr(_compiled, "_programs", OrderedDict())
    made = []
    for name in "abacb":
        program = _compiled.kept(name, lambda name=name: made.append(name) or name.upper)
        assert program() == name.upper()
    assert made == ["a", "b", "c", "b"]


def test_stages_of_few_numbers_are_compiled_without_optimizations():
    def small(function, *arguments):
        return {_compiled._is_small(s) for s in cut(ir.flat(function, *arguments)[0]) if isinstance(s, Stage)}

    x = jax.ShapeDtypeStruct((1 << 10, 12), jnp.float32)
    assert small(mlp, MATRICES, x) == {True}
    assert small(scanned, MATRICES, x) == {False}  # a loop may run for long
    assert small(jnp.sin, jax.ShapeDtypeStruct((1 << 13, 1 << 12), jnp.float32)) == {False}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_call_shows_a_bar_on_a_terminal_and_nowhere_else(monkeypatch, is_terminal):
    monkeypatch.setattr(_waiting, "_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", Terminal(is_terminal))
    monkeypatch.setenv("TERM", "xterm")

    def slow(params, x):
        time.sleep(0.3)  # while it is traced
        return mlp(params, x)

    jaxinit.lsuv(MATRICES, slow, X)
    assert ("lsuv" in sys.stderr.getvalue()) == is_terminal
    assert jax.make_jaxpr(lambda params: jaxinit.lsuv(params, slow, X))(MATRICES)
    shown = sys.stderr.getvalue()
    with _waiting.quietly(), _waiting.waiting("something else"):
        time.sleep(0.1)
    with _waiting.waiting("something short"):
        _waiting.tell(1, 2)
    time.sleep(0.1)
    assert sys.stderr.getvalue() == shown
