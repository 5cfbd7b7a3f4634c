"""The claims of examples/deep_nets.py: schemes for deep networks without normalization, on scikit-learn's digits.

Means of three seeds at the best rate of the example's grid. A mean over 360 test digits and three seeds has a standard
error of about one point, and all keys are fixed. The best rate is that of all seeds: of the halves into which a study
divides them, one is a single seed, which may well be lucky at a rate that is bad for the two others.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

RELU, TANH = "100 ReLU layers", "100 tanh layers"
BLOCKS, BLOCKS_WITH_SCALARS, DEEPEST = "100 residual blocks", "100 blocks with scalars", "1000 blocks with scalars"


@functools.cache
def example():
    """The example as a module; scikit-learn and matplotlib are imported only by tests that need them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import deep_nets

    return deep_nets


@functools.cache
def studied(problem):
    return example().compare(**example().PROBLEMS[problem])


def accuracies(problem, start):
    """The mean over seeds at each rate, 0 where one diverged."""
    result = studied(problem)
    row = result.starts.index(start)
    return np.where(example().stable(result)[row], result.final["test accuracy"][row].mean(axis=-1), 0)


def accuracy(problem, start):
    return accuracies(problem, start).max()


def largest_stable(problem, start):
    return example().largest_stable(studied(problem), start)


def test_a_relu_network_of_100_layers_learns_from_looks_linear_weights_alone():
    assert 0.2 < accuracy(RELU, "He") < 0.5
    assert 0.3 < accuracy(RELU, "LSUV") < 0.6
    assert accuracy(RELU, "looks-linear") > 0.95


def test_a_tanh_network_of_100_layers_learns_best_from_orthogonal_critical_weights():
    # How far LeCun's comes is a matter of the draw: seeds at one rate are between 0.2 and 0.7.
    assert 0.2 < accuracy(TANH, "LeCun") < 0.8
    assert accuracy(TANH, "orthogonal critical") > 0.96


def test_100_residual_blocks_diverge_from_he_at_every_rate():
    result = studied(BLOCKS)
    assert result.diverged()[result.starts.index("He")].all()
    assert not np.isfinite(result.losses[result.starts.index("He"), ..., -1]).any()


def test_fixup_allows_rates_ten_times_those_of_other_starts_of_its_size():
    assert accuracy(BLOCKS_WITH_SCALARS, "Fixup") > 0.96
    assert largest_stable(BLOCKS_WITH_SCALARS, "Fixup") == max(example().RATES)
    for start in ("auto: He, 1/√L", "GPT-2, σ = 0.07"):
        assert accuracy(BLOCKS, start) > 0.96
        assert 0 < 10 * largest_stable(BLOCKS, start) <= largest_stable(BLOCKS_WITH_SCALARS, "Fixup")


def test_gpt2_at_its_own_scale_is_as_stable_as_fixup_but_slower():
    # 0.02 is a sixth of LeCun's weights at this width: branches that small are stable for their size alone.
    assert largest_stable(BLOCKS, "GPT-2, σ = 0.02") == largest_stable(BLOCKS_WITH_SCALARS, "Fixup")
    assert accuracies(BLOCKS, "GPT-2, σ = 0.02")[0] + 0.1 < accuracies(BLOCKS_WITH_SCALARS, "Fixup")[0]


def test_1000_residual_blocks_train_from_fixup():
    assert accuracy(DEEPEST, "Fixup") > 0.9
