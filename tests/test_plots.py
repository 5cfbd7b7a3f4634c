"""Plots: every function accepts and returns axes, also with a hundred layers, and draws the given numbers."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxinit
import jaxinit.plot

mpl.use("Agg")
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (64, 16))
STACK = {"w": jax.random.normal(KEY, (100, 16, 16)) / 4, "b": jnp.zeros((100, 16))}


def apply_fn(params, x):
    return jax.lax.scan(lambda h, p: (jnp.tanh(h @ p["w"] + p["b"][None]), None), x, params)[0]


@pytest.fixture
def ax():
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    yield axes
    plt.close(figure)


def labels_apart(ax, axis):
    """Whether no two tick labels of an axis overlap."""
    ax.figure.canvas.draw()
    labels = [t for t in getattr(ax, f"get_{axis}ticklabels")() if t.get_text()]
    boxes = [t.get_window_extent() for t in labels]
    return not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_signals_of_a_hundred_layers_and_of_seeds(style):
    with plt.style.context(style):
        _, ax = plt.subplots()
        report = jaxinit.diagnose(STACK, apply_fn, X, lanczos_steps=0)
        assert jaxinit.plot.signals(report, ax) is ax
        np.testing.assert_allclose(ax.lines[0].get_ydata(), report.pre_std, rtol=1e-6)
        assert labels_apart(ax, "x")
        seeds = jax.tree.map(lambda a: jnp.stack([a, a * a.dtype.type(2), a * a.dtype.type(4)]), report)
        many = jaxinit.plot.signals(seeds)
        np.testing.assert_allclose(many.lines[0].get_ydata(), 2 * report.pre_std, rtol=1e-6)
        plt.close("all")


@pytest.mark.parametrize("count", [2, 6])
def test_signals_of_several_starts_on_one_axes(ax, count):
    report = jaxinit.diagnose(STACK, apply_fn, X, lanczos_steps=0)
    small = jaxinit.diagnose(jax.tree.map(lambda w: w / 2, STACK), apply_fn, X, lanczos_steps=0)
    names = [f"start {i}" for i in range(count)]
    assert jaxinit.plot.signals({name: small if i else report for i, name in enumerate(names)}, ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), report.pre_std, rtol=1e-6)
    np.testing.assert_allclose(ax.lines[2].get_ydata(), small.pre_std, rtol=1e-6)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines[: 2 * count]}
    assert len(looks) == 2 * count
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    assert not legend.get_window_extent().overlaps(ax.get_window_extent())
    texts = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert texts[0] == "start 0: " + ", ".join(f.fault for f in report.findings())
    assert "vanishing signal" in texts[1]
    assert texts[count:] == ["std of layers' outputs", "root mean square of gradients"]
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert labels_apart(ax, "x")


def test_signals_of_nets_of_different_depths_and_of_none(ax):
    reports = [
        jaxinit.diagnose(jax.tree.map(lambda w, n=n: w[:n], STACK), apply_fn, X, lanczos_steps=0) for n in (3, 5)
    ]
    jaxinit.plot.signals(reports, ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    assert ax.get_legend().get_texts()[1].get_text().startswith("2: ")
    for wrong, named in ((None, "NoneType"), (3, "int"), ("he", "str"), ([reports[0], 3], "int for '2'")):
        with pytest.raises(TypeError, match=f"what jaxinit.diagnose.params, apply_fn, batch. returns.*got {named}"):
            jaxinit.plot.signals(wrong)
    with pytest.raises(ValueError, match="at least one report"):
        jaxinit.plot.signals({})


def test_activations_are_histograms_of_each_layer(ax):
    assert jaxinit.plot.activations(STACK, apply_fn, X, ax) is ax
    assert len(ax.lines) == 100
    assert labels_apart(ax, "y")
    heights = ax.lines[0].get_ydata()
    counts, _ = np.histogram(np.tanh(X @ STACK["w"][0]), np.linspace(-3, 3, 82))
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max(), atol=0.02)


def test_singular_values_come_with_their_law(ax):
    matrix = jax.random.normal(KEY, (400, 100))
    assert jaxinit.plot.singular_values(matrix, ax) is ax
    x, density = ax.lines[0].get_data()
    assert np.trapezoid(density, x) == pytest.approx(1, abs=0.01)
    # The law of a 400 × 100 matrix of unit variance ends at 20 ± 10.
    assert (x[0], x[-1]) == pytest.approx((10, 30), rel=0.01)
    assert ax.get_legend().get_texts()[1].get_text() == "law of Marchenko and Pastur"
    with pytest.raises(ValueError, match="two dimensions or more"):
        jaxinit.plot.singular_values(jnp.ones(3))


def test_the_jacobian_of_an_orthogonal_map_has_condition_one(ax):
    w = jaxinit.orthogonal()(KEY, (16, 16))
    assert jaxinit.plot.jacobian(w, lambda w, x: x @ w, X, ax) is ax
    assert ax.get_title(loc="left").endswith("condition 1")


def test_eigenvalues_lie_on_the_circle(ax):
    jaxinit.plot.eigenvalues(jaxinit.haar.orthogonal(KEY, (3, 16, 16)), ax)
    points = ax.collections[0].get_offsets()
    assert len(points) == 48
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="square matrices"):
        jaxinit.plot.eigenvalues(jnp.ones((3, 2)))


def test_layers_on_the_phase_diagram(ax):
    assert jaxinit.plot.phase_diagram("tanh", STACK, apply_fn, X, ax) is ax
    points = ax.collections[0].get_offsets()
    assert len(points) == 100
    np.testing.assert_allclose(points[:, 0].mean(), 1, atol=0.05)
    line = ax.lines[0]
    assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((1, 0), abs=1e-3)
    with pytest.raises(ValueError, match="no critical"):
        jaxinit.plot.phase_diagram(lambda x: 0.0 * x + 1)
