"""Fans count the weights into and out of a unit, as the program computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit

CASES = [
    ((64, 128), {}, (64, 128)),
    ((3, 3, 16, 32), {}, (144, 288)),
    ((3, 3, 2, 6), {"feature_group_count": 2}, (18, 27)),
    ((3, 3, 1, 8), {"feature_group_count": 4}, (9, 18)),
    ((12, 64, 128), {"batch_axis": 0}, (64, 128)),
    ((64, 8, 16), {"in_axis": 0, "out_axis": (1, 2)}, (64, 128)),
    ((8, 16, 64), {"in_axis": (-3, -2), "out_axis": -1}, (128, 64)),
    ((3, 3, 32, 16), {"transpose": True}, (144, 288)),
    ((3, 3, 2, 6), {"feature_group_count": 2, "transpose": True}, (27, 18)),
    ((4, 4, 16, 32), {"lhs_dilation": 2}, (64, 512)),
    ((3, 3, 16, 32), {"lhs_dilation": (2, 1)}, (72, 288)),
    ((3, 16, 32), {"lhs_dilation": 2}, (24, 96)),
    ((3, 1, 32), {"lhs_dilation": 2}, (1.5, 96)),
    ((1000, 64), {"in_axis": -2, "out_axis": 0}, (64, 64)),
    ((5,), {"in_axis": 0, "out_axis": ()}, (5, 1)),
    ((0, 4), {}, (0, 4)),
]


@pytest.mark.parametrize(("shape", "kwargs", "expected"), CASES)
def test_fans(shape, kwargs, expected):
    found = jaxinit.fans(shape, **kwargs)
    assert found == expected
    assert [type(fan) for fan in found] == [type(fan) for fan in expected]


EINSUMS = [
    ("...a,abc->...bc", (4, 2, 3), -1, (4, 6)),
    ("gna,gab->gnb", (8, 16, 32), -1, (16, 32)),
    ("abc,...a->...bc", (4, 2, 3), 0, (4, 6)),
    ("bthd,hde->bte", (4, 16, 64), -1, (64, 64)),
    ("...hd,hdk->...hk", (4, 16, 64), -1, (16, 64)),
    ("n,ab->nb", (3, 5), -1, (3, 5)),
    ("...a,...ab->...b", (7, 3, 5), -1, (3, 5)),
]


@pytest.mark.parametrize(("equation", "shape", "operand", "expected"), EINSUMS)
def test_einsum_fans(equation, shape, operand, expected):
    assert jaxinit.einsum_fans(equation, shape, operand=operand) == expected


@pytest.mark.parametrize(
    ("equation", "data", "shape", "untold"),
    [
        ("gna,gab->gnb", (4, 100, 64), (4, 64, 128), 1 / 4),
        ("bthd,hde->bte", (4, 25, 4, 16), (4, 16, 512), 1),
        ("...a,abc->...bc", (400, 64), (64, 4, 32), 1 / 4),
    ],
)
def test_einsum_axes_keep_the_variance(equation, data, shape, untold, key):
    """Unit variance in, unit variance out, from 64 inputs each: within five standard errors of 1.5%.

    Without axes the group counts as taps, and the input as taps where it comes first.
    """
    x = jax.random.normal(key, data)
    for axes, variance in ((jaxinit.einsum_axes(equation), 1), ({}, untold)):
        y = jnp.einsum(equation, x, jaxinit.lecun_normal(**axes)(jax.random.key(1), shape))
        assert float(jnp.var(y)) == pytest.approx(variance, rel=0.075)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_lecun_keeps_the_variance_through_convolutions(dilation, groups, key):
    """The claim behind the fans: unit variance in, unit variance out, within 4% over 2e5 outputs.

    Outputs share weights (16·9·8 of them at least), so the standard error is about 3%/4.
    """
    shape = (4, 4, 32 // groups, 64)
    init = jaxinit.lecun_normal(feature_group_count=groups, lhs_dilation=dilation)
    x = jax.random.normal(key, (4, 32, 32, 32))

    def variance(init):
        y = jax.lax.conv_general_dilated(
            x,
            init(jax.random.key(1), shape),
            (1, 1),
            [(0, 0), (0, 0)],
            lhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return float(jnp.var(y))

    assert abs(variance(init) - 1) < 0.04
    if dilation > 1:  # of the taps, one in four meets a number that is not a zero between two
        assert abs(variance(jax.nn.initializers.lecun_normal()) * dilation**2 - 1) < 0.04


def test_batched_fans_are_those_of_one_slice(key):
    stacked = jaxinit.he_normal(batch_axis=0)
    np.testing.assert_allclose(jnp.std(stacked(key, (50, 64, 32))), np.sqrt(2 / 64), rtol=0.01)
