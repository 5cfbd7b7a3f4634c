"""Structured weights: each does to a signal what its paper claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.architectures import convolve
from scipy import linalg, special, stats
from scipy.signal import get_window

import jaxinit


def test_identity(key):
    np.testing.assert_array_equal(jaxinit.identity(2.0)(None, (3, 4, 5))[1], 2 * np.eye(4, 5))
    np.testing.assert_array_equal(jaxinit.identity()(None, (3, 3), jnp.int32), np.eye(3))
    scaled = jax.vmap(lambda s: jaxinit.identity(s)(key, (2, 2)))(jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(scaled[1], 3 * np.eye(2))


@pytest.mark.parametrize("spatial", [(3,), (4,), (3, 5), (2, 4), (3, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize("groups", [1, 2])
def test_dirac_returns_the_input(spatial, groups, key):
    x = jax.random.normal(key, (2, *(6,) * len(spatial), 4))
    kernel = jaxinit.dirac(groups)(key, (*spatial, 4 // groups, 4))
    np.testing.assert_array_equal(convolve(x, kernel, groups), x)


def test_dirac_with_more_or_fewer_outputs(key):
    x = jax.random.normal(key, (1, 5, 4))
    wide = convolve(x, jaxinit.dirac()(key, (3, 4, 6)))
    np.testing.assert_array_equal(wide, jnp.pad(x, ((0, 0), (0, 0), (0, 2))))
    np.testing.assert_array_equal(convolve(x, jaxinit.dirac()(key, (3, 4, 3))), x[..., :3])


@pytest.mark.parametrize(
    ("shape", "axes"), [((40, 30), {}), ((3, 3, 8, 20), {}), ((30, 5, 8), {"in_axis": 0, "out_axis": (1, 2)})]
)
def test_sparse_has_exactly_so_many_weights_into_each_unit(shape, axes, key):
    weights = np.asarray(jaxinit.sparse(15, **axes)(key, shape))
    units = np.moveaxis(weights, 0, -1).reshape(-1, 30) if axes else weights.reshape(-1, shape[-1]).T
    assert ((units != 0).sum(axis=1) == 15).all()


def evenness(weights):
    """The p-value of chi-squared over the places of five weights in each of 20,000 columns of 20."""
    counts = (np.asarray(weights) != 0).sum(axis=1)
    # Places are drawn without replacement, so counts vary less than multinomially by the factor 15/19.
    return stats.chi2(19).sf(((counts - 5000) ** 2 / 5000).sum() * 19 / 15)


def test_sparse_places_are_even_and_weights_normal(key):
    """20,000 units of 20 inputs: chi-squared over the places, KS over the weights; false alarms 1e-6 each."""
    weights = np.asarray(jaxinit.sparse(5, 2.0)(key, (20, 20_000)))
    assert evenness(weights) > 1e-6
    assert stats.kstest(weights[weights != 0], stats.norm(scale=2).cdf).pvalue > 1e-6
    both = ((weights[0] != 0) & (weights[1] != 0)).mean()
    assert abs(both - 5 / 20 * 4 / 19) < 5 * np.sqrt(0.05 / 20_000)
    # Of coarse random numbers many tie, and the first places win.
    ties = jax.lax.top_k(jax.random.randint(key, (20_000, 20), 0, 16), 5)[1]
    assert evenness(jax.nn.one_hot(ties, 20).sum(1).T) < 1e-6


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.55, 1.0])
def test_sparsity_is_the_share_of_zeros_as_torch_counts_it(sparsity, key):
    """ceil(s · out) zeros for each input of a weight of torch's shape (out, in), wherever it is stored."""
    out, inputs = 12, 30
    zeros = int(np.ceil(sparsity * out))
    kernel = np.asarray(jaxinit.sparse(stddev=0.01, in_axis=-1, out_axis=-2, sparsity=sparsity)(key, (inputs, out)))
    assert ((kernel.T == 0).sum(axis=0) == zeros).all()
    columns = np.asarray(jaxinit.sparse(sparsity=sparsity)(key, (out, inputs)))
    assert ((columns == 0).sum(axis=0) == zeros).all()


@pytest.mark.parametrize(
    ("window", "scaling", "periodic"),
    [
        (None, "density", False),
        ("hann", "spectrum", True),
        ("hamming", None, False),
        ([1.0] * 5 + [2.0] * 7, "density", False),
    ],
)
def test_stft_is_the_fourier_transform_of_each_frame(window, scaling, periodic, key):
    """Convolutions with both sides are NumPy's transform of windowed frames, shorter or longer than the transform."""
    signal, frame = np.asarray(jax.random.normal(key, (1, 60, 1))), 12
    values = np.ones(frame) if window is None else window
    if isinstance(window, str):
        values = get_window(window, frame, fftbins=periodic)
    values = np.asarray(values, np.float64)
    norms = {"density": np.linalg.norm(values), "spectrum": np.abs(values).sum(), None: 1.0}
    values = values / (1.0 if window is None else norms[scaling])
    frames = np.stack([signal[0, i : i + frame, 0] for i in range(60 - frame + 1)])
    wanted = np.fft.rfft(frames * values, 16)
    for side, part in (("real", wanted.real), ("imag", wanted.imag)):
        kernel = jaxinit.stft(side, window, scaling, periodic)(key, (frame, 1, 9))
        found = jax.lax.conv_general_dilated(
            signal, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision="highest"
        )
        np.testing.assert_allclose(found[0], part, atol=2e-6 * np.abs(wanted).max())
    # A symmetric Hann window of two values is zero.
    assert not np.any(jaxinit.stft("real")(key, (2, 1, 3)))


def test_sparse_stacks_are_independent(key):
    weights = np.asarray(jaxinit.sparse(3, batch_axis=0)(key, (4, 50, 200)))
    assert ((weights != 0).sum(axis=1) == 3).all()
    overlap = ((weights[0] != 0) & (weights[1] != 0)).mean()
    assert abs(overlap - (3 / 50) ** 2) < 5 * 0.06 / 100


def _expected_log_growth(fan_in, activation):
    """E log(|f(Wh)|²/|h|²) for W of variance 1/fan_in, over the number of active units."""
    chi = special.digamma(np.arange(1, fan_in + 1) / 2) + np.log(2) - np.log(fan_in)
    if activation == "linear":
        return chi[-1]
    active = stats.binom(fan_in, 0.5).pmf(np.arange(1, fan_in + 1))
    return np.sum(active / active.sum() * chi)


@pytest.mark.parametrize("fan_in", [16, 32, 64, 128, 1024])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_random_walk_has_no_drift(fan_in, activation):
    """Against the exact digamma expectation: the gain is within 0.1%, where He's is 1% to 8% off."""
    from jaxinit._initializers._random_walk import random_walk_gain

    exact = np.exp(-_expected_log_growth(fan_in, activation) / 2)
    assert abs(random_walk_gain(activation, fan_in, 1) / exact - 1) < 1e-3
    if fan_in <= 64:
        naive = {"linear": 1.0, "relu": np.sqrt(2)}[activation]
        assert abs(naive / exact - 1) > 5e-3


def test_random_walk_numeric_solution_matches_the_closed_forms():
    from jaxinit._initializers._random_walk import random_walk_gain

    relu = random_walk_gain(lambda x: jnp.maximum(x, 0.0), 128, 1)
    assert abs(relu / random_walk_gain("relu", 128, 1) - 1) < 1e-3
    linear = random_walk_gain(lambda x: 1.0 * x, 128, 1)
    assert abs(linear / random_walk_gain("linear", 128, 1) - 1) < 1e-4


def test_random_walk_solves_its_equation_where_slopes_jump():
    """The moments of hard tanh are known: with its gain, the equation holds to 1e-6 over 50 layers of 64 units."""
    from jaxinit._initializers._random_walk import random_walk_gain

    def change(gain, variance):
        inside = 1 - 2 * stats.norm.sf(variance**-0.5)
        return np.log(gain**2 * inside) - (3 / inside - 1) / 128

    def drift(gain):
        total, mean_square = 0.0, 1.0
        for _ in range(50):
            q = gain**2 * mean_square
            total += change(gain, q)
            inside, at_the_edge = 1 - 2 * stats.norm.sf(q**-0.5), 2 * q**-0.5 * stats.norm.pdf(q**-0.5)
            mean_square = q * (inside - at_the_edge) + 1 - inside
        return total

    gain = random_walk_gain("hard_tanh", 64, 50)
    assert abs(drift(gain)) < 1e-6
    assert abs(drift(gain + 1e-5)) > 1e-4


def _log_gradient_norm(init, activation, depth, width, key):
    """Mean over 64 networks of the log-norm of the gradient, input against output, per layer."""

    def network(k):
        weights = jax.vmap(lambda k: init(k, (width, width)))(jax.random.split(k, depth))
        x = jax.random.normal(jax.random.fold_in(k, 1), (width,))

        def forward(x):
            return jax.lax.scan(lambda h, w: (activation(h @ w), None), x, weights)[0]

        _, pullback = jax.vjp(forward, x)
        v = jax.random.normal(jax.random.fold_in(k, 2), (width,))
        return jnp.log(jnp.linalg.norm(pullback(v)[0]) / jnp.linalg.norm(v))

    logs = jax.jit(jax.vmap(network))(jax.random.split(key, 64))
    return float(logs.mean()), float(logs.std() / np.sqrt(64))


def test_random_walk_on_tanh_networks(key):
    """50 layers of 64 tanh units: the log-norm of gradients drifts by less than 10% of what Glorot's loses."""
    walk = jaxinit.random_walk("tanh", depth=50)
    drift, error = _log_gradient_norm(walk, jnp.tanh, 50, 64, key)
    loss, _ = _log_gradient_norm(jaxinit.glorot_normal(), jnp.tanh, 50, 64, key)
    assert loss < -1
    assert abs(drift) < 0.25 * abs(loss) + 5 * error


def test_siren_keeps_activations_over_depth(key):
    """The pre-activations' standard deviation settles at 0.893, where q = 1 - exp(-2q); 5% covers 256 units."""
    x = jax.random.uniform(key, (4000, 2), minval=-1)
    h = jnp.sin(30 * x @ jaxinit.siren(first=True)(key, (2, 256)))
    scales = []
    for k in jax.random.split(key, 20):
        z = 30 * h @ jaxinit.siren()(k, (256, 256))
        scales.append(float(z.std()))
        h = jnp.sin(z)
    assert abs(scales[0] - 1) < 0.08, "the input of the first hidden layer has the arcsine law, of variance 1/2"
    assert abs(np.mean(scales[5:]) - 0.893) < 0.05


def test_zero_hadamard(key):
    init = jaxinit.zero_hadamard()
    np.testing.assert_array_equal(init(key, (5, 3)), np.eye(5, 3))
    wide = np.asarray(init(key, (5, 12)))
    np.testing.assert_allclose(wide, linalg.hadamard(16)[:5, :12] / 4, rtol=1e-6)
    np.testing.assert_allclose(init(key, (4, 8)) @ init(key, (4, 8)).T, np.eye(4), atol=1e-6)
    kernel = np.asarray(init(key, (3, 3, 2, 4)))
    np.testing.assert_allclose(kernel[1, 1], linalg.hadamard(4)[:2] / 2, rtol=1e-6)
    assert np.count_nonzero(kernel) == 8


def test_hippo_legs():
    """The eigenvalues of A are -1, ..., -N, and B is what the integral of the measure gives."""
    state = np.asarray(jaxinit.hippo_legs()(None, (2, 6, 6)))[1]
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(state.astype(float)).real), -np.arange(6.0, 0, -1), rtol=1e-5)
    np.testing.assert_allclose(state[3, 1], -np.sqrt(7 * 3), rtol=1e-6)
    drive = np.asarray(jaxinit.hippo_legs("B")(None, (6,)))
    np.testing.assert_allclose(drive, np.sqrt(2 * np.arange(6) + 1), rtol=1e-6)
    # A + A^T + B B^T is minus the identity: the measure's own derivative.
    np.testing.assert_allclose(state + state.T + np.outer(drive, drive), -np.eye(6), atol=1e-5)


def test_s4d():
    """Values by hand; the real variant is Mamba's, and all rows of a batch are equal."""
    np.testing.assert_allclose(jaxinit.s4d("real")(None, (2, 3))[1], np.log([1, 2, 3]), rtol=1e-6)
    np.testing.assert_allclose(jaxinit.s4d(part="frequency")(None, (3,)), [0, np.pi, 2 * np.pi], rtol=1e-6)
    n = np.arange(4)
    expected = -0.5 + 1j * (4 / np.pi * (4 / (2 * n + 1) - 1))
    np.testing.assert_allclose(jaxinit.s4d("inv", "A")(None, (4,), jnp.complex64), expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(jaxinit.s4d()(None, (4,))), 0.5, rtol=1e-6)


def test_lstm_bias():
    np.testing.assert_array_equal(jaxinit.lstm_bias()(None, (8,)), [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(jaxinit.lstm_bias(2.0, gates="ofi")(None, (2, 6))[1], [0, 0, 2, 2, 0, 0])
    np.testing.assert_array_equal(jaxinit.lstm_bias(gates="f")(None, (3,)), [1, 1, 1])
    np.testing.assert_array_equal(jaxinit.lstm_bias(gates="g")(None, (3,)), [0, 0, 0])


def test_chrono(key):
    fused = jaxinit.chrono(100)(key, (40,))
    i, f, g, o = np.split(np.asarray(fused), 4)
    np.testing.assert_array_equal(i, -f)
    np.testing.assert_array_equal(g, 0 * o)
    np.testing.assert_array_equal(jaxinit.chrono(100, gates="f")(key, (10,)), f)
    np.testing.assert_array_equal(jaxinit.chrono(100, gates="i")(key, (10,)), i)
    assert (f >= 0).all()
    assert (np.exp(f) <= 99).all()
    np.testing.assert_array_equal(jaxinit.chrono(2)(key, (8,)), np.zeros(8))


def test_blocks_are_draws_of_their_own_shape(key):
    fused = jaxinit.blocked(jaxinit.glorot_uniform(), -1, 4)(key, (32, 256))
    for i, k in enumerate(jax.random.split(key, 4)):
        np.testing.assert_allclose(fused[:, 64 * i : 64 * (i + 1)], jaxinit.glorot_uniform()(k, (32, 64)), rtol=1e-6)
    uneven = jaxinit.blocked(jaxinit.glorot_uniform(), 0, (16, 8, 8))(key, (32, 6))
    np.testing.assert_array_equal(uneven[16:24], jaxinit.glorot_uniform()(jax.random.split(key, 3)[1], (8, 6)))
    middle = jaxinit.blocked(jaxinit.he_normal(), 1, 2)(key, (4, 6, 5))
    np.testing.assert_allclose(middle[:, :3], jaxinit.he_normal()(jax.random.split(key)[0], (4, 3, 5)), rtol=1e-6)


def test_combinators_take_any_initializer(key):
    foreign = jax.nn.initializers.normal(1.0)
    np.testing.assert_array_equal(jaxinit.scaled(foreign, 2.0)(key, (3,)), 2 * foreign(key, (3,)))
    assert jaxinit.blocked(foreign, 0, 3)(key, (6,)).shape == (6,)
    nested = jaxinit.scaled(jaxinit.normal(1.0, dtype=jnp.bfloat16), 1 / 3)
    draws = nested(key, (1000,))
    assert draws.dtype == jnp.bfloat16
    exact = jaxinit.normal(1.0)(key, (1000,)) * np.float32(1 / 3)
    np.testing.assert_array_equal(draws, exact.astype(jnp.bfloat16), "rounded once, after the factor")
