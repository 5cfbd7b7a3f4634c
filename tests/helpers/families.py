"""Twelve families of models, and the table of what `initialize` draws for each of their leaves.

`python tests/helpers/families.py` writes the table to docs/roles.md; a test compares the two.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxinit

if __package__:
    from helpers.published import STARTS, Draws, conv, dense, images, rms_norm, tokens, vectors
else:
    from published import STARTS, Draws, conv, dense, images, rms_norm, tokens, vectors

PAGE = Path(__file__).parents[2] / "docs" / "roles.md"


def mlp():
    draws = Draws()
    params = {name: draws.torch(*shape) for name, shape in {"hidden": (8, 64), "readout": (64, 4)}.items()}
    return params, lambda p, x: dense(p["readout"], jax.nn.gelu(dense(p["hidden"], x))), vectors(8)


def cnn():
    draws = Draws()
    params = {"conv": draws.he_out(3, 3, 3, 16), "bias": jnp.zeros(16), "depthwise": draws.he_out(3, 3, 1, 16)}
    params["readout"] = draws.torch(16, 10)

    def apply_fn(p, x):
        x = jax.nn.relu(conv(p["conv"], x) + p["bias"][None, None, None])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        numbers = "NHWC", "HWIO", "NHWC"
        x = jax.lax.conv_general_dilated(
            x, p["depthwise"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=16
        )
        return dense(p["readout"], jax.nn.relu(x).mean((1, 2)))

    return params, apply_fn, images()


def moe():
    """A residual block whose feed-forward network is that of the expert that a router picks for each token."""
    draws = Draws()
    params = {
        "tokens": draws.normal(0.02, 64, 32),
        "norm": jnp.ones(32),
        "router": draws.normal(0.02, 32, 4),
        "up": draws.normal(0.02, 4, 32, 64),
        "gate": draws.normal(0.02, 4, 32, 64),
        "down": draws.normal(0.02, 4, 64, 32),
        "readout": draws.normal(0.02, 32, 64),
    }

    def apply_fn(p, x):
        x = p["tokens"][x]
        y = rms_norm(p["norm"], x)
        weights = jax.nn.softmax(y @ p["router"])
        hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", y, p["gate"])) * jnp.einsum("btd,edf->btef", y, p["up"])
        x = x + jnp.einsum("btef,efd,bte->btd", hidden, p["down"], weights)
        return x @ p["readout"]

    return params, apply_fn, tokens()


def gnn():
    """Messages over edges, added up at the nodes, and two layers at each node."""
    draws = Draws()
    senders = jnp.array([0, 1, 2, 3, 4, 5, 0, 2, 4])
    receivers = jnp.array([1, 2, 3, 4, 5, 0, 3, 5, 1])
    params = {"message": draws.torch(8, 32), "update": draws.torch(40, 32), "readout": draws.torch(32, 3)}

    def apply_fn(p, x):
        messages = jax.nn.relu(dense(p["message"], x[senders]))
        incoming = jnp.zeros((6, 32)).at[receivers].add(messages)
        hidden = jax.nn.relu(dense(p["update"], jnp.concatenate([x, incoming], -1)))
        return dense(p["readout"], hidden)

    return params, apply_fn, vectors(8, 6)


FAMILIES = {
    "MLP": mlp,
    "CNN": cnn,
    "ResNet": STARTS["resnet"],
    "U-Net": STARTS["unet"],
    "ViT": STARTS["vit"],
    "GPT": STARTS["gpt2"],
    "MoE": moe,
    "GRU": STARTS["gru"],
    "LSTM": STARTS["lstm"],
    "State space (Mamba)": STARTS["mamba"],
    "State space (LRU)": STARTS["lru"],
    "DiT": STARTS["dit"],
    "GNN": gnn,
    "SIREN": STARTS["siren"],
}


@functools.cache
def rows(name):
    """The rows of the report of `initialize` by `auto`."""
    params, apply_fn, batch = FAMILIES[name]()
    _, report = jaxinit.initialize(jax.random.key(0), params, apply_fn, batch, return_report=True)
    return report.rows


def section(name):
    """The table of one family."""
    lines = [f"## {name}", "", "| leaf | role | drawn from | why |", "|---|---|---|---|"]
    lines += [f"| `{row.path}` | {row.role} | `{row.init}` | {row.reason} |" for row in rows(name)]
    return "\n".join(lines)


if __name__ == "__main__":
    introduction = PAGE.read_text().split("\n## ")[0].rstrip() if PAGE.exists() else "# Roles"
    PAGE.write_text("\n\n".join([introduction, *map(section, FAMILIES)]) + "\n")
