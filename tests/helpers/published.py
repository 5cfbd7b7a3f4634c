"""Small models of many families with the initial weights that their authors publish, each as (params, apply_fn, batch).

Pure JAX, each written for these tests. Blocks that are alike are scanned over where the fault that a test plants can
be told by slice, so that programs stay small.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STARTS = {}
"""Name → function without arguments that builds (params, apply_fn, batch)."""


def start(build):
    STARTS[build.__name__] = build
    return build


class Draws:
    """Draws of weights, one key after another."""

    def __init__(self, seed=0):
        self.key = jax.random.key(seed)

    def next(self):
        self.key, key = jax.random.split(self.key)
        return key

    def normal(self, stddev, *shape):
        return stddev * jax.random.normal(self.next(), shape)

    def truncated(self, stddev, *shape):
        return stddev * jax.random.truncated_normal(self.next(), -2.0, 2.0, shape)

    def uniform(self, bound, *shape):
        return jax.random.uniform(self.next(), shape, minval=-bound, maxval=bound)

    def lecun(self, *shape):
        return self.normal(math.prod(shape[:-1]) ** -0.5, *shape)

    def he_out(self, *shape):
        return self.normal(math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1])), *shape)

    def xavier(self, *shape):
        field = math.prod(shape[:-2])
        return self.uniform(math.sqrt(6 / (field * (shape[-2] + shape[-1]))), *shape)

    def torch(self, *shape):
        """A kernel and a bias."""
        bound = math.prod(shape[:-1]) ** -0.5
        return {"w": self.uniform(bound, *shape), "b": self.uniform(bound, shape[-1])}

    def orthogonal(self, gain, rows, columns):
        q, r = np.linalg.qr(np.asarray(jax.random.normal(self.next(), (max(rows, columns), min(rows, columns)))))
        q = q * np.sign(np.diag(r))
        return gain * jnp.asarray(q if rows >= columns else q.T)


def images(size=16, count=16, channels=3):
    """Smooth images: white noise would be averaged away."""
    coarse = jax.random.normal(jax.random.key(2), (count, 4, 4, channels))
    return jax.image.resize(coarse, (count, size, size, channels), "cubic")


def tokens(length=12, count=16, vocabulary=64):
    return jax.random.randint(jax.random.key(3), (count, length), 0, vocabulary)


def vectors(width, count=64):
    return jax.random.normal(jax.random.key(4), (count, width))


def dense(p, x):
    return x @ p["w"] + p["b"]


def conv(w, x, stride=1):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return p["g"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) + p["b"]


def plain_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def rms_norm(g, x):
    return g * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def batch_norm(p, x):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["g"] + p["b"]


def group_norm(p, x, groups=4):
    n, h, w, c = x.shape
    y = x.reshape(n, h, w, groups, c // groups)
    y = (y - y.mean((1, 2, 4), keepdims=True)) / jnp.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-5)
    return y.reshape(x.shape) * p["g"] + p["b"]


def affine(width, gain=1.0):
    return {"g": jnp.full(width, gain), "b": jnp.zeros(width)}


def attend(q, k, v, heads, causal=False):
    n, t, d = q.shape
    q, k, v = (x.reshape(n, x.shape[1], heads, d // heads) for x in (q, k, v))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(d // heads)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).reshape(n, t, d)


def stacked(count, build):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(build() for _ in range(count)))


def scanned(block, x, params):
    return lax.scan(lambda x, p: (block(p, x), None), x, params)[0]


# Convolutional networks


@start
def resnet():
    """Goyal et al., 2017: He's normal by fan-out, the last gain of each block zero, a small readout."""
    d = Draws()

    def block(inputs, outputs, shortcut):
        p = {
            "conv1": d.he_out(3, 3, inputs, outputs),
            "bn1": affine(outputs),
            "conv2": d.he_out(3, 3, outputs, outputs),
            "bn2": affine(outputs, 0.0),
        }
        return p | ({"conv": d.he_out(1, 1, inputs, outputs), "bn": affine(outputs)} if shortcut else {})

    params = {
        "stem": d.he_out(3, 3, 3, 16),
        "bn": affine(16),
        "blocks": [block(16, 16, False), block(16, 16, False), block(16, 32, True), block(32, 32, False)],
        "out": {"w": d.normal(0.01, 32, 10), "b": jnp.zeros(10)},
    }

    def apply_fn(params, x):
        x = jax.nn.relu(batch_norm(params["bn"], conv(params["stem"], x)))
        for p in params["blocks"]:
            stride = 2 if "conv" in p else 1
            y = jax.nn.relu(batch_norm(p["bn1"], conv(p["conv1"], x, stride)))
            y = batch_norm(p["bn2"], conv(p["conv2"], y))
            if "conv" in p:
                x = batch_norm(p["bn"], conv(p["conv"], x, stride))
            x = jax.nn.relu(x + y)
        return dense(params["out"], x.mean((1, 2)))

    return params, apply_fn, images()


@start
def unet():
    """Ho et al., 2020: Glorot's uniform, and zero last convolutions of blocks and of the model."""
    d = Draws()
    width = 16

    def block(inputs, outputs):
        p = {
            "gn1": affine(inputs),
            "conv1": d.xavier(3, 3, inputs, outputs),
            "time": {"w": d.xavier(width, outputs), "b": jnp.zeros(outputs)},
            "gn2": affine(outputs),
            "conv2": 1e-5 * d.xavier(3, 3, outputs, outputs),
        }
        return p | ({"skip": d.xavier(1, 1, inputs, outputs)} if inputs != outputs else {})

    params = {
        "time": [{"w": d.xavier(width, width), "b": jnp.zeros(width)} for _ in range(2)],
        "in": d.xavier(3, 3, 3, width),
        "down": [block(width, width), block(width, 2 * width)],
        "middle": [block(2 * width, 2 * width)],
        "up": [block(4 * width, 2 * width), block(3 * width, width)],
        "gn": affine(width),
        "out": 1e-5 * d.xavier(3, 3, width, 3),
    }

    def residual(p, x, time):
        y = conv(p["conv1"], jax.nn.silu(group_norm(p["gn1"], x)))
        y = y + dense(p["time"], jax.nn.silu(time))[:, None, None]
        y = conv(p["conv2"], jax.nn.silu(group_norm(p["gn2"], y)))
        return (conv(p["skip"], x) if "skip" in p else x) + y

    def apply_fn(params, batch):
        x, t = batch
        angles = t[:, None] * jnp.exp(-math.log(1e4) * jnp.arange(width / 2) / (width // 2 - 1))
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        time = dense(params["time"][1], jax.nn.silu(dense(params["time"][0], time)))
        x = conv(params["in"], x)
        kept = []
        for p in params["down"]:
            x = residual(p, x, time)
            kept.append(x)
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
        for p in params["middle"]:
            x = residual(p, x, time)
        for p in params["up"]:
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = residual(p, jnp.concatenate([x, kept.pop()], -1), time)
        return conv(params["out"], jax.nn.silu(group_norm(params["gn"], x)))

    t = jax.random.randint(jax.random.key(5), (8,), 0, 1000).astype(jnp.float32)
    return params, apply_fn, (images(16, 8), t)


@start
def convnext():
    """Liu et al., 2022: truncated normals of .02, and branches times 1e-6."""
    d = Draws()
    width = 16

    def block():
        return {
            "depthwise": d.truncated(0.02, 7, 7, 1, width),
            "b": jnp.zeros(width),
            "ln": affine(width),
            "up": {"w": d.truncated(0.02, width, 4 * width), "b": jnp.zeros(4 * width)},
            "down": {"w": d.truncated(0.02, 4 * width, width), "b": jnp.zeros(width)},
            "layer_scale": jnp.full(width, 1e-6),
        }

    params = {
        "stem": {"w": d.truncated(0.02, 4 * 4 * 3, width), "b": jnp.zeros(width)},
        "ln": affine(width),
        "blocks": [block() for _ in range(4)],
        "last": affine(width),
        "out": {"w": d.truncated(0.02, width, 10), "b": jnp.zeros(10)},
    }

    def apply_fn(params, x):
        n, h, w, c = x.shape
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 4, w // 4, -1)
        x = layer_norm(params["ln"], dense(params["stem"], x))
        for p in params["blocks"]:
            y = lax.conv_general_dilated(
                x,
                p["depthwise"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=width,
            )
            y = dense(p["up"], layer_norm(p["ln"], y + p["b"]))
            x = x + p["layer_scale"] * dense(p["down"], jax.nn.gelu(y))
        return dense(params["out"], layer_norm(params["last"], x.mean((1, 2))))

    return params, apply_fn, images(32)


@start
def fixup_resnet():
    """Zhang et al., 2019: no normalization, zero last layers of branches and a zero readout, scalar biases."""
    d = Draws()
    count = 4

    def block():
        return {
            "b": jnp.zeros(4),
            "conv1": d.he_out(3, 3, 16, 16) * count**-0.5,
            "conv2": jnp.zeros((3, 3, 16, 16)),
            "scale": jnp.ones(()),
        }

    params = {
        "stem": d.he_out(3, 3, 3, 16),
        "blocks": [block() for _ in range(count)],
        "out": {"w": jnp.zeros((16, 10)), "b": jnp.zeros(10)},
    }

    def apply_fn(params, x):
        x = jax.nn.relu(conv(params["stem"], x))
        for p in params["blocks"]:
            y = jax.nn.relu(conv(p["conv1"], x + p["b"][0]) + p["b"][1])
            y = conv(p["conv2"], y + p["b"][2]) * p["scale"] + p["b"][3]
            x = jax.nn.relu(x + y)
        return dense(params["out"], x.mean((1, 2)))

    return params, apply_fn, images()


# Transformers


@start
def vit():
    """Dosovitskiy et al., 2021: Glorot's uniform, biases and positions near zero, a zero class token and readout."""
    d = Draws()
    width = 32

    def block():
        return {
            "ln1": affine(width),
            "qkv": {"w": d.xavier(width, 3 * width), "b": jnp.zeros(3 * width)},
            "proj": {"w": d.xavier(width, width), "b": jnp.zeros(width)},
            "ln2": affine(width),
            "up": {"w": d.xavier(width, 4 * width), "b": d.normal(1e-6, 4 * width)},
            "down": {"w": d.xavier(4 * width, width), "b": d.normal(1e-6, width)},
        }

    params = {
        "patch": {"w": d.lecun(4 * 4 * 3, width), "b": jnp.zeros(width)},
        "cls": jnp.zeros((1, 1, width)),
        "pos": d.normal(0.02, 1, 17, width),
        "blocks": stacked(4, block),
        "ln": affine(width),
        "out": {"w": jnp.zeros((width, 10)), "b": jnp.zeros(10)},
    }

    def block_fn(p, x):
        q, k, v = jnp.split(dense(p["qkv"], layer_norm(p["ln1"], x)), 3, -1)
        x = x + dense(p["proj"], attend(q, k, v, 4))
        return x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln2"], x))))

    def apply_fn(params, x):
        n, h, w, c = x.shape
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)
        x = dense(params["patch"], x)
        x = jnp.concatenate([jnp.broadcast_to(params["cls"], (n, 1, width)), x], 1) + params["pos"]
        x = scanned(block_fn, x, params["blocks"])
        return dense(params["out"], layer_norm(params["ln"], x)[:, 0])

    return params, apply_fn, images()


@start
def gpt2():
    """Radford et al., 2019: normals of .02, residual projections over the root of their number, a tied readout."""
    d = Draws()
    width, layers = 32, 4

    def block():
        return {
            "ln1": affine(width),
            "qkv": {"w": d.normal(0.02, width, 3 * width), "b": jnp.zeros(3 * width)},
            "proj": {"w": d.normal(0.02 / math.sqrt(2 * layers), width, width), "b": jnp.zeros(width)},
            "ln2": affine(width),
            "up": {"w": d.normal(0.02, width, 4 * width), "b": jnp.zeros(4 * width)},
            "down": {"w": d.normal(0.02 / math.sqrt(2 * layers), 4 * width, width), "b": jnp.zeros(width)},
        }

    params = {
        "wte": d.normal(0.02, 64, width),
        "wpe": d.normal(0.01, 12, width),
        "blocks": [block() for _ in range(layers)],
        "ln": affine(width),
    }

    def apply_fn(params, t):
        x = params["wte"][t] + params["wpe"][: t.shape[1]]
        for p in params["blocks"]:
            q, k, v = jnp.split(dense(p["qkv"], layer_norm(p["ln1"], x)), 3, -1)
            x = x + dense(p["proj"], attend(q, k, v, 4, causal=True))
            x = x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln2"], x))))
        return layer_norm(params["ln"], x) @ params["wte"].T

    return params, apply_fn, tokens()


@start
def dit():
    """Peebles & Xie, 2023: Glorot's uniform, .02 for embeddings, zero modulations and a zero last layer."""
    d = Draws()
    width = 32

    def glorot(inputs, outputs):
        return {"w": d.xavier(inputs, outputs), "b": jnp.zeros(outputs)}

    def zero(inputs, outputs):
        return {"w": jnp.zeros((inputs, outputs)), "b": jnp.zeros(outputs)}

    def block():
        return {
            "qkv": glorot(width, 3 * width),
            "proj": glorot(width, width),
            "up": glorot(width, 4 * width),
            "down": glorot(4 * width, width),
            "ada": zero(width, 6 * width),
        }

    params = {
        "patch": glorot(4 * 4 * 3, width),
        "time": [{"w": d.normal(0.02, width, width), "b": jnp.zeros(width)} for _ in range(2)],
        "label": d.normal(0.02, 10, width),
        "blocks": stacked(3, block),
        "ada": zero(width, 2 * width),
        "out": zero(width, 4 * 4 * 3),
    }

    def modulate(x, shift, scale):
        return x * (1 + scale[:, None]) + shift[:, None]

    def apply_fn(params, batch):
        x, t, y = batch
        n, h, w, c = x.shape
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)
        place = jnp.arange(16.0)[:, None] * jnp.exp(-math.log(1e4) * jnp.arange(width / 2) / (width // 2))
        x = dense(params["patch"], x) + jnp.concatenate([jnp.sin(place), jnp.cos(place)], -1)
        angles = t[:, None] * jnp.exp(-math.log(1e4) * jnp.arange(width / 2) / (width // 2))
        time = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        time = dense(params["time"][1], jax.nn.silu(dense(params["time"][0], time)))
        condition = jax.nn.silu(time + params["label"][y])

        def block_fn(p, x):
            shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(dense(p["ada"], condition), 6, -1)
            q, k, v = jnp.split(dense(p["qkv"], modulate(plain_norm(x), shift1, scale1)), 3, -1)
            x = x + gate1[:, None] * dense(p["proj"], attend(q, k, v, 4))
            h = jax.nn.gelu(dense(p["up"], modulate(plain_norm(x), shift2, scale2)))
            return x + gate2[:, None] * dense(p["down"], h)

        x = scanned(block_fn, x, params["blocks"])
        shift, scale = jnp.split(dense(params["ada"], condition), 2, -1)
        return dense(params["out"], modulate(plain_norm(x), shift, scale))

    t = jax.random.randint(jax.random.key(5), (16,), 0, 1000).astype(jnp.float32)
    return params, apply_fn, (images(), t, jax.random.randint(jax.random.key(6), (16,), 0, 10))


@start
def cait():
    """Touvron et al., 2021: truncated normals of .02, and both branches of a block times 1e-5."""
    d = Draws()
    width = 32

    def block():
        return {
            "ln1": affine(width),
            "qkv": {"w": d.truncated(0.02, width, 3 * width), "b": jnp.zeros(3 * width)},
            "proj": {"w": d.truncated(0.02, width, width), "b": jnp.zeros(width)},
            "g1": jnp.full(width, 1e-5),
            "ln2": affine(width),
            "up": {"w": d.truncated(0.02, width, 4 * width), "b": jnp.zeros(4 * width)},
            "down": {"w": d.truncated(0.02, 4 * width, width), "b": jnp.zeros(width)},
            "g2": jnp.full(width, 1e-5),
        }

    params = {
        "patch": {"w": d.truncated(0.02, 4 * 4 * 3, width), "b": jnp.zeros(width)},
        "pos": d.truncated(0.02, 1, 16, width),
        "blocks": stacked(4, block),
        "ln": affine(width),
        "out": {"w": d.truncated(0.02, width, 10), "b": jnp.zeros(10)},
    }

    def block_fn(p, x):
        q, k, v = jnp.split(dense(p["qkv"], layer_norm(p["ln1"], x)), 3, -1)
        x = x + p["g1"] * dense(p["proj"], attend(q, k, v, 4))
        return x + p["g2"] * dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["ln2"], x))))

    def apply_fn(params, x):
        n, h, w, c = x.shape
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)
        x = scanned(block_fn, dense(params["patch"], x) + params["pos"], params["blocks"])
        return dense(params["out"], layer_norm(params["ln"], x).mean(1))

    return params, apply_fn, images()


@start
def rezero():
    """Bachlechner et al., 2021: no normalization, and a number of zero for each pair of branches."""
    d = Draws()
    width = 32

    def block():
        return {
            "qkv": {"w": d.xavier(width, 3 * width), "b": jnp.zeros(3 * width)},
            "proj": {"w": d.xavier(width, width), "b": jnp.zeros(width)},
            "up": {"w": d.xavier(width, 4 * width), "b": jnp.zeros(4 * width)},
            "down": {"w": d.xavier(4 * width, width), "b": jnp.zeros(width)},
            "alpha": jnp.zeros(()),
        }

    params = {"embed": d.normal(1.0, 64, width), "blocks": stacked(4, block), "out": d.xavier(width, 64)}

    def block_fn(p, x):
        q, k, v = jnp.split(dense(p["qkv"], x), 3, -1)
        x = x + p["alpha"] * dense(p["proj"], attend(q, k, v, 4, causal=True))
        return x + p["alpha"] * dense(p["down"], jax.nn.relu(dense(p["up"], x)))

    def apply_fn(params, t):
        return scanned(block_fn, params["embed"][t], params["blocks"]) @ params["out"]

    return params, apply_fn, tokens()


@start
def mixer():
    """Tolstikhin et al., 2021: Glorot's uniform, biases near zero, a zero readout."""
    d = Draws()
    width = 32

    def mlp(size, hidden):
        return {
            "up": {"w": d.xavier(size, hidden), "b": d.normal(1e-6, hidden)},
            "down": {"w": d.xavier(hidden, size), "b": d.normal(1e-6, size)},
        }

    params = {
        "patch": {"w": d.lecun(4 * 4 * 3, width), "b": jnp.zeros(width)},
        "blocks": [
            {"ln1": affine(width), "tokens": mlp(16, 32), "ln2": affine(width), "channels": mlp(width, 4 * width)}
            for _ in range(3)
        ],
        "ln": affine(width),
        "out": {"w": jnp.zeros((width, 10)), "b": jnp.zeros(10)},
    }

    def mlp_fn(p, x):
        return dense(p["down"], jax.nn.gelu(dense(p["up"], x)))

    def apply_fn(params, x):
        n, h, w, c = x.shape
        x = x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)
        x = dense(params["patch"], x)
        for p in params["blocks"]:
            x = x + mlp_fn(p["tokens"], layer_norm(p["ln1"], x).transpose(0, 2, 1)).transpose(0, 2, 1)
            x = x + mlp_fn(p["channels"], layer_norm(p["ln2"], x))
        return dense(params["out"], layer_norm(params["ln"], x).mean(1))

    return params, apply_fn, images()


# Recurrences


def mamba_block(d, layers, width=16, states=8, rank=2):
    inner = 2 * width
    dt = jnp.exp(jax.random.uniform(d.next(), (inner,), minval=math.log(1e-3), maxval=math.log(0.1)))
    return {
        "norm": jnp.ones(width),
        "in": d.uniform(width**-0.5, width, 2 * inner),
        "conv": d.uniform(0.5, 4, inner),
        "conv_b": d.uniform(0.5, inner),
        "x": d.uniform(inner**-0.5, inner, rank + 2 * states),
        "dt": d.uniform(rank**-0.5, rank, inner),
        "dt_b": dt + jnp.log(-jnp.expm1(-dt)),
        "A_log": jnp.log(jnp.broadcast_to(jnp.arange(1.0, states + 1), (inner, states))),
        "D": jnp.ones(inner),
        "out": d.uniform(inner**-0.5, inner, width) / math.sqrt(layers),
    }


def mamba_fn(p, x, states=8, rank=2):
    u, z = jnp.split(rms_norm(p["norm"], x) @ p["in"], 2, -1)
    padded = jnp.pad(u, ((0, 0), (3, 0), (0, 0)))
    u = sum(padded[:, i : i + u.shape[1]] * p["conv"][i] for i in range(4)) + p["conv_b"]
    u = jax.nn.silu(u)
    dt, b, c = jnp.split(u @ p["x"], [rank, rank + states], -1)
    dt = jax.nn.softplus(dt @ p["dt"] + p["dt_b"])
    a = jnp.exp(dt[..., None] * -jnp.exp(p["A_log"]))
    bu = (dt * u)[..., None] * b[:, :, None]

    def step(h, inputs):
        a, bu, c = inputs
        h = a * h + bu
        return h, jnp.einsum("nds,ns->nd", h, c)

    h = jnp.zeros((x.shape[0], *p["A_log"].shape))
    _, y = lax.scan(step, h, tuple(jnp.swapaxes(v, 0, 1) for v in (a, bu, c)))
    y = jnp.swapaxes(y, 0, 1) + u * p["D"]
    return x + (y * jax.nn.silu(z)) @ p["out"]


@start
def mamba():
    """Gu & Dao, 2023: decays −n, steps of .001 to .1 by the bias in front of softplus, embeddings of .02."""
    d = Draws()
    layers = 3
    params = {
        "embed": d.normal(0.02, 64, 16),
        "blocks": stacked(layers, lambda: mamba_block(d, layers)),
        "norm": jnp.ones(16),
    }

    def apply_fn(params, t):
        x = scanned(mamba_fn, params["embed"][t], params["blocks"])
        return rms_norm(params["norm"], x) @ params["embed"].T

    return params, apply_fn, tokens(16)


@start
def lru():
    """Orvieto et al., 2023: eigenvalues in a ring near one, inputs normalised by sqrt(1 − |λ|²)."""
    d = Draws()
    width, states = 16, 24

    def block():
        u1, u2 = (jax.random.uniform(d.next(), (states,)) for _ in range(2))
        nu = jnp.log(-0.5 * jnp.log(u1 * (0.99**2 - 0.8**2) + 0.8**2))
        return {
            "ln": affine(width),
            "nu_log": nu,
            "theta_log": jnp.log(u2 * 6.28),
            "gamma_log": jnp.log(jnp.sqrt(1 - jnp.exp(-2 * jnp.exp(nu)))),
            "b_re": d.normal((2 * width) ** -0.5, width, states),
            "b_im": d.normal((2 * width) ** -0.5, width, states),
            "c_re": d.normal(states**-0.5, states, width),
            "c_im": d.normal(states**-0.5, states, width),
            "d": d.normal(1.0, width),
            "glu": {"w": d.lecun(width, 2 * width), "b": jnp.zeros(2 * width)},
        }

    params = {
        "in": {"w": d.lecun(3, width), "b": jnp.zeros(width)},
        "blocks": [block() for _ in range(2)],
        "out": {"w": d.lecun(width, 10), "b": jnp.zeros(10)},
    }

    def block_fn(p, x):
        u = layer_norm(p["ln"], x)
        lam = jnp.exp(lax.complex(-jnp.exp(p["nu_log"]), jnp.exp(p["theta_log"])))
        bu = lax.complex(u @ p["b_re"], u @ p["b_im"]) * jnp.exp(p["gamma_log"]).astype(jnp.complex64)

        def join(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        _, h = lax.associative_scan(join, (jnp.broadcast_to(lam, bu.shape), bu), axis=1)
        y = h.real @ p["c_re"] - h.imag @ p["c_im"] + u * p["d"]
        a, b = jnp.split(dense(p["glu"], jax.nn.gelu(y)), 2, -1)
        return x + a * jax.nn.sigmoid(b)

    def apply_fn(params, x):
        x = dense(params["in"], x)
        for p in params["blocks"]:
            x = block_fn(p, x)
        return dense(params["out"], x.mean(1))

    return params, apply_fn, jax.random.normal(jax.random.key(8), (16, 24, 3))


def gru_fn(p, x, width):
    """PyTorch's cell."""

    def step(h, xt):
        gates_x, gates_h = xt @ p["wx"] + p["bx"], h @ p["wh"] + p["bh"]
        r, z, n = jnp.split(gates_x, 3, -1)
        hr, hz, hn = jnp.split(gates_h, 3, -1)
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        h = (1 - z) * jnp.tanh(n + r * hn) + z * h
        return h, h

    return jnp.swapaxes(lax.scan(step, jnp.zeros((x.shape[0], width)), jnp.swapaxes(x, 0, 1))[1], 0, 1)


@start
def gru():
    """PyTorch: uniform within one over the root of the size, kernels and biases."""
    d = Draws()
    width = 24

    def cell(inputs):
        bound = width**-0.5
        return {
            "wx": d.uniform(bound, inputs, 3 * width),
            "bx": d.uniform(bound, 3 * width),
            "wh": d.uniform(bound, width, 3 * width),
            "bh": d.uniform(bound, 3 * width),
        }

    params = {"cells": [cell(6), cell(width)], "out": d.torch(width, 4)}

    def apply_fn(params, x):
        for p in params["cells"]:
            x = gru_fn(p, x, width)
        return dense(params["out"], x[:, -1])

    return params, apply_fn, jax.random.normal(jax.random.key(8), (32, 40, 6))


@start
def gru_of_tokens():
    """Keras: Glorot's uniform for inputs, orthogonal for the state, embeddings within .05."""
    d = Draws()
    width = 24
    params = {
        "embed": d.uniform(0.05, 64, 16),
        "cell": {
            "wx": d.xavier(16, 3 * width),
            "bx": jnp.zeros(3 * width),
            "wh": d.orthogonal(1.0, width, 3 * width),
            "bh": jnp.zeros(3 * width),
        },
        "out": {"w": d.xavier(width, 2), "b": jnp.zeros(2)},
    }

    def apply_fn(params, t):
        return dense(params["out"], gru_fn(params["cell"], params["embed"][t], width)[:, -1])

    return params, apply_fn, tokens(9, 32)


@start
def lstm():
    """Jozefowicz et al., 2015: forget gates open by a bias of one; Glorot's uniform and orthogonal kernels."""
    d = Draws()
    width = 24
    params = {
        "wx": d.xavier(6, 4 * width),
        "wh": d.orthogonal(1.0, width, 4 * width),
        "b": jnp.concatenate([jnp.zeros(width), jnp.ones(width), jnp.zeros(2 * width)]),
        "out": {"w": d.xavier(width, 2), "b": jnp.zeros(2)},
    }

    def apply_fn(params, x):
        def step(carry, xt):
            h, c = carry
            i, f, g, o = jnp.split(xt @ params["wx"] + h @ params["wh"] + params["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        zero = jnp.zeros((x.shape[0], width))
        (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
        return dense(params["out"], h)

    return params, apply_fn, jax.random.normal(jax.random.key(8), (32, 30, 6))


# Others


@start
def siren():
    """Sitzmann et al., 2020: sines of thirty times the output of the first layer."""
    d = Draws()
    width = 64
    bound = math.sqrt(6 / width) / 30
    params = {
        "first": {"w": d.uniform(1 / 2, 2, width), "b": d.uniform(2**-0.5, width)},
        "hidden": [{"w": d.uniform(bound, width, width), "b": d.uniform(width**-0.5, width)} for _ in range(3)],
        "out": {"w": d.uniform(bound, width, 3), "b": d.uniform(width**-0.5, 3)},
    }

    def apply_fn(params, x):
        x = jnp.sin(30 * dense(params["first"], x))
        for p in params["hidden"]:
            x = jnp.sin(30 * dense(p, x))
        return dense(params["out"], x)

    return params, apply_fn, jax.random.uniform(jax.random.key(7), (256, 2), minval=-1.0)


@start
def ppo():
    """Huang et al., 2022: orthogonal, gain √2 for towers, .01 for the policy and 1 for the value."""
    d = Draws()
    width = 64

    def tower(outputs, gain):
        sizes = [(11, width, 2**0.5), (width, width, 2**0.5), (width, outputs, gain)]
        return [{"w": d.orthogonal(g, n, m), "b": jnp.zeros(m)} for n, m, g in sizes]

    params = {"actor": tower(3, 0.01), "critic": tower(1, 1.0), "log_std": jnp.zeros(3)}

    def tower_fn(ps, x):
        for p in ps[:-1]:
            x = jnp.tanh(dense(p, x))
        return dense(ps[-1], x)

    def apply_fn(params, x):
        mean = tower_fn(params["actor"], x)
        return mean, jnp.broadcast_to(jnp.exp(params["log_std"]), mean.shape), tower_fn(params["critic"], x)

    return params, apply_fn, vectors(11)


@start
def ppo_of_images():
    """The same for pixels: one trunk with ReLU, and both heads on it."""
    d = Draws()

    def kernel(gain, *shape):
        return d.orthogonal(gain, math.prod(shape[:-1]), shape[-1]).reshape(shape)

    params = {
        "convs": [
            {"w": kernel(2**0.5, 4, 4, 3, 16), "b": jnp.zeros(16)},
            {"w": kernel(2**0.5, 4, 4, 16, 32), "b": jnp.zeros(32)},
        ],
        "dense": {"w": kernel(2**0.5, 8 * 8 * 32, 64), "b": jnp.zeros(64)},
        "policy": {"w": kernel(0.01, 64, 5), "b": jnp.zeros(5)},
        "value": {"w": kernel(1.0, 64, 1), "b": jnp.zeros(1)},
    }

    def apply_fn(params, x):
        x = x / 255.0
        for p in params["convs"]:
            x = jax.nn.relu(conv(p["w"], x, 2) + p["b"])
        x = jax.nn.relu(dense(params["dense"], x.reshape(x.shape[0], -1)))
        return dense(params["policy"], x), dense(params["value"], x)

    return params, apply_fn, jax.random.randint(jax.random.key(2), (16, 32, 32, 3), 0, 256).astype(jnp.float32)


@start
def small_heads():
    """An actor with value heads of .05 and a readout of 3e-3 on purpose (Lillicrap et al., 2016)."""
    d = Draws()
    params = {
        "torso": [d.torch(8, 64), d.torch(64, 64)],
        "values": [{"w": d.normal(0.05, 64, 1), "b": jnp.zeros(1)} for _ in range(2)],
        "policy": {"w": d.uniform(3e-3, 64, 2), "b": d.uniform(3e-3, 2)},
    }

    def apply_fn(params, x):
        for p in params["torso"]:
            x = jax.nn.relu(dense(p, x))
        return jnp.tanh(dense(params["policy"], x)), [dense(p, x) for p in params["values"]]

    return params, apply_fn, vectors(8)
