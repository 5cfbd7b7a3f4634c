"""Small models that several tests use, most of them as shapes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxinit

KEY = jax.random.key(0)
NHWC = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def attend(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)


def encoder_decoder(blocks=3, d=8, stacked=False):
    """Two stacks without normalization; the decoder attends to the encoder's output in every block."""

    def sublayer(p, x, memory):
        q, k, v = x @ p["q"], memory @ p["k"], memory @ p["v"]
        return x + attend(*(z.reshape(2, -1, 2, d // 2) for z in (q, k, v))).reshape(x.shape) @ p["o"]

    def encode(x, p):
        x = sublayer(p["self"], x, x)
        return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

    def apply_fn(params, batch):
        source, target = params["embed"][batch[0]], params["embed"][batch[1]]

        def decode(x, p):
            x = sublayer(p["cross"], sublayer(p["self"], x, x), memory)
            return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

        if stacked:
            memory = jax.lax.scan(encode, source, params["encoder"])[0]
            return jax.lax.scan(decode, target, params["decoder"])[0] @ params["out"]
        memory = source
        for p in params["encoder"]:
            memory = encode(memory, p)[0]
        for p in params["decoder"]:
            target = decode(target, p)[0]
        return target @ params["out"]

    lead = (blocks,) if stacked else ()
    attention = {n: struct(*lead, d, d) for n in "qkvo"}
    block = {"self": attention, "up": struct(*lead, d, 4 * d), "down": struct(*lead, 4 * d, d)}
    decoder = {**block, "cross": attention}
    params = {
        "embed": struct(20, d),
        "encoder": block if stacked else [block] * blocks,
        "decoder": decoder if stacked else [decoder] * blocks,
        "out": struct(d, 20),
    }
    return params, apply_fn, (jnp.zeros((2, 5), int), jnp.zeros((2, 4), int))


def run_cell(cell):
    module, x = nn.RNN(cell), jnp.ones((2, 5, 3))
    return jax.eval_shape(module.init, KEY, x), module.apply, x


def equinox_lstm():
    cell = eqx.nn.LSTMCell(3, 7, key=KEY)
    params, static = eqx.partition(cell, eqx.is_array)

    def apply_fn(params, xs):
        cell = eqx.combine(params, static)
        return jax.lax.scan(lambda state, x: (cell(x, state), None), (jnp.zeros(7), jnp.zeros(7)), xs)[0]

    return params, apply_fn, jnp.ones((5, 3))


def residual(blocks, *, alpha=False, omega=False, width=64):
    """Branches of two layers; their multipliers α or those of the skip connections ω are parameters."""
    block = {"a": struct(width, width), "b": struct(width, width)}
    block |= {"alpha": struct()} if alpha else {}
    block |= {"omega": struct(width)} if omega else {}

    def apply_fn(params, x):
        for p in params:
            branch = jax.nn.relu(x @ p["a"]) @ p["b"]
            x = (p["omega"][None] if omega else 1.0) * x + p.get("alpha", 1.0) * branch
            if omega:
                x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))
        return x

    return [block] * blocks, apply_fn, jax.random.normal(KEY, (256, width))


def chain(activation, bias=0.0):
    """A plain network whose parameters are stacked, so that all tests share its shape of program."""

    def apply_fn(params, x):
        return (
            jax.lax.scan(lambda x, p: (activation(x @ p["w"] + p["b"][None]), None), x, params["hidden"])[0]
            @ params["out"]
        )

    def init(key, depth=20, init=None, width=64, bias=bias):
        init = init or jaxinit.variance_scaling(jaxinit.gain(activation) ** 2, "fan_in", "normal")
        k1, k2, k3 = jax.random.split(key, 3)
        hidden = jaxinit.blocked(init, 0, depth)(k1, (depth * width, width)).reshape(depth, width, width)
        biases = bias * jax.random.normal(k3, (depth, width))
        return {"hidden": {"w": hidden, "b": biases}, "out": jaxinit.lecun_normal()(k2, (width, 10))}

    return init, apply_fn


def convolve(x, kernel, groups=1):
    rank = kernel.ndim - 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * rank, "SAME", dimension_numbers=NHWC[rank], feature_group_count=groups
    )
