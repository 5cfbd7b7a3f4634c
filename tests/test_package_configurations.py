"""Every public function under every configuration of JAX that users set: a row is a call, a column is a configuration.

A new row tests a function under all configurations, a new column tests every function in a new way. Configurations that
forbid or check something must not change a number; those that change what is drawn must keep numbers finite.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxinit

PROMOTING = {"jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard"}
STRICT = {"jax_numpy_rank_promotion": "raise", "jax_numpy_dtype_promotion": "strict"}
CHECKED = {
    "strict promotion": STRICT,
    "debug_nans": STRICT | {"jax_debug_nans": True},
    "debug_infs": STRICT | {"jax_debug_infs": True},
    "leaks": STRICT | {"jax_check_tracer_leaks": True},
    "disable_jit": STRICT | {"jax_disable_jit": True},
}
"""Configurations that allow less, or check more: numbers are those of JAX as it comes."""

CHANGED = {
    "x64": STRICT | {"jax_enable_x64": True},
    "rbg": STRICT | {"jax_default_prng_impl": "rbg"},
    "unsafe_rbg": STRICT | {"jax_default_prng_impl": "unsafe_rbg"},
    "not partitionable": STRICT | {"jax_threefry_partitionable": False},
    "all at once": STRICT
    | {"jax_enable_x64": True, "jax_debug_nans": True, "jax_check_tracer_leaks": True}
    | {"jax_default_prng_impl": "rbg", "jax_threefry_partitionable": False},
}
"""Configurations in which other numbers are drawn."""


_last = [None]


@contextlib.contextmanager
def configured(flags):
    """JAX with other flags, in all threads."""
    before = {name: getattr(jax.config, name) for name in flags}
    try:
        for name, value in flags.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def column(flags):
    """The flags of one column; the programs of the previous column, which need gigabytes, are dropped."""
    if flags is not _last[0]:
        _last[0] = flags
        jax.clear_caches()
    return configured(flags)


def key():
    return jax.random.key(3)


def mlp(params, x):
    """Three layers with biases, in code that does not promote ranks."""
    x = jnp.tanh(x @ params["w1"] + params["b1"][None])
    x = jax.nn.relu(x @ params["w2"] + params["b2"][None])
    return x @ params["w3"]


def mlp_params():
    k1, k2, k3 = jax.random.split(key(), 3)
    weights = {"w1": (k1, (6, 8)), "w2": (k2, (8, 8)), "w3": (k3, (8, 4))}
    biases = {"b1": jnp.zeros(8), "b2": jnp.full(8, 0.1)}
    return {name: jax.random.normal(k, shape) * 0.4 for name, (k, shape) in weights.items()} | biases


def rectified(params, x):
    """A plain ReLU network."""
    return jax.nn.relu(jax.nn.relu(x @ params["w1"]) @ params["w2"]) @ params["w3"]


def rectified_params():
    return {name: x for name, x in mlp_params().items() if name.startswith("w")}


def scanned(params, x):
    """A stack in a scan, then a convolution, and a weight that is used twice."""

    def block(x, w):
        return x + jax.nn.relu(x @ w), None

    x, _ = jax.lax.scan(block, x, params["stack"])
    x = jnp.tanh(jnp.tanh(x @ params["tied"]) @ params["tied"])
    return jax.lax.conv_general_dilated(
        x[:, :, None], params["taps"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def scanned_params():
    k1, k2, k3 = jax.random.split(key(), 3)
    return {
        "stack": jax.random.normal(k1, (3, 6, 6)) * 0.4,
        "tied": jax.random.normal(k2, (6, 6)) * 0.5,
        "taps": jax.random.normal(k3, (3, 1, 2)) * 0.3,
    }


def attention(params, x):
    """A block of a transformer: layer norms, one head of attention, a gelu network, skips."""

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale[None, None]

    y = norm(x, params["scale1"])
    q, k, v = y @ params["q"], y @ params["k"], y @ params["v"]
    x = x + jax.nn.softmax(q @ k.mT / 8**0.5) @ v @ params["o"]
    return x + jax.nn.gelu(norm(x, params["scale2"]) @ params["up"]) @ params["down"]


def attention_params():
    keys = iter(jax.random.split(key(), 6))
    square = {name: jax.random.normal(next(keys), (8, 8)) * 0.3 for name in "qkvo"}
    network = {"up": jax.random.normal(next(keys), (8, 16)) * 0.3, "down": jax.random.normal(next(keys), (16, 8)) * 0.3}
    return square | network | {"scale1": jnp.ones(8), "scale2": jnp.ones(8)}


def residual(params, x):
    """A branch without normalization, both sides of the skip multiplied by parameters."""
    x = x @ params["in"]
    branch = jax.nn.relu(x @ params["a"] + params["b"][None]) @ params["c"]
    return (x * params["shortcut"][None] + params["multiplier"] * branch) @ params["out"]


def residual_params():
    k1, k2, k3, k4 = jax.random.split(key(), 4)
    weights = {"in": (k1, (6, 8)), "a": (k2, (8, 8)), "c": (k3, (8, 8)), "out": (k4, (8, 4))}
    vectors = {"b": jnp.zeros(8), "shortcut": jnp.ones(8), "multiplier": jnp.ones(())}
    return {name: jax.random.normal(k, shape) * 0.4 for name, (k, shape) in weights.items()} | vectors


def recurrent(params, x):
    """A recurrent cell over time."""

    def step(h, x):
        return jnp.tanh(x @ params["in"] + h @ params["state"]), None

    h, _ = jax.lax.scan(step, jnp.zeros((x.shape[0], 8), x.dtype), jnp.moveaxis(x, 1, 0))
    return h @ params["out"]


def recurrent_params():
    k1, k2, k3 = jax.random.split(key(), 3)
    return {
        "in": jax.random.normal(k1, (8, 8)) * 0.3,
        "state": jax.random.normal(k2, (8, 8)) * 0.3,
        "out": jax.random.normal(k3, (8, 4)) * 0.3,
    }


def rows_of(width):
    return jax.random.normal(jax.random.key(5), (16, width))


NETS = {
    "mlp": (mlp_params, mlp, lambda: rows_of(6)),
    "scanned": (scanned_params, scanned, lambda: rows_of(6)),
    "attention": (attention_params, attention, lambda: rows_of(40).reshape(16, 5, 8)),
    "rectified": (rectified_params, rectified, lambda: rows_of(6)),
    "residual": (residual_params, residual, lambda: rows_of(6)),
    "recurrent": (recurrent_params, recurrent, lambda: rows_of(40).reshape(16, 5, 8)),
}


def lsuv(net, **options):
    params, apply_fn, batch = NETS[net]
    new, report = jaxinit.lsuv(params(), apply_fn, batch(), return_report=True, **options)
    str(report)
    return new


def fit_readout():
    k1, k2 = jax.random.split(key())
    params = {"kernel": jax.random.normal(k1, (6, 4)), "bias": jax.random.normal(k2, (4,))}
    apply_fn = lambda p, x: x @ p["kernel"] + p["bias"][None]  # noqa: E731
    return jaxinit.fit_readout(params, apply_fn, rows_of(6), jnp.arange(16) % 4)


def initialize(net, scheme):
    params, apply_fn, batch = NETS[net]
    new, report = jaxinit.initialize(key(), params(), apply_fn, batch(), scheme, return_report=True)
    str(report)
    return new


def diagnose(net, **options):
    params, apply_fn, batch = NETS[net]
    report = jaxinit.diagnose(params(), apply_fn, batch(), **options)
    str(report)
    # The condition is the largest of a few singular values over the smallest: any rounding shows.
    return [report.pre_std, report.post_std, report.dead, report.weight_norm]


def trace_layers(net):
    params, apply_fn, batch = NETS[net]
    layers = jaxinit.trace_layers(params(), apply_fn, batch())
    str(layers)
    return [np.float64(layer.fan_in) for layer in layers]


def recommend(net):
    params, apply_fn, batch = NETS[net]
    found = jaxinit.recommend(params(), apply_fn, batch())
    str(found)
    return [np.float64(row.then) for row in found.rows]


def study():
    def loss_fn(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)

    x = rows_of(4)
    shapes = {"a": jax.ShapeDtypeStruct((4, 4), x.dtype), "b": jax.ShapeDtypeStruct((4, 1), x.dtype)}
    starts = {"orthogonal": jaxinit.orthogonal(), "lsuv": jaxinit.lsuv}
    result = jaxinit.study(
        starts,
        shapes,
        loss_fn,
        (x, x[:, :1]),
        optimizer=optax.sgd,
        learning_rates=[0.1],
        steps=3,
        seeds=2,
        devices=jax.devices()[:1],
        key=jax.random.key(0, impl="threefry2x32"),  # with others, as a warning says, seeds depend on one another
        progress=False,
    )
    str(result)
    return result.losses


def rbm_pretrain():
    def apply_fn(params, x):
        return jax.nn.sigmoid(jax.nn.sigmoid(x @ params["w1"] + params["b1"][None]) @ params["w2"]) @ params["w3"]

    params = mlp_params()
    batch = jax.random.uniform(jax.random.key(5), (16, 6))
    new, report = jaxinit.rbm_pretrain(key(), params, apply_fn, batch, steps=3, minibatch=8, return_report=True)
    str(report)
    return new


def schemes_of_the_library():
    return {
        "mlp": ["auto", "torch_default", "keras_default", "flax_default", "orthogonal_critical", "sparse"],
        "attention": ["gpt2", "transformer", "t_fixup", "deepnorm", "mimetic"],
        "rectified": ["random_walk", "looks_linear"],
        "residual": ["admin", "closed", "fixup", "skip_init", "rezero"],
        "recurrent": ["recurrent", "irnn"],
    }


SHAPES = {
    "dirac": (3, 4, 4),
    "delta_orthogonal": (3, 4, 6),
    "hippo_legs": (4, 4),
    "lstm_bias": (8,),
    "chrono": (8,),
    "zero_hadamard": (3, 4, 6),
    "orthogonal": (20, 18),  # more columns than one panel has
    "stft": (8, 1, 5),
    "unitary": (20, 18),
    "identity": (4, 5),
}
"""Shapes of initializers that do not take every shape, or do different things for some."""

ARGUMENTS = {
    "blocked": lambda: (jaxinit.orthogonal(), -1, 4),
    "chrono": lambda: (100,),
    "constant": lambda: (0.5,),
    "log_uniform": lambda: (1e-3, 1e-1),
    "scaled": lambda: (jaxinit.he_normal(), 0.5),
    "sparse": lambda: (3, 0.5),
    "stft": lambda: ("real",),
    "variance_scaling": lambda: (1.5, "fan_avg", "truncated_normal"),
    "with_partitioning": lambda: (jaxinit.he_normal(), ("a", "b")),
}
DRAWN = [
    name
    for name in sorted(jaxinit.__all__)
    if isinstance(found := getattr(jaxinit, name), type)
    and issubclass(found, jaxinit.Initializer)
    and found is not jaxinit.Initializer
]
VALUES = [name for name in sorted(jaxinit.__all__) if isinstance(getattr(jaxinit, name), jaxinit.Initializer)]


def drawn(name):
    found = getattr(jaxinit, name)
    init = found if name in VALUES else found(*ARGUMENTS.get(name, tuple)())
    # More elements than jax.random itself is asked for.
    return jax.tree.map(jnp.asarray, init(key(), SHAPES.get(name, (16, 20))))


CALLS = {
    **{name: functools.partial(drawn, name) for name in (*DRAWN, *VALUES)},
    "normal in bfloat16": lambda: jaxinit.normal(0.1)(key(), (16, 20), jnp.bfloat16),
    "orthogonal in bfloat16": lambda: jaxinit.orthogonal()(key(), (3, 9, 8), jnp.bfloat16),
    "orthogonal of a stack": lambda: jaxinit.orthogonal("relu", batch_axis=0)(key(), (2, 12, 20)),
    "random_walk of a function": lambda: jaxinit.random_walk(jax.nn.silu, 5)(key(), (8, 6)),
    "haar.orthogonal": lambda: jaxinit.haar.orthogonal(key(), (2, 20, 18)),
    "haar.orthogonal of small ones": lambda: jaxinit.haar.orthogonal(key(), (9, 5, 4), method="small"),
    "haar.orthogonal by QR": lambda: jaxinit.haar.orthogonal(key(), (2, 6, 5), method="qr"),
    "haar.special_orthogonal": lambda: jaxinit.haar.special_orthogonal(key(), (2, 18, 18)),
    "haar.special_orthogonal of small ones": lambda: jaxinit.haar.special_orthogonal(key(), (9, 4, 4)),
    "haar.special_orthogonal by QR": lambda: jaxinit.haar.special_orthogonal(key(), (2, 4, 4), method="qr"),
    "haar.unitary": lambda: jaxinit.haar.unitary(key(), (2, 20, 18)),
    "haar.unitary of small ones": lambda: jaxinit.haar.unitary(key(), (9, 5, 4)),
    "haar.unitary by QR": lambda: jaxinit.haar.unitary(key(), (2, 6, 5), method="qr"),
    "orthonormalize": lambda: jaxinit.orthonormalize(jax.random.normal(key(), (2, 20, 18)), batch_axis=0),
    "orthonormalize a wide one": lambda: jaxinit.orthonormalize(jax.random.normal(key(), (2, 3, 18))),
    "gain": lambda: [np.float64(jaxinit.gain("gelu")), np.float64(jaxinit.gain(lambda x: x * jax.nn.sigmoid(2 * x)))],
    "critical": lambda: np.float64(jaxinit.critical("tanh", bias_variance=0.05)[:3]),
    "fans": lambda: np.float64(jaxinit.fans((3, 3, 4, 6))),
    "einsum_fans": lambda: np.float64(jaxinit.einsum_fans("...a,abc->...bc", (4, 2, 3))),
    "einsum_axes": lambda: str(jaxinit.einsum_axes("...a,abc->...bc")),
    "from_config": lambda: jaxinit.from_config(jaxinit.orthogonal().to_config())(key(), (8, 6)),
    "lecun_tanh": lambda: jaxinit.lecun_tanh(rows_of(4)),
    "scalar_labels": lambda: str(jaxinit.scalar_labels(*(x() if i != 1 else x for i, x in enumerate(NETS["mlp"])))),
    "clear_caches": lambda: jaxinit.clear_caches(),
    "recommend by description": lambda: str(jaxinit.recommend(jax.nn.silu, "mlp", 10)),
    **{f"recommend for {net}": functools.partial(recommend, net) for net in NETS},
    **{f"trace_layers of {net}": functools.partial(trace_layers, net) for net in NETS},
    "lsuv": lambda: lsuv("mlp"),
    "lsuv by scan": lambda: lsuv("mlp", method="scan"),
    "lsuv by channel, centred": lambda: lsuv("mlp", statistic="channel", center=True),
    "lsuv of a scan": lambda: lsuv("scanned"),
    "lsuv verified": lambda: lsuv("attention", verify=True),
    "lsuv of a recurrence": lambda: lsuv("recurrent"),
    "fit_readout": fit_readout,
    **{
        f"initialize {net} by {scheme}": functools.partial(initialize, net, scheme)
        for net, names in schemes_of_the_library().items()
        for scheme in names
    },
    "diagnose": lambda: diagnose("mlp"),
    "diagnose a scan": lambda: diagnose("scanned", lanczos_steps=0),
    "diagnose a transformer": lambda: diagnose("attention", lanczos_steps=0),
    "diagnose a recurrence": lambda: diagnose("recurrent", lanczos_steps=0),
    "study": study,
    "rbm_pretrain": rbm_pretrain,
}


BRIEF = {
    *("normal", "truncated_normal", "orthogonal", "zero_hadamard", "sparse", "haar.unitary of small ones"),
    *("orthonormalize a wide one", "gain", "critical", "random_walk of a function", "recommend by description"),
    *("trace_layers of attention", "initialize mlp by auto", "lsuv"),
}
"""Rows for every run of the tests. The others, which take minutes to compile, are slow."""

BRIEF_AT_ONCE = {"lsuv of a scan", "diagnose", "study", "rbm_pretrain", "initialize attention by mimetic"}
"""Further rows for the last column."""

BRIEF_ALONE = {
    "debug_infs": {"lsuv", "normal"},
    "unsafe_rbg": {"lsuv", "normal"},
    "disable_jit": BRIEF - {"orthogonal", "orthonormalize a wide one"},
}
"""Replaces the calls of columns that resemble another one, or take long."""


def table(configurations):
    """Every configuration with every call."""

    def entry(configuration, name):
        brief = name in BRIEF_ALONE.get(configuration, BRIEF) or (
            configuration == "all at once" and name in BRIEF_AT_ONCE
        )
        return pytest.param(configuration, name, marks=() if brief else pytest.mark.slow)

    return [entry(configuration, name) for configuration in configurations for name in CALLS]


@functools.cache
def as_it_comes(name):
    """The result of a call with JAX's defaults, which promote ranks and dtypes."""
    with configured(PROMOTING):
        return jax.device_get(CALLS[name]())


def leaves(result):
    return [x for x in jax.tree.leaves(result) if not isinstance(x, str)]


@pytest.mark.parametrize(("configuration", "name"), table(CHECKED))
def test_what_forbids_or_checks_changes_no_number(configuration, name):
    wanted = as_it_comes(name)
    with column(CHECKED[configuration]):
        found = jax.device_get(CALLS[name]())
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        a, b = (np.asarray(x).astype(complex if np.iscomplexobj(x) else np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def looping(params, x):
    """All kinds of loops and branches."""
    x = jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["stack"][i]), x)
    x = jax.lax.cond(jnp.sum(x) > 0, lambda x: jax.nn.relu(x @ params["tied"]), lambda x: x, x)
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: jax.jit(jnp.tanh)(x @ params["tied"]), x)


def looking(params, x):
    """Reads the value of a number, which is impossible inside a trace."""
    return x @ params["tied"] if float(jnp.mean(x @ params["tied"])) > 0 else x


def test_loops_are_read_as_loops_where_calls_are_not_compiled():
    params, x = scanned_params(), rows_of(6)
    wanted = str(jaxinit.trace_layers(params, looping, x))
    with configured(CHECKED["disable_jit"]):
        assert str(jaxinit.trace_layers(params, looping, x)) == wanted
        for call in (jaxinit.trace_layers, jaxinit.lsuv, jaxinit.diagnose):
            with pytest.raises(jax.errors.ConcretizationTypeError, match="float"):
                call(params, looking, x)


@pytest.mark.parametrize(("configuration", "name"), table(CHANGED))
def test_other_numbers_are_numbers(configuration, name):
    with column(CHANGED[configuration]):
        found = jax.device_get(CALLS[name]())
    for x in leaves(found):
        assert np.isfinite(np.asarray(x).astype(complex)).all()


def test_every_public_function_has_a_row():
    functions = {name for name in jaxinit.__all__ if callable(getattr(jaxinit, name))}
    types = {name for name in functions if isinstance(getattr(jaxinit, name), type)} - set(DRAWN)
    named = {call.split()[0] for call in CALLS}
    assert functions - types - named == set()
    assert (BRIEF | BRIEF_AT_ONCE).issubset(CALLS)
    assert {f"haar.{name}" for name in ("orthogonal", "unitary", "special_orthogonal")} <= named
