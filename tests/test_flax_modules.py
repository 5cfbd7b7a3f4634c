"""Modules of residual networks without normalization: the places, initial values and labels of their scalars."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxinit
import jaxinit.linen
import jaxinit.nnx

KEY = jax.random.key(0)
WIDTH = 64
X = jax.random.normal(jax.random.key(1), (16, WIDTH))


def linen_dense(count):
    return [nn.Dense(WIDTH, use_bias=False) for _ in range(count)]


def nnx_dense(count, rngs):
    return [nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(count)]


class LinenBlock(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, h, _=None):
        return jaxinit.linen.FixupResidual(linen_dense(self.depth), nn.relu)(h), None


class LinenNetwork(nn.Module):
    blocks: int
    depth: int
    scanned: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(jaxinit.linen.ScalarBias()(nn.Dense(WIDTH, use_bias=False)(x)))
        if self.scanned:
            stack = nn.scan(LinenBlock, {"params": 0}, split_rngs={"params": True}, length=self.blocks)
            x, _ = stack(self.depth)(x, None)
        else:
            for _ in range(self.blocks):
                x, _ = LinenBlock(self.depth)(x)
        return nn.Dense(8)(jaxinit.linen.ScalarBias()(x))


class NnxNetwork(nnx.Module):
    def __init__(self, blocks, depth, scanned, rngs):
        def block(rngs):
            return jaxinit.nnx.FixupResidual(nnx_dense(depth, rngs), nnx.relu)

        self.scanned = scanned
        self.first, self.last = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs), nnx.Linear(WIDTH, 8, rngs=rngs)
        self.first_bias, self.last_bias = jaxinit.nnx.ScalarBias(), jaxinit.nnx.ScalarBias()
        stack = nnx.split_rngs(splits=blocks)(nnx.vmap(block, in_axes=0, out_axes=0))
        self.blocks = stack(rngs) if scanned else nnx.List([block(rngs) for _ in range(blocks)])

    def __call__(self, x):
        x = nnx.relu(self.first_bias(self.first(x)))
        if self.scanned:
            x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.last(self.last_bias(x))


def network(framework, blocks=3, depth=2):
    """Shapes of a residual network, and the function that it is."""
    scanned = framework.endswith("scanned")
    if framework.startswith("linen"):
        model = LinenNetwork(blocks, depth, scanned)
        return jax.eval_shape(model.init, KEY, X), model.apply
    graphdef, params = nnx.split(NnxNetwork(blocks, depth, scanned, nnx.Rngs(0)), nnx.Param)
    return params, lambda params, x: nnx.merge(graphdef, params)(x)


def by_path(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def is_scalar(path):
    """Whether a path is that of a scalar module, in either framework."""
    return any(name in path for name in ("_bias", "multiplier", "ScalarBias"))


FRAMEWORKS = ["linen", "linen_scanned", "nnx", "nnx_scanned"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_program_shows_the_branches(framework):
    depth = 3
    params, apply_fn = network(framework, blocks=3, depth=depth)
    first, *inside, last = jaxinit.trace_layers(params, apply_fn, X)
    assert first.skip is None
    assert last.skip is None
    skips = 1 if framework.endswith("scanned") else 3
    assert [(layer.skip, layer.position, layer.branch_length) for layer in inside] == [
        (skip, position, depth) for skip in range(skips) for position in range(depth)
    ]
    activations = [layer.activation and layer.activation.name for layer in inside]
    assert activations == (["relu"] * (depth - 1) + [None]) * skips


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("depth", "exponent"), [(2, -1 / 2), (3, -1 / 4)])
def test_fixup_starts_branches_at_zero_and_scales_their_other_layers(framework, depth, exponent):
    params, apply_fn = network(framework, depth=depth)
    layers = {layer.path: layer for layer in jaxinit.trace_layers(params, apply_fn, X)}
    new = by_path(jaxinit.initialize(KEY, params, apply_fn, X, jaxinit.schemes.fixup(zero_classifier=False)))
    for path, leaf in new.items():
        if path not in layers:
            assert np.all(leaf == (1 if "multiplier" in path else 0)), path
            continue
        if layers[path].skip is not None and layers[path].position == depth - 1:
            assert not np.any(leaf)
            continue
        expected = (2 / WIDTH) ** 0.5 if layers[path].skip is not None else None
        for kernel in leaf.reshape(-1, WIDTH, leaf.shape[-1]):
            # 4,096 normals: the relative error of a standard deviation is 1.1%; 5 of these are 5.5%, which tell
            # 3^(-1/2) = 0.58 from 3^(-1/4) = 0.76 and 1. The readout has 512: 5 of its errors are 16%.
            if expected is None:
                assert float(jnp.std(kernel)) == pytest.approx((2 / WIDTH) ** 0.5, rel=0.16)
            else:
                assert float(jnp.std(kernel)) == pytest.approx(expected * 3**exponent, rel=0.055)
    zero = jaxinit.initialize(KEY, params, apply_fn, X, "fixup")
    np.testing.assert_array_equal(apply_fn(zero, X), 0)


def fixup_formula(x, kernels, before_layers, before_activations, scale, bias, activation):
    """The branch as shown in the paper."""
    h = (x + before_layers[0]) @ kernels[0]
    for kernel, a, b in zip(kernels[1:], before_layers[1:], before_activations, strict=True):
        h = (activation(h + b) + a) @ kernel
    return h * scale + bias


def blocks_of_both(activate_sum, with_shortcut):
    """The same three-layer block in Linen and NNX, with random scalars: its output and its parameters."""
    names = [f"layer_bias_{i}" for i in range(3)] + [f"activation_bias_{i}" for i in range(2)] + ["branch_bias"]
    scalars = dict(zip([*names, "multiplier"], jax.random.normal(jax.random.key(5), (7,)), strict=True))
    kernels = list(jax.random.normal(jax.random.key(6), (4, WIDTH, WIDTH)) / WIDTH**0.5)
    shortcut = nn.Dense(WIDTH, use_bias=False) if with_shortcut else None
    block = jaxinit.linen.FixupResidual(linen_dense(3), nn.tanh, shortcut, activate_sum)
    params = {f"layers_{i}": {"kernel": kernels[i]} for i in range(3)}
    params |= {name: {"scale" if name == "multiplier" else "bias": value} for name, value in scalars.items()}
    params |= {"shortcut": {"kernel": kernels[3]}} if with_shortcut else {}
    yield block.apply({"params": params}, X), kernels, scalars
    dense = nnx_dense(4, nnx.Rngs(0))
    for layer, kernel in zip(dense, kernels, strict=True):
        layer.kernel[...] = kernel
    block = jaxinit.nnx.FixupResidual(
        dense[:3], nnx.tanh, dense[3] if with_shortcut else None, activate_sum=activate_sum
    )
    for name, value in scalars.items():
        (variable,) = jax.tree.leaves(getattr(block, name), is_leaf=lambda x: isinstance(x, nnx.Param))
        variable[...] = value
    yield block(X), kernels, scalars


@pytest.mark.parametrize("activate_sum", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_scalars_are_where_the_paper_puts_them(activate_sum, with_shortcut):
    for out, kernels, scalars in blocks_of_both(activate_sum, with_shortcut):
        before_layers = [scalars[f"layer_bias_{i}"] for i in range(3)]
        before_activations = [scalars[f"activation_bias_{i}"] for i in range(2)]
        skip = (X + before_layers[0]) @ kernels[3] if with_shortcut else X

        def expected(scale, bias, a=before_layers, b=before_activations, kernels=kernels, skip=skip):
            total = skip + fixup_formula(X, kernels[:3], a, b, scale, bias, jnp.tanh)
            return jnp.tanh(total) if activate_sum else total

        scale, bias = scalars["multiplier"], scalars["branch_bias"]
        np.testing.assert_allclose(out, expected(scale, bias), atol=2e-5)
        # Neither scaling the last bias too nor exchanging two biases goes unseen.
        assert float(jnp.max(jnp.abs(out - expected(scale, scale * bias)))) > 1e-2
        assert float(jnp.max(jnp.abs(out - expected(scale, bias, b=before_activations[::-1])))) > 1e-2


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_rezero_block_is_the_identity_and_learns_its_scalar_first(framework):
    if framework == "linen":
        block = jaxinit.linen.ScaledResidual(nn.Sequential([nn.Dense(WIDTH), nn.tanh, nn.Dense(WIDTH)]))
        params, apply_fn = block.init(KEY, X), block.apply
    else:
        rngs = nnx.Rngs(0)
        branch = nnx.Sequential(nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.tanh, nnx.Linear(WIDTH, WIDTH, rngs=rngs))
        graphdef, params = nnx.split(jaxinit.nnx.ScaledResidual(branch), nnx.Param)

        def apply_fn(params, x):
            return nnx.merge(graphdef, params)(x)

    np.testing.assert_array_equal(apply_fn(params, X), X)
    gradient = by_path(jax.grad(lambda params: jnp.sum(apply_fn(params, X) ** 2))(params))
    for path, leaf in gradient.items():
        assert bool(np.any(leaf)) == ("multiplier" in path), path
    assert [layer.skip for layer in jaxinit.trace_layers(params, apply_fn, X)] == [0, 0]
    kept = jaxinit.initialize(KEY, params, apply_fn, X, overrides={"*multiplier/scale*": jaxinit.zeros})
    np.testing.assert_array_equal(apply_fn(kept, X), X)


def test_alpha_shortcut_and_further_arguments_reach_the_branch():
    def branch(x, factor, shift=0.0):
        return x[:, :3] * factor + shift

    block = jaxinit.linen.ScaledResidual(branch, 0.5, lambda x: -x[:, :3])
    out, _ = block.init_with_output(KEY, X, 4.0, shift=1.0)
    np.testing.assert_allclose(out, -X[:, :3] + 0.5 * (4 * X[:, :3] + 1), atol=1e-6)
    out = jaxinit.nnx.ScaledResidual(branch, 0.5, lambda x: -x[:, :3])(X, 4.0, shift=1.0)
    np.testing.assert_allclose(out, -X[:, :3] + 0.5 * (4 * X[:, :3] + 1), atol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_labels_are_those_of_the_scalars(framework):
    params, apply_fn = network(framework)
    labels = jaxinit.scalar_labels(params, apply_fn, X)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    for path, label in by_path(labels).items():
        assert label == ("scalar" if is_scalar(path) else "other"), path


def test_a_scalar_is_what_the_program_reads_one_number_of():
    params = {
        "stack": jnp.ones((5, 1)),
        "indexed": jnp.ones(5),
        "channels": jnp.ones(5),
        "norm": jnp.ones((5, WIDTH)),
        "layer": jnp.ones((WIDTH, 1)),
        "temperature": jnp.ones(()),
        "unread": jnp.ones((2,)),
        "count": jnp.zeros((), jnp.int32),
    }

    def apply_fn(params, x):
        x, _ = jax.lax.scan(lambda x, p: (x * p[0][None] * p[1][None], None), x, (params["stack"], params["norm"]))
        for i in range(5):
            x = x + params["indexed"][i]
        return x[:, :5] * params["channels"][None] + (x @ params["layer"]) * jnp.exp(params["temperature"])

    shapes = jax.eval_shape(lambda: params)
    labels = jaxinit.scalar_labels(shapes, apply_fn, X)
    scalars = {name for name, label in labels.items() if label == "scalar"}
    assert scalars == {"stack", "indexed", "temperature", "count"}


@pytest.mark.parametrize("framework", ["linen", "linen_scanned"])
def test_optax_trains_scalars_at_a_tenth_of_the_rate(framework):
    params, apply_fn = network(framework)
    params = jaxinit.initialize(KEY, params, apply_fn, X)
    labels = jaxinit.scalar_labels(params, apply_fn, X)
    optimizer = optax.partition({"other": optax.sgd(0.1), "scalar": optax.sgd(0.01)}, labels)
    gradients = jax.grad(lambda params: jnp.mean(apply_fn(params, X) ** 2))(params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    gradients = by_path(gradients)
    for path, update in by_path(updates).items():
        np.testing.assert_allclose(update, -(0.01 if is_scalar(path) else 0.1) * gradients[path], rtol=1e-5)


def test_optax_partitions_the_parameters_of_an_nnx_model():
    model = NnxNetwork(3, 2, False, nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    labels = jaxinit.scalar_labels(params, lambda params, x: nnx.merge(graphdef, params)(x), X)
    transforms = {"other": optax.set_to_zero(), "scalar": optax.sgd(0.01)}
    optimizer = nnx.Optimizer(model, optax.partition(transforms, nnx.as_pure(labels)), wrt=nnx.Param)
    before = {path: np.array(leaf) for path, leaf in by_path(params).items()}
    optimizer.update(model, nnx.grad(lambda model: jnp.mean(model(X) ** 2))(model))
    after = by_path(nnx.state(model, nnx.Param))
    moved = {path for path in after if not np.array_equal(before[path], after[path])}
    assert moved
    assert all(is_scalar(path) for path in moved)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_scalars_keep_the_dtype_of_the_data(dtype):
    x = jnp.ones((2, 3), dtype)
    for module in (jaxinit.linen.ScalarBias(), jaxinit.linen.ScalarMultiplier(2.0)):
        assert module.init_with_output(KEY, x)[0].dtype == dtype
    for module in (jaxinit.nnx.ScalarBias(), jaxinit.nnx.ScalarMultiplier(2.0)):
        assert module(x).dtype == dtype


def test_scalars_are_stored_as_asked_and_make_numbers_of_integers():
    x = jnp.arange(3)
    out, params = jaxinit.linen.ScalarMultiplier(0.5, jnp.bfloat16).init_with_output(KEY, x)
    assert params["params"]["scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [0, 0.5, 1])
    layers = linen_dense(2)
    params = jaxinit.linen.FixupResidual(layers, nn.relu, param_dtype=jnp.bfloat16).init(KEY, X)["params"]
    stored = {name: jax.tree.leaves(value)[0].dtype for name, value in params.items() if "layers" not in name}
    assert set(stored.values()) == {jnp.dtype(jnp.bfloat16)}
    module = jaxinit.nnx.ScalarMultiplier(0.5, param_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(module(x).astype(jnp.float32), [0, 0.5, 1])


def test_seeds_of_a_scanned_network_map():
    params, apply_fn = network("linen_scanned")
    start = jax.jit(jax.vmap(lambda key: jaxinit.initialize(key, params, apply_fn, X, "fixup")))
    out = jax.vmap(apply_fn, in_axes=(0, None))(start(jax.random.split(KEY, 3)), X)
    np.testing.assert_array_equal(out, np.zeros((3, 16, 8)))


def test_lsuv_sees_the_scalars():
    params, apply_fn = network("linen_scanned")
    params = jaxinit.initialize(KEY, params, apply_fn, X)
    _, report = jaxinit.lsuv(params, apply_fn, X, return_report=True)
    for after in report.after:
        np.testing.assert_allclose(after, 1, rtol=1e-3)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_what_a_block_cannot_do_it_says(framework):
    modules = jaxinit.linen if framework == "linen" else jaxinit.nnx

    def run(make, x=X):
        return make().init_with_output(KEY, x)[0] if framework == "linen" else make()(x)

    def identity(x):
        return x

    with pytest.raises(ValueError, match=r"at least two layers.*got 1; for a branch of one layer use ScaledResidual"):
        run(lambda: modules.FixupResidual([identity], jnp.tanh))
    with pytest.raises(TypeError, match="activation must be callable, got 'relu'"):
        run(lambda: modules.FixupResidual([identity, identity], "relu"))
    with pytest.raises(TypeError, match=r"layers\[1\] must be callable, got 3"):
        run(lambda: modules.FixupResidual([identity, 3], jnp.tanh))
    with pytest.raises(TypeError, match="layers must be a sequence of at least two layers, got function"):
        run(lambda: modules.FixupResidual(identity, jnp.tanh))
    for make in (
        lambda: modules.FixupResidual([identity, lambda x: x[:, :1]], jnp.tanh),
        lambda: modules.ScaledResidual(lambda x: x[:, :1]),
    ):
        with pytest.raises(ValueError, match=r"skip connection, \(16, 64\), got \(16, 1\); pass a shortcut"):
            run(make)
