"""Plots of studies: they draw into the given axes, and keep overflowing values inside."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from helpers.studies import planted
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from jaxinit import plot
from jaxinit._plots._style import COLORS


@pytest.fixture
def result():
    """Six starts, the last of which diverges; metrics over five layers."""
    random = np.random.default_rng(0)
    losses = np.exp(-np.linspace(0, 2, 4)) * np.ones((6, 1, 8, 4)) + 0.01 * random.random((6, 1, 8, 4))
    losses[5, 0, :, 1:] = np.nan
    losses[5, 0, ::2, 2:] = np.inf
    made = planted(random.normal(size=(6, 1, 8)), losses=losses.astype(np.float32))
    made.final["score"][5, 0, :3] = np.nan
    made.initial["scale"] = np.stack([np.full((8, 5), 10.0**k) for k in (0, 1, -1, 20, -20, np.inf)])
    return made


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def test_learning_curves(result):
    _, given = plt.subplots()
    ax = drawn(plot.learning_curves(result, given))
    assert ax is given
    assert [line.get_label() for line in ax.get_lines()] == list(result.starts)
    low, high = ax.get_ylim()
    top = 1.5 * np.median(result.curves()[..., 0], axis=1).min()
    for line, curve in zip(ax.get_lines(), result.curves()[:5], strict=False):
        np.testing.assert_allclose(line.get_ydata(), curve.mean(axis=0), rtol=1e-5)
    lost = ax.get_lines()[5].get_ydata()
    np.testing.assert_allclose(lost[1:], top)
    assert low == 0 < top < high
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}) == 6


def test_over_depth(result):
    ax = drawn(plot.over_depth(result, "scale", legend=False))
    heights = [line.get_ydata()[0] for line in ax.get_lines()]
    np.testing.assert_allclose(heights, [1, 10, 0.1, 1e12, 1e-12, 1e12])
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match=r"\['scale'\], got 'score'"):
        plot.over_depth(result, "score")


def test_outcomes(result):
    ax = drawn(plot.outcomes(result))
    assert [label.get_text() for label in ax.get_yticklabels()] == list(result.starts[::-1])
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 6 * 8 - 3
    assert [text.get_text() for text in ax.texts] == ["3 not finite"]


def test_the_legend_covers_nothing(result):
    ax = drawn(plot.learning_curves(result))
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_read_on_light_and_on_dark(color):
    def luminance(color):
        parts = np.array(to_rgb(color))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    assert 1.05 / (luminance(color) + 0.05) >= 3
    assert (luminance(color) + 0.05) / (luminance("#0d1117") + 0.05) >= 3
