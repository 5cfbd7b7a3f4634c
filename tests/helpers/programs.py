"""A grammar of random programs f(params, x), each with a record of what is true of it by construction.

A program is text, lines of plain JAX, so that a counterexample prints as a function that can be pasted anywhere. Lines
`see("name", value)` mark intermediate values; `Program.apply` is compiled without them, `Program.marked` with them, for
`helpers.interpreter.evaluate`. Every construct of the grammar is a *feature* with a name such as "bias: where", by
which a strategy can leave it out. All programs obey strict promotion of dtypes and ranks.

For a weight w0 the marks are "w0 data", what it meets; "w0 product", the product alone; and "w0 output", the
pre-activation, which is the product with everything that is added to it before anything else happens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from helpers.interpreter import mark

BATCH = 16

ACTIVATIONS = {
    "relu": (
        "jax.nn.relu({})", "jnp.maximum({}, 0.0)", "jnp.where({0} > 0, {0}, 0.0)", "{0} * ({0} > 0).astype({0}.dtype)"
    ),
    "tanh": ("jnp.tanh({})", "2.0 * jax.nn.sigmoid(2.0 * {}) - 1.0"),
    "gelu": ("jax.nn.gelu({})", "0.5 * {0} * (1.0 + jnp.tanh(0.7978845608 * ({0} + 0.044715 * {0} ** 3)))"),
    "gelu_exact": ("jax.nn.gelu({}, approximate=False)", "0.5 * {0} * (1.0 + lax.erf({0} * 0.70710678))"),
    "silu": ("jax.nn.silu({})", "{0} * jax.nn.sigmoid({0})", "{0} / (1.0 + jnp.exp(-{0}))"),
    "leaky_relu": ("jax.nn.leaky_relu({})", "jnp.where({0} >= 0, {0}, 0.01 * {0})", "jnp.maximum({0}, 0.01 * {0})"),
    "softplus": ("jax.nn.softplus({})", "jnp.logaddexp({}, 0.0)"),
    "elu": ("jax.nn.elu({})", "jnp.where({0} > 0, {0}, jnp.expm1(jnp.minimum({0}, 0.0)))"),
    "sin": ("jnp.sin({})",),
}  # fmt: skip
"""Name → ways to write it; the first is the reference."""

MOVES = (
    "reshape", "split", "transpose", "expand", "squeeze", "slice", "stride", "rev", "roll", "pad", "repeat", "tile",
    "concatenate", "stack", "swap-halves", "broadcast", "index", "double-transpose",
)  # fmt: skip
"""Rearrangements: of data before a layer, and of a layer's output before its activation."""

NAMES: dict[str, Sequence[str]] = {
    "activation": tuple(ACTIVATIONS),
    "move": MOVES,
    "output": (*MOVES, "moved-before-bias"),
    "layer": (
        "matmul", "einsum", "weight-first", "dot_general", "product-sum", "heads", "contract-two", "tensordot",
        "batched", "experts-vmap", "experts-einsum", "conv1d", "conv2d", "groups", "dilation", "stride", "shifted-sum",
    ),
    "weight": (
        "scaled", "divided", "negated", "transposed", "reshaped", "reversed", "gathered", "symmetric", "concatenated",
        "complex",
    ),
    "bias": (
        "row", "broadcast", "subtracted-from", "subtracted", "negated", "where", "one-element", "scalar", "several",
        "scaled", "constant", "constant-vector",
    ),
    "block": (
        "residual", "residual-linear", "jit", "checkpoint", "vmap", "cond", "switch", "scan", "scan-reverse", "fori",
        "unrolled-stack", "scan-shared", "unrolled-shared",
    ),
}  # fmt: skip
FEATURES = frozenset(f"{kind}: {name}" for kind, names in NAMES.items() for name in names)
"""The names of all features."""

FLAT = frozenset({"layer: heads", "layer: experts-vmap", "layer: experts-einsum"})
IMAGES = frozenset({"layer: conv2d", "layer: groups", "layer: dilation", "layer: stride"})
SERIES = frozenset(
    [f"layer: {name}" for name in ("batched", "conv1d", "shifted-sum", "contract-two", "tensordot")]
    + ["block: vmap", "output: moved-before-bias"]
    + [f"{kind}: {name}" for kind in ("move", "output") for name in ("reshape", "transpose")]
)
SINGLE = frozenset({"move: squeeze", "output: squeeze"})
"""Features that need data of this rank."""

UNCHECKED = "?"
"""Stands for what the construction does not decide."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """What is known of a weight.

    Attributes:
      name: by which its marks are called.
      leaves: the leaves that it is made of: linear in them taken together.
      contraction: source of a function of (w, x), the made weight and the data, that gives the product.
      made_shape, data_shape: the shapes of these two, large enough that a convolution has an interior.
      fan_in, fan_out: whether the contraction decides them; a number where it is not what ones give.
      has_bias: whether parameters are added to the product, or "?".
      activation: name of the activation that follows, None where none does, or "?".
      shift: a number that the program adds before the activation, which may count as part of it.
      members: axes of the output along which independent weights lie, None where that is not decided.
      channels: axes of the output that are features of it, None where that is not decided.
      stacked: length of the loop that walks along the leaf, or 1.
      order: which slice each turn of the loop takes.
      uses: how often each slice is used.
      reached: whether the program executes it on any data.
    """

    name: str
    leaves: tuple[str, ...]
    contraction: str
    made_shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    fan_in: bool | int
    fan_out: bool | int
    has_bias: bool | str
    activation: str | None
    members: tuple[int, ...] | None
    channels: tuple[int, ...] | None
    shift: float = 0.0
    stacked: int = 1
    order: tuple[int, ...] = (0,)
    uses: int = 1
    reached: bool = True

    def product(self) -> Callable[..., Any]:
        """The contraction as a function of (w, x)."""
        found: Callable[..., Any] = _compiled(("def contraction(w, x):", f"    return {self.contraction}"))[
            "contraction"
        ]
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as text, and what is known of it.

    Attributes:
      lines: its source, marks included.
      shapes: path → shape of each leaf.
      input_shape: the shape of x.
      weights: in order of execution.
      features: the names of the features that it has.
      seed: of its parameters and data.
    """

    lines: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    input_shape: tuple[int, ...]
    weights: tuple[Weight, ...]
    features: frozenset[str]
    seed: int

    def __repr__(self) -> str:
        lines = "\n".join(self._unmarked())
        facts = "\n".join(f"# {weight}" for weight in self.weights)
        return f"\n# {sorted(self.features)}\n# params: {dict(self.shapes)}, x: {self.input_shape}\n{lines}\n{facts}\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The form in which Hypothesis prints a counterexample."""
        printer.text(repr(self))

    def _unmarked(self) -> tuple[str, ...]:
        return tuple(line for line in self.lines if not line.lstrip().startswith("see("))

    @functools.cached_property
    def apply(self) -> Callable[[Any, Any], Any]:
        """The program."""
        found: Callable[[Any, Any], Any] = _compiled(self._unmarked())["f"]
        return found

    @functools.cached_property
    def marked(self) -> Callable[[Any, Any], Any]:
        """The same with marks."""
        found: Callable[[Any, Any], Any] = _compiled(self.lines)["f"]
        return found

    def params(self) -> dict[str, jax.Array]:
        """Gaussian weights, and biases that vary less than LSUV's target, so that it can be reached."""
        rng = np.random.default_rng(self.seed)
        scale = float(rng.uniform(0.3, 3))

        def values(path: str, shape: tuple[int, ...]) -> np.ndarray:
            return rng.uniform(-0.7, 0.7, shape) if path.startswith("b") else scale * rng.normal(size=shape)

        return {path: jnp.asarray(values(path, shape), jnp.float32) for path, shape in self.shapes}

    def batch(self) -> jax.Array:
        """Gaussian data."""
        return jnp.asarray(np.random.default_rng(self.seed + 1).normal(size=self.input_shape), jnp.float32)


@functools.lru_cache(maxsize=1024)
def _compiled(lines: tuple[str, ...]) -> dict[str, Any]:
    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "lax": lax, "np": np, "see": mark}
    exec("\n".join(lines), names)
    return names


def reference_activation(name: str | None) -> Callable[[Any], Any]:
    """The function that an activation's name means."""
    source = "{}" if name is None else ACTIVATIONS[name][0]
    found: Callable[[Any], Any] = _compiled(("def activation(x):", f"    return {source.format('x')}"))["activation"]
    return found


@st.composite
def programs(
    draw: Any,
    leave_out: frozenset[str] = frozenset(),
    only: frozenset[str] = FEATURES,
    focus: Collection[str] = (),
    wide: bool = False,
    max_layers: int = 3,
) -> Program:
    """Draws programs.

    Args:
      leave_out: features that no program has.
      only: the features that programs may have.
      focus: features that a program has wherever they fit.
      wide: layers of 64 units and more, for statistics over units.
      max_layers: the most weights that follow one another.
    """
    writer = _Writer(draw, only - leave_out, frozenset(focus), wide)
    writer.start()
    for _ in range(draw(st.integers(1, max_layers))):
        writer.moves()
        writer.block()
    if writer.wants("block", "move"):
        writer.moves()
        writer.block()
    return writer.finished()


class _Writer:
    """Writes a program line by line; `self.shape` is the shape of its variable x."""

    def __init__(self, draw: Any, allowed: frozenset[str], focus: frozenset[str], wide: bool):
        self.draw, self.allowed, self.focus, self.wide = draw, allowed, focus, wide
        self.lines: list[str] = []
        self.indent = 1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.weights: list[Weight] = []
        self.features: set[str] = set()
        self.shape: tuple[int, ...] = ()
        self.stack: tuple[int, ...] = ()
        self.biases = 0
        self.functions = 0
        self.shift = 0.0

    # Drawing and writing.

    def choose(self, kind: str, names: Sequence[str], plain: str | None = None) -> str | None:
        """One of these features of a kind, or `plain`, which means no feature and is always allowed."""
        found = [name for name in names if f"{kind}: {name}" in self.allowed]
        options = found if plain is None and found else [plain, *found]
        wanted = [name for name in found if f"{kind}: {name}" in self.focus - self.features]
        options = wanted or options
        name = self.draw(st.sampled_from(options))
        if name in found:
            self.features.add(f"{kind}: {name}")
        return name

    def wants(self, *kinds: str) -> bool:
        """Whether the program is to have features of these kinds that it does not have."""
        return any(feature.startswith(kinds) for feature in self.focus - self.features)

    def sometimes(self, feature: str) -> bool:
        if feature not in self.allowed or not (feature in self.focus or self.draw(st.booleans())):
            return False
        self.features.add(feature)
        return True

    def write(self, line: str) -> None:
        self.lines.append("    " * self.indent + line)

    def see(self, name: str, value: str) -> None:
        self.write(f'see("{name}", {value})')

    def leaf(self, name: str, shape: Sequence[int]) -> str:
        """A new leaf, with the axes of the enclosing loop in front; returns the source of its value inside the loop."""
        self.shapes[name] = (*self.stack, *shape)
        return f'p["{name}"]'

    def start(self) -> None:
        self.write("def f(p, x):")
        self.lines[-1] = self.lines[-1].lstrip()
        width = 64 if self.wide else self.draw(st.sampled_from([4, 6]))
        convolutions = not self.wide and not {"layer: conv2d", "layer: conv1d"}.isdisjoint(self.allowed)
        ranks = [(), (5,)] + ([(6, 5)] if convolutions else [])
        if self.focus & FLAT:
            ranks = [()]
        elif self.focus & IMAGES and len(ranks) > 2:
            ranks = [(6, 5)]
        elif self.focus & SERIES:
            ranks = [(5,)]
        elif self.focus & SINGLE:
            ranks = [(1,)]
        elif self.wants("move", "output", "block", "weight"):
            ranks = ranks[:2]
        self.shape = (BATCH, *self.draw(st.sampled_from(ranks)), width)
        self.input_shape = self.shape

    def finished(self) -> Program:
        self.write("return x")
        return Program(
            tuple(self.lines),
            tuple(self.shapes.items()),
            self.input_shape,
            tuple(self.weights),
            frozenset(self.features),
            self.draw(st.integers(0, 99)),
        )

    # Rearrangements of x.

    def moves(self) -> None:
        """Possibly a rearrangement, but not before a layer that needs data of the program's original rank."""
        if self.wants("layer") and self.focus & (FLAT | IMAGES | SERIES):
            return
        if self.wants("move") or (self.weights and self.draw(st.booleans())):
            self.move()

    def move(self, same_shape: bool = False, kind: str = "move") -> None:
        shape, rank, last = self.shape, len(self.shape), self.shape[-1]
        size = math.prod(shape[1:])
        small = size <= (192 if self.wide else 40)
        names = ["rev", "roll", "swap-halves", "double-transpose"]
        if not same_shape:
            names += ["reshape"] if rank > 2 else []
            names += ["split"] if rank < 4 and last % 2 == 0 else []
            names += ["transpose"] if rank > 2 else []
            names += ["expand"] if rank < 4 else []
            names += ["squeeze"] if 1 in shape[1:] and rank > 2 else []
            names += ["slice", "stride"] if last > 3 and not self.wide else []
            names += ["index"]
            names += ["pad", "repeat", "tile", "concatenate"] if small else []
            names += ["stack", "broadcast"] if small and rank < 4 else []
        name = self.choose(kind, names)
        zeros = ", ".join(["(0, 0)"] * (rank - 1))
        rest = ", ".join(map(str, shape[1:]))
        permuted = [*range(1, last), 0]
        found: dict[str | None, tuple[str, tuple[int, ...]]] = {
            "rev": ("x[..., ::-1]", shape),
            "roll": ("jnp.roll(x, 1, axis=-1)", shape),
            "swap-halves": (
                f"jnp.concatenate([x[..., {last // 2}:], x[..., :{last // 2}]], axis=-1)",
                shape,
            ),
            "double-transpose": ("jnp.moveaxis(jnp.flip(jnp.moveaxis(x, 0, -1), 0), -1, 0)", shape),
            "reshape": (f"x.reshape({shape[0]}, {size})", (shape[0], size)),
            "split": (f"x.reshape({', '.join(map(str, shape[:-1]))}, 2, {last // 2})", (*shape[:-1], 2, last // 2)),
            "transpose": ("jnp.swapaxes(x, 1, -1)", (shape[0], last, *shape[2:-1], shape[1])),
            "expand": ("x[:, None]", (shape[0], 1, *shape[1:])),
            "slice": ("x[..., 1:]", (*shape[:-1], last - 1)),
            "stride": ("x[..., ::2]", (*shape[:-1], (last + 1) // 2)),
            "index": (f"x[..., np.array({permuted})]", shape),
            "pad": (f"jnp.pad(x, [{zeros}, (1, 0)])", (*shape[:-1], last + 1)),
            "repeat": ("jnp.repeat(x, 2, axis=-1)", (*shape[:-1], 2 * last)),
            "tile": (f"jnp.tile(x, ({'1, ' * (rank - 1)}2))", (*shape[:-1], 2 * last)),
            "concatenate": ("jnp.concatenate([x, x], axis=-1)", (*shape[:-1], 2 * last)),
            "stack": ("jnp.stack([x, x], axis=1)", (shape[0], 2, *shape[1:])),
            "broadcast": (f"jnp.broadcast_to(x[:, None], ({shape[0]}, 2, {rest}))", (shape[0], 2, *shape[1:])),
            None: ("x", shape),
        }
        if name == "squeeze":
            axis = shape.index(1, 1)
            found[name] = (f"jnp.squeeze(x, {axis})", shape[:axis] + shape[axis + 1 :])
        source, self.shape = found[name]
        if name is not None:
            self.write(f"x = {source}")

    # Blocks of layers.

    def block(self) -> None:
        here = self.wants("layer") and not self.weights
        if len(self.shape) > 3 and not here and self.wants("block"):
            size = math.prod(self.shape[1:])
            self.write(f"x = x.reshape({self.shape[0]}, {size})")
            self.shape = (self.shape[0], size)
        names = ["jit", "checkpoint", "cond", "switch"]
        names += ["vmap"] if len(self.shape) == 3 else []
        if len(self.shape) <= 3 and self.shape[-1] > 1:
            names += ["residual", "residual-linear", "scan", "scan-reverse", "fori", "unrolled-stack"]
            names += ["scan-shared", "unrolled-shared"]
        name = "one" if here else self.choose("block", names, plain="one")
        if name == "one":
            self.layer()
        elif name in ("jit", "checkpoint"):
            inner = self.function("x, p")
            self.layer()
            self.end()
            self.write(f"x = jax.{name}({inner})(x, p)")
        elif name == "vmap":
            self.vmapped()
        elif name in ("cond", "switch"):
            self.branches(name)
        elif name == "residual":
            self.write("h = x")
            self.layer(square=True)
            self.write("x = h + x")
        elif name == "residual-linear":
            self.write("h = x")
            self.layer(square=True, activation=UNCHECKED)
            self.write("x = h + x")
        else:
            assert name is not None
            self.loop(name)

    def function(self, arguments: str) -> str:
        """Begins an inner function."""
        self.functions += 1
        name = f"f{self.functions}"
        self.write(f"def {name}({arguments}):")
        self.indent += 1
        return name

    def end(self, result: str = "x") -> None:
        self.write(f"return {result}")
        self.indent -= 1

    def vmapped(self) -> None:
        """A layer of vectors, mapped over the axis that is neither the batch nor the features."""
        batch, middle, last = self.shape
        inner = self.function("x")
        self.shape = (batch, last)
        first = len(self.weights)
        self.layer(rank_two_only=True)
        self.end()
        self.write(f"x = jax.vmap({inner}, in_axes=1, out_axes=1)(x)")
        self.shape = (batch, middle, *self.shape[1:])
        for i, weight in enumerate(self.weights[first:], first):
            # Where the marked value has the mapped axis is for JAX to choose.
            self.weights[i] = dataclasses.replace(
                weight,
                members=None,
                channels=None,
            )

    def branches(self, name: str) -> None:
        """Two branches of one shape; for any data the second is chosen."""
        start, first = self.shape, len(self.weights)
        inner = []
        width = self.draw(st.sampled_from([64] if self.wide else [3, 5]))
        for reached in (False, True):
            self.shape = start
            inner.append(self.function("x, p"))
            if len(start) != 2:
                self.write(f"x = x.reshape({start[0]}, {math.prod(start[1:])})")
                self.shape = (start[0], math.prod(start[1:]))
            begun = len(self.weights)
            self.layer(width=width, rank_two_only=True)
            if len(self.shape) != 2:
                self.write(f"x = x.reshape({self.shape[0]}, {math.prod(self.shape[1:])})")
                self.shape = (self.shape[0], math.prod(self.shape[1:]))
            if self.shape[-1] != width:
                self.write(f"x = x[:, np.arange({width}) % {self.shape[-1]}]")
                self.shape = (self.shape[0], width)
            self.end()
            for i in range(begun, len(self.weights)):
                self.weights[i] = dataclasses.replace(self.weights[i], reached=reached)
        del first
        if name == "cond":
            self.write(f"x = lax.cond(jnp.mean(x * x) >= 0, {inner[1]}, {inner[0]}, x, p)")
        else:
            self.write(f"x = lax.switch((jnp.mean(x * x) >= 0).astype(np.int32), [{', '.join(inner)}], x, p)")

    def loop(self, name: str) -> None:
        """The same layer several times, each with a slice of stacked leaves, or all with the same leaves."""
        length, first, before = 3, len(self.weights), set(self.shapes)
        shared = name.endswith("shared")
        self.stack = () if shared else (length,)
        lines, self.lines = self.lines, []
        self.indent += 1
        start = self.shape
        self.layer(square=True)
        assert self.shape == start
        self.indent -= 1
        body, self.lines, self.stack = self.lines, lines, ()
        leaves = [leaf for leaf in self.shapes if leaf not in before]
        slices = "{" + ", ".join(f'"{leaf}": p["{leaf}"]' for leaf in leaves) + "}"
        at_i = "{" + ", ".join(f'"{leaf}": p["{leaf}"][i]' for leaf in leaves) + "}"
        order = tuple(range(length))
        if name.startswith("scan"):
            inner = self.function("x, p" if not shared else "x, _")
            self.lines += body
            self.end("x, None")
            reverse = ", reverse=True" if name == "scan-reverse" else ""
            order = order[::-1] if reverse else order
            xs = f"None, length={length}" if shared else slices + reverse
            self.write(f"x, _ = lax.scan({inner}, x, {xs})")
        elif name == "fori":
            outer = self.function("i, x, p")
            self.write(f"p = {at_i}")
            self.lines += body
            self.end()
            self.write(f"x = lax.fori_loop(0, {length}, lambda i, x: {outer}(i, x, p), x)")
        else:
            inner = self.function("x, p")
            self.lines += body
            self.end()
            self.write(f"for i in range({length}):")
            self.indent += 1
            self.write(f"x = {inner}(x, {'p' if shared else at_i})")
            self.indent -= 1
        for i, weight in enumerate(self.weights[first:], first):
            if shared:
                self.weights[i] = dataclasses.replace(weight, uses=length)
            else:
                self.weights[i] = dataclasses.replace(weight, stacked=length, order=order)

    # Layers.

    def layer(
        self,
        square: bool = False,
        width: int | None = None,
        rank_two_only: bool = False,
        activation: str | None = None,
    ) -> None:
        """A product of x and a weight, a bias, an activation, and rearrangements between them."""
        shape, rank, last = self.shape, len(self.shape), self.shape[-1]
        name = f"w{len(self.weights)}"
        plain = ["matmul", "einsum", "weight-first", "dot_general", "product-sum"]
        names = list(plain)
        if not square:
            names += ["heads"] if rank == 2 else []
            if not rank_two_only:
                # Where the outputs of experts become features of one vector, they are heads.
                names += ["experts-vmap", "experts-einsum"] if rank == 2 else []
                names += ["contract-two", "tensordot"] if rank >= 3 else []
                names += ["batched", "conv1d"] if rank == 3 else []
                # Taps that are one number each are not weights.
                names += ["shifted-sum"] if rank == 3 and last > 1 else []
                names += ["conv2d"] if rank == 4 else []
        if self.focus & IMAGES and "conv2d" in names and "layer: conv2d" not in self.features:
            self.features.add("layer: conv2d")
            kind: str | None = "conv2d"
        else:
            kind = self.choose("layer", names)
        square_made = square or ("weight: symmetric" in self.focus and width is None)
        widths = [64] if self.wide else [4, 6] if self.wants("output") else [3, 4, 6]
        f = last if square_made else width or self.draw(st.sampled_from(widths))
        batch = shape[0]
        lead = "bijk"[: rank - 1]
        facts: dict[str, Any] = {"fan_in": True, "fan_out": True, "members": (), "data_shape": shape}
        made: tuple[int, ...] = (last, f)
        out = (*shape[:-1], f)
        if kind is None or kind == "matmul":
            source = "x @ w"
        elif kind == "einsum":
            made, source = (f, last), f'jnp.einsum("{lead}d,fd->{lead}f", x, w)'
        elif kind == "weight-first":
            source = f'jnp.einsum("df,{lead}d->{lead}f", w, x)'
        elif kind == "dot_general":
            source = f"lax.dot_general(x, w, ((({rank - 1},), (0,)), ((), ())))"
        elif kind == "product-sum":
            source = f"(x[..., None] * w.reshape({', '.join(['1'] * (rank - 1))}, {last}, {f})).sum(-2)"
        elif kind == "heads":
            made, out = (last, 2, f), (batch, 2, f)
            source = 'jnp.einsum("bd,dhk->bhk", x, w)'
            facts["channels"] = (1, 2)
        elif kind == "experts-vmap":
            made, out = (3, last, f), (batch, 3, f)
            source = "jax.vmap(lambda w: x @ w, out_axes=1)(w)"
            facts |= {"members": (1,), "fan_out": f}
        elif kind == "experts-einsum":
            made, out = (3, last, f), (batch, 3, f)
            source = 'jnp.einsum("bd,edf->ebf", x, w).swapaxes(0, 1)'
            facts |= {"members": (1,), "fan_out": f}
        elif kind == "contract-two":
            made, out = (shape[-2], last, f), (*shape[:-2], f)
            source = f"lax.dot_general(x, w, ((({rank - 2}, {rank - 1}), (0, 1)), ((), ())))"
        elif kind == "tensordot":
            made, out = (shape[-2], last, f), (*shape[:-2], f)
            source = "jnp.tensordot(x, w, 2)"
        elif kind == "batched":
            made = (shape[1], last, f)
            source = 'jnp.einsum("bed,edf->bef", x, w)'
            facts["members"] = (1,)
        elif kind == "shifted-sum":
            made, out = (3, last), shape
            source = "sum(jnp.roll(x, i, axis=1) * w[i].reshape(1, 1, -1) for i in range(3))"
        else:
            made, out, source, facts = self.convolution(kind, facts)
        facts.setdefault("channels", (len(out) - 1,))

        expression, leaves, widths = self.made(name, made, kind, facts)
        for part in [f"{name}_{i}" for i in range(len(widths))] or [name]:
            self.see(f"{part} data", "x")
        self.write(f"w = {expression}")
        complex_weight = leaves[0].endswith("_re")
        if complex_weight:
            self.write("x = x.astype(np.complex64)")
        self.write(f"y = {source}")
        if widths:
            start = 0
            for i, size in enumerate(widths):
                self.see(f"{name}_{i} product", f"y[..., {start}:{start + size}]")
                start += size
        self.see(f"{name} product", "y")
        may_move = len(out) > 2 and not widths and not square and kind not in ("experts-vmap", "experts-einsum")
        if may_move and self.sometimes("output: moved-before-bias"):
            self.write("y = jnp.swapaxes(y, 1, -1)")
            order = [0, len(out) - 1, *range(2, len(out) - 1), 1]
            out = tuple(out[i] for i in order)
            facts["members"] = tuple(order.index(a) for a in facts["members"])
            if facts["channels"] is not None:
                facts["channels"] = tuple(order.index(a) for a in facts["channels"])
        self.shift = 0.0
        has_bias: bool | str = False if complex_weight or self.wide else self.bias(out)
        if widths:
            start = 0
            for i, size in enumerate(widths):
                self.see(f"{name}_{i} output", f"y[..., {start}:{start + size}]")
                start += size
        self.see(f"{name} output", "y")
        self.write("x = y.real" if complex_weight else "x = y")
        self.shape = out
        if self.wants("output") or self.draw(st.booleans()):
            self.move(same_shape=square, kind="output")
        if activation is None:
            activation = self.activation()
        if complex_weight:
            activation = UNCHECKED

        common = {
            "contraction": source,
            "made_shape": made,
            "has_bias": has_bias,
            "activation": activation,
            "shift": self.shift,
            **facts,
        }
        if widths:
            common["fan_out"] = False
            self.weights += [Weight(f"{name}_{i}", (leaf,), **common) for i, leaf in enumerate(leaves)]
        else:
            self.weights.append(Weight(name, leaves, **common))

    def convolution(self, kind: str, facts: dict[str, Any]) -> tuple[Any, ...]:
        """A convolution: shape of the weight, shape of the output, source and facts."""
        shape, last = self.shape, self.shape[-1]
        spatial = len(shape) - 2
        groups = 2 if last % 2 == 0 and self.sometimes("layer: groups") else 1
        dilation = 2 if self.sometimes("layer: dilation") else 1
        stride = 2 if self.sometimes("layer: stride") else 1
        taps = 2 if kind == "conv2d" else 3
        f = 64 if self.wide else self.draw(st.sampled_from([4, 6]))
        made = (*[taps] * spatial, last // groups, f)
        out = (shape[0], *(-(-n // stride) for n in shape[1:-1]), f)
        numbers = '("NHWC", "HWIO", "NHWC")' if spatial == 2 else '("NWC", "WIO", "NWC")'
        source = (
            f'lax.conv_general_dilated(x, w, {(stride,) * spatial}, "SAME", rhs_dilation={(dilation,) * spatial}, '
            f"dimension_numbers={numbers}, feature_group_count={groups})"
        )
        # With a stride an input meets a part of the taps only, and conventions differ.
        facts |= {"data_shape": (1, *[12] * spatial, last), "fan_out": stride == 1, "channels": (len(out) - 1,)}
        return made, out, source, facts

    def made(
        self, name: str, shape: tuple[int, ...], kind: str | None, facts: dict[str, Any]
    ) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
        """A weight of this shape: its source, its leaves, and the widths of the parts where leaves are concatenated."""
        names = ["scaled", "divided", "negated", "transposed", "reshaped", "reversed"]
        square = len(shape) == 2 and shape[0] == shape[1]
        names += ["gathered"] if len(shape) == 2 and kind != "shifted-sum" else []
        names += ["symmetric"] if square and kind != "shifted-sum" else []
        names += ["complex"] if kind in ("matmul", "dot_general") and not self.wide else []
        feature_last = kind not in ("einsum", "heads", "experts-vmap", "experts-einsum", "shifted-sum", "batched")
        names += ["concatenated"] if feature_last and len(shape) == 2 and shape[1] > 2 else []
        way = self.choose("weight", names, plain="plain")
        joined = ", ".join(map(str, shape))
        if way == "complex":
            real, imaginary = self.leaf(f"{name}_re", shape), self.leaf(f"{name}_im", shape)
            facts["channels"] = None
            return f"lax.complex({real}, {imaginary})", (f"{name}_re", f"{name}_im"), ()
        if way == "concatenated":
            widths = (shape[1] // 2, shape[1] - shape[1] // 2)
            sources = [self.leaf(f"{name}_{i}", (shape[0], size)) for i, size in enumerate(widths)]
            return f"jnp.concatenate([{', '.join(sources)}], axis=1)", (f"{name}_0", f"{name}_1"), widths
        if way in ("gathered", "symmetric"):
            facts["channels"] = None
        if way == "gathered":
            n = max(shape)
            source = self.leaf(name, (n,))
            index = f"np.subtract.outer(np.arange({shape[0]}), np.arange({shape[1]})) % {n}"
            return f"{source}[{index}]", (name,), ()
        if way == "transposed":
            source = self.leaf(name, shape[::-1])
            return f"{source}.T", (name,), ()
        if way == "reshaped":
            source = self.leaf(name, (math.prod(shape),))
            return f"{source}.reshape({joined})", (name,), ()
        source = self.leaf(name, shape)
        form = {
            "scaled": "0.5 * {}",
            "divided": "{} / 3.0",
            "negated": "-{}",
            "reversed": "{}[::-1]",
            "symmetric": "({0} + {0}.T)",
        }.get(way or "", "{}")
        return form.format(source), (name,), ()

    def bias(self, shape: tuple[int, ...]) -> bool | str:
        """Adds a bias to y."""
        rank, last = len(shape), shape[-1]
        row = f"reshape({', '.join(['1'] * (rank - 1))}, {last})"
        names = ["row", "broadcast", "subtracted-from", "subtracted", "negated", "where", "one-element", "scalar"]
        names += ["several", "scaled", "constant", "constant-vector"]
        name = self.choose("bias", names, plain="none")

        def new(size: tuple[int, ...] = (last,)) -> str:
            self.biases += 1
            return self.leaf(f"b{self.biases - 1}", size)

        full = ", ".join(map(str, shape))
        if name == "none":
            return False
        if name == "row":
            self.write(f"y = y + {new()}.{row}")
        elif name == "broadcast":
            self.write(f"y = jnp.broadcast_to({new()}, ({full})) + y")
        elif name == "subtracted-from":
            self.write(f"y = {new()}.{row} - y")
        elif name == "subtracted":
            self.write(f"y = y - {new()}.{row}")
        elif name == "negated":
            self.write(f"y = y + (0.0 - {new()}.{row})")
        elif name == "where":
            self.write(f"y = y + jnp.where(np.arange({last}) % 2 == 0, {new()}, 0.0).{row}")
        elif name == "one-element":
            self.write(f"y = y + {new((1,))}.reshape({', '.join(['1'] * rank)})")
        elif name == "scalar":
            self.write(f"y = y + {new(())}")
        elif name == "several":
            self.write(f"y = y + {new()}.{row}")
            self.write(f"y = y + {new()}.{row}")
        elif name == "scaled":
            self.write(f"y = y + 0.5 * {new()}.{row}")
        elif name == "constant":
            self.write("y = y + 0.5")
            self.shift = 0.5
            return UNCHECKED
        elif name == "constant-vector":
            self.write(f"y = y + np.linspace(-0.9, 0.9, {last}, dtype=np.float32).{row}")
            self.shift = -0.9 if last == 1 else 0.0
            return UNCHECKED
        return True

    def activation(self) -> str | None:
        """Applies an activation to x, or none: then nothing follows, since no block begins with one."""
        # Programs shrink to the first of these: with an activation a program tests more.
        if not self.wants("activation") and self.draw(st.sampled_from([False, False, False, True])):
            return None
        name = self.choose("activation", list(ACTIVATIONS))
        if name is None:
            return None
        self.write(f"x = {self.draw(st.sampled_from(ACTIVATIONS[name])).format('x')}")
        return name
