"""Small models of every kind, each as (params, apply_fn, batch), for the tests of layers and LSUV."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

MODELS = {}
"""Name → function without arguments that builds (params, apply_fn, batch)."""


def shared(build):
    """Builds once, so that tests of one model share compiled programs; each gets its own containers."""
    built = functools.cache(build)

    def fresh():
        params, apply_fn, batch = built()
        return jax.tree.map(lambda leaf: leaf, params), apply_fn, batch

    return fresh


def model(build):
    MODELS[build.__name__] = shared(build)
    return build


def keys(count):
    return jax.random.split(jax.random.key(0), count)


VECTORS = jax.random.normal(jax.random.key(1), (64, 12))
IMAGES = jax.random.normal(jax.random.key(2), (8, 8, 8, 3))
TOKENS = jax.random.randint(jax.random.key(3), (16, 7), 0, 20)
SERIES = jax.random.normal(jax.random.key(4), (32, 5, 6))


def linen(module, batch, **kwargs):
    variables = jax.jit(module.init)(jax.random.key(0), batch)

    def apply_fn(variables, batch):
        return module.apply(variables, batch, **kwargs)

    return variables, apply_fn, batch


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (24, 20):
            x = nn.tanh(nn.Dense(width, bias_init=nn.initializers.normal(0.3))(x))
        return nn.Dense(3)(x)


class ResNetBlock(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(self.features, (3, 3), self.strides)(x)))
        y = nn.BatchNorm(use_running_average=False)(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.BatchNorm(use_running_average=False)(nn.Conv(self.features, (1, 1), self.strides)(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), use_bias=False)(x))
        x = ResNetBlock(6)(x)
        x = ResNetBlock(8, strides=2)(x)
        return nn.Dense(4)(x.mean((1, 2)))


class AttentionBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        h = nn.Dense(32)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(h))


class LinenVit(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), (4, 4))(x).reshape(x.shape[0], -1, 16)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], 16))
        x = AttentionBlock()(AttentionBlock()(x))
        return nn.Dense(4)(nn.LayerNorm()(x).mean(1))


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return AttentionBlock()(x), None


class LinenDecoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(20, 16)
        block = nn.scan(nn.remat(ScannedBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = block()(embed(tokens), None)
        return embed.attend(nn.LayerNorm()(x))


class LinenUNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.Conv(6, (3, 3))(x))
        down = nn.relu(nn.Conv(8, (3, 3), (2, 2), feature_group_count=2)(skip))
        up = nn.ConvTranspose(6, (3, 3), (2, 2))(down)
        return nn.Conv(2, (1, 1))(jnp.concatenate([skip, nn.relu(up)], -1))


class LinenMoe(nn.Module):
    @nn.compact
    def __call__(self, x):
        gates = nn.softmax(nn.Dense(4)(x))
        inner = self.param("inner", nn.initializers.normal(1.0), (4, 12, 16))
        outer = self.param("outer", nn.initializers.normal(0.1), (4, 16, 5))
        h = nn.relu(jnp.einsum("bd,edf->ebf", x, inner))
        return jnp.einsum("ebo,be->bo", jnp.einsum("ebf,efo->ebo", h, outer), gates)


class LinenAlbert(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(12, name="shared")
        for _ in range(4):
            x = nn.relu(shared(x))
        return nn.Dense(2)(x)


class LinenMixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4))(x).reshape(x.shape[0], -1, 8)
        for _ in range(2):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(10)(y)))
            x = x + jnp.swapaxes(y, 1, 2)
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(14)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(1))


class LinenEnsemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        member = nn.vmap(LinenMlp, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3)
        return member()(x)


class LinenHalf(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(24, dtype=jnp.bfloat16)(x))
        return nn.Dense(8, dtype=jnp.bfloat16)(x)


class LinenWeightNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.WeightNorm(nn.Dense(10))(x))
        return nn.WeightNorm(nn.Dense(4))(x)


for name, module, batch, options in [
    ("linen_mlp", LinenMlp(), VECTORS, {}),
    ("linen_resnet", LinenResNet(), IMAGES, {"mutable": ["batch_stats"]}),
    ("linen_vit", LinenVit(), IMAGES, {}),
    ("linen_decoder", LinenDecoder(), TOKENS, {}),
    ("linen_unet", LinenUNet(), IMAGES, {}),
    ("linen_lstm", nn.RNN(nn.OptimizedLSTMCell(7)), SERIES, {}),
    ("linen_gru", nn.RNN(nn.GRUCell(7)), SERIES, {}),
    ("linen_moe", LinenMoe(), VECTORS, {}),
    ("linen_albert", LinenAlbert(), VECTORS, {}),
    ("linen_mixer", LinenMixer(), IMAGES, {}),
    ("linen_ensemble", LinenEnsemble(), VECTORS, {}),
    ("linen_half", LinenHalf(), VECTORS, {}),
    ("linen_weight_norm", LinenWeightNorm(), VECTORS, {}),
]:
    MODELS[name] = shared(functools.partial(linen, module, batch, **options))


def from_nnx(module, batch):
    graphdef, state = nnx.split(module)
    return state, lambda state, x: nnx.merge(graphdef, state)(x), batch


@model
def nnx_mlp():
    rngs = nnx.Rngs(0)
    return from_nnx(nnx.Sequential(nnx.Linear(12, 24, rngs=rngs), nnx.relu, nnx.Linear(24, 3, rngs=rngs)), VECTORS)


class NnxConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.branch = nnx.Conv(6, 6, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = x + self.branch(x)
        return self.out(self.dropout(x.mean((1, 2))))


@model
def nnx_convnet():
    return from_nnx(NnxConvNet(nnx.Rngs(0)), IMAGES)


class NnxScanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return nnx.Linear(12, 12, rngs=rngs)

        self.blocks = blocks(rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return x + nnx.tanh(block(x))

        return self.attention(forward(x, self.blocks)[:, None])


@model
def nnx_scanned():
    return from_nnx(NnxScanned(nnx.Rngs(0)), VECTORS)


@model
def equinox_mlp():
    mlp = eqx.nn.MLP(12, 3, 24, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    params, static = eqx.partition(mlp, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x), VECTORS


@model
def equinox_attention():
    class Block(eqx.Module):
        conv: eqx.nn.Conv1d
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.LayerNorm

        def __call__(self, x):
            x = self.conv(x.T).T
            h = jax.vmap(self.norm)(x)
            return x + self.attention(h, h, h)

    k1, k2 = keys(2)
    block = Block(eqx.nn.Conv1d(6, 8, 1, key=k1), eqx.nn.MultiheadAttention(2, 8, key=k2), eqx.nn.LayerNorm(8))
    params, static = eqx.partition(block, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x), SERIES


def haiku(function, batch):
    transformed = hk.without_apply_rng(hk.transform(function))
    return transformed.init(jax.random.key(0), batch), transformed.apply, batch


@model
def haiku_mlp():
    return haiku(lambda x: hk.nets.MLP([24, 24, 3], activation=jnp.tanh)(x), VECTORS)


@model
def haiku_lstm():
    def forward(x):
        core = hk.LSTM(7)
        outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(3)(outputs)

    return haiku(forward, SERIES)


@model
def haiku_convnet():
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(6, 3)(x))
        x = x + hk.Conv2D(6, 3, with_bias=False)(jax.nn.relu(hk.LayerNorm(-1, True, True)(x)))
        return hk.Linear(4)(x.mean((1, 2)))

    return haiku(forward, IMAGES)


@model
def plain_mlp():
    ks = keys(3)
    params = [
        {"w": jax.random.normal(k, s), "b": jnp.ones(s[1])}
        for k, s in zip(ks, [(12, 20), (20, 20), (20, 3)], strict=True)
    ]

    def apply_fn(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return x @ params[-1]["w"] + params[-1]["b"][None]

    return params, apply_fn, VECTORS


@model
def plain_scan():
    k1, k2 = keys(2)
    params = {"w": jax.random.normal(k1, (6, 12, 12)), "b": 0.5 * jax.random.normal(k2, (6, 12))}

    def apply_fn(params, x):
        def step(x, layer):
            return jnp.tanh(x @ layer["w"] + layer["b"][None]), None

        return lax.scan(step, x, params)[0]

    return params, apply_fn, VECTORS


@model
def plain_indexed():
    params = jax.random.normal(keys(1)[0], (4, 12, 12))

    def apply_fn(w, x):
        for i in range(4):
            x = jax.nn.relu(x @ w[i])
        return x

    return params, apply_fn, VECTORS


@model
def plain_fori_loop():
    params = {"w": jax.random.normal(keys(1)[0], (12, 12))}

    def apply_fn(params, x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["w"]), x)

    return params, apply_fn, VECTORS


@model
def plain_weights_in_carry():
    params = {"w": jax.random.normal(keys(1)[0], (12, 12))}

    def apply_fn(params, x):
        def step(carry, _):
            x, w = carry
            return (jnp.tanh(x @ w), w), None

        return lax.scan(step, (x, params["w"]), None, length=3)[0][0]

    return params, apply_fn, VECTORS


@model
def plain_while_loop():
    params = {"w": jax.random.normal(keys(1)[0], (12, 12)), "out": jax.random.normal(keys(2)[1], (12, 4))}

    def apply_fn(params, x):
        x = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["w"])), (0, x))[1]
        return x @ params["out"]

    return params, apply_fn, VECTORS


@model
def plain_cond():
    k1, k2, k3 = keys(3)
    params = {
        "a": jax.random.normal(k1, (12, 8)),
        "b": jax.random.normal(k2, (12, 8)),
        "c": jax.random.normal(k3, (8, 2)),
    }

    def apply_fn(params, x):
        x = lax.cond(x.sum() > 1e6, lambda x: x @ params["a"], lambda x: x @ params["b"], x)
        return jnp.tanh(x) @ params["c"]

    return params, apply_fn, VECTORS


@model
def plain_custom_derivatives():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda residuals, g: (g @ residuals[1].T, residuals[0].T @ g))

    @jax.custom_jvp
    def activation(x):
        return jnp.tanh(x)

    activation.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), tangents[0]))
    k1, k2 = keys(2)
    params = {"a": jax.random.normal(k1, (12, 16)), "b": jax.random.normal(k2, (16, 4))}
    policy = jax.checkpoint_policies.dots_saveable

    def apply_fn(params, x):
        hidden = jax.checkpoint(lambda x, w: activation(product(x, w)), policy=policy)
        return jax.jit(product)(hidden(x, params["a"]), params["b"])

    return params, apply_fn, VECTORS


@model
def plain_multiplied():
    """Equalised learning rate, muP's multiplier, a mask and a transposed, reshaped kernel."""
    k1, k2, k3 = keys(3)
    params = {
        "equalised": jax.random.normal(k1, (12, 16)),
        "masked": jax.random.normal(k2, (16, 16)),
        "flat": jax.random.normal(k3, (5 * 16,)),
    }
    mask = (jnp.arange(256).reshape(16, 16) % 3 > 0).astype(jnp.float32)

    def apply_fn(params, x):
        x = jnp.tanh(x @ (params["equalised"] * 12**-0.5))
        x = jnp.tanh(x @ (params["masked"] * mask / 4))
        return x @ params["flat"].reshape(5, 16).T

    return params, apply_fn, VECTORS


@model
def plain_weight_standardised():
    k1, k2 = keys(2)
    params = {"kernel": jax.random.normal(k1, (3, 3, 3, 6)), "gain": jnp.ones(6), "out": jax.random.normal(k2, (6, 4))}

    def apply_fn(params, x):
        w = params["kernel"] - params["kernel"].mean((0, 1, 2), keepdims=True)
        w = params["gain"][None, None, None] * w / jnp.sqrt(w.var((0, 1, 2), keepdims=True) + 1e-4)
        x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(x).mean((1, 2)) @ params["out"]

    return params, apply_fn, IMAGES


@model
def plain_lora():
    k1, k2, k3 = keys(3)
    params = {
        "base": jax.random.normal(k1, (12, 16)),
        "a": jax.random.normal(k2, (12, 2)),
        "b": jax.random.normal(k3, (2, 16)),
    }

    def apply_fn(params, x):
        return x @ params["base"] + x @ params["a"] @ params["b"]

    return params, apply_fn, VECTORS


def experts():
    """A router, two-layer experts, the sixth of which is never chosen, and the choice of each sample."""
    k1, k2, k3 = keys(3)
    params = {
        "router": jax.random.normal(k1, (12, 6)),
        "inner": 3 * jax.random.normal(k2, (6, 12, 8)),
        "outer": 0.2 * jax.random.normal(k3, (6, 8, 5)),
    }
    return params, lambda params, x: jnp.argmax((x @ params["router"])[:, :5], axis=1)


@model
def plain_picked_experts():
    """Each sample uses the weights of its expert; in the second layer through vmap of a function of one sample."""
    params, choose = experts()

    def apply_fn(params, x):
        chosen = choose(params, x)
        x = jax.nn.relu(jnp.einsum("ti,tio->to", x, params["inner"][chosen]))
        return jax.vmap(lambda x, expert: x @ params["outer"][expert])(x, chosen)

    return params, apply_fn, VECTORS


@model
def plain_experts_picked_by_products():
    """The same with products of one-hot numbers instead of lookups."""
    params, choose = experts()

    def apply_fn(params, x):
        chosen = jax.nn.one_hot(choose(params, x), 6)
        x = jax.nn.relu(jnp.einsum("ti,tio->to", x, jnp.einsum("te,eio->tio", chosen, params["inner"])))
        return jax.vmap(lambda x, expert: x @ jnp.tensordot(expert, params["outer"], 1))(x, chosen)

    return params, apply_fn, VECTORS


@model
def plain_best_two_experts():
    params, _ = experts()

    def apply_fn(params, x):
        gates, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        x = jax.nn.relu(jnp.einsum("ti,tkiab->tkab", x, 0.5 * params["inner"][chosen].reshape(64, 2, 12, 4, 2)))
        x = jnp.einsum("tko,toik->tki", jax.lax.collapse(x, 2), jnp.transpose(params["outer"][chosen], (0, 2, 3, 1)))
        return jnp.einsum("tki,tk->ti", x, gates)

    return params, apply_fn, VECTORS


@model
def plain_grouped_experts():
    """Samples sorted by expert, and a matrix for each group of them."""
    params, choose = experts()

    def apply_fn(params, x):
        chosen = choose(params, x)
        order, sizes = jnp.argsort(chosen), jnp.bincount(chosen, length=6)
        x = jax.nn.relu(lax.ragged_dot(x[order], params["inner"], sizes))
        return lax.ragged_dot(x, params["outer"], sizes)[jnp.argsort(order)]

    return params, apply_fn, VECTORS


@model
def plain_fused_attention():
    """A fused kernel that the program cuts in three, einsums with the weight first, and one-hot tokens."""
    k1, k2, k3 = keys(3)
    params = {
        "table": jax.random.normal(k1, (20, 8)),
        "qkv": jax.random.normal(k2, (8, 24)),
        "out": jax.random.normal(k3, (2, 4, 8)),
    }

    def apply_fn(params, tokens):
        x = jax.nn.one_hot(tokens, 20) @ params["table"]
        q, k, v = (jnp.einsum("dhk,btd->bthk", w.reshape(8, 2, 4), x) for w in jnp.split(params["qkv"], 3, axis=1))
        weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        return x + jnp.einsum("hkd,bthk->btd", params["out"], jnp.einsum("bhts,bshk->bthk", weights, v))

    return params, apply_fn, TOKENS
