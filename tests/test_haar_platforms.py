"""How a platform multiplies does not change the numbers: panels of one shape in a loop equal those that were drawn."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinit import haar, orthonormalize
from jaxinit._arrays import _eager
from jaxinit._haar import _scanned

KEY = jax.random.key(0)


def drawn(sampler, shape, dtype=None):
    return lambda: sampler(KEY, shape, dtype)


def converted(change=lambda w: w):
    return lambda: orthonormalize(change(jax.random.normal(KEY, (2, 90, 140))), batch_axis=0)


CASES = {
    "three panels, the last filled up": drawn(haar.special_orthogonal, (300, 300)),
    "a batch in panels": drawn(haar.orthogonal, (2, 40, 40)),
    "tall and complex": drawn(haar.unitary, (50, 20)),
    "wide, rounded to bfloat16": drawn(haar.orthogonal, (2, 20, 90), "bfloat16"),
    "few columns, determinant one": drawn(haar.special_orthogonal, (9, 6, 6)),
    "few columns, wide and complex": drawn(haar.unitary, (9, 3, 5)),
    "few columns, tall": drawn(haar.orthogonal, (9, 5, 3)),
    "one entry": drawn(haar.orthogonal, (1, 1)),
    "vmap": lambda: jax.vmap(lambda key: haar.orthogonal(key, (4, 40, 40)))(jax.random.split(KEY, 2)),
    "a weight": converted(),
    "a weight with zero rows": converted(lambda w: w.at[0, 30:60].set(0)),
}


@pytest.fixture(scope="module")
def made():
    """Each case on the CPU, and by the branches of other platforms."""
    here = jax.device_get(jax.jit(lambda: {name: case() for name, case in CASES.items()})())
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax.lax, "platform_dependent", lambda *operands, default, **_: default(*operands))
        elsewhere = jax.device_get(jax.jit(lambda: {name: case() for name, case in CASES.items()})())
    jax.clear_caches()
    return here, elsewhere


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_same_on_every_platform(case, made):
    here, elsewhere = (results[case] for results in made)
    assert (elsewhere.shape, elsewhere.dtype) == (here.shape, here.dtype)
    tolerance = 1e-2 if here.dtype == jnp.bfloat16 else 4e-6
    np.testing.assert_allclose(elsewhere.astype(complex), here.astype(complex), atol=tolerance)


def test_the_inverse_of_a_triangle_of_any_size():
    for size in (1, 3, 12):
        upper = np.triu(np.random.default_rng(size).normal(size=(2, size, size))) + 3 * np.eye(size)
        found = _scanned.inverse(jnp.asarray(upper, jnp.float32))
        np.testing.assert_allclose(found, np.linalg.inv(upper), atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 300), (3000, 3000), (64, 2048, 128)])
def test_a_gpu_meets_few_shapes_of_products(shape):
    """XLA tunes each of them for a second or more."""
    program = jax.export.export(
        jax.jit(lambda key: haar.orthogonal(key, shape)),
        platforms=["cuda"],
        # The hash of the generator on GPUs is a custom call of its own.
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("cu_threefry2x32_ffi")],
    )(KEY)
    products = re.findall(r"stablehlo\.dot_general .* : (\(tensor.*?\) -> tensor<\S*)", program.mlir_module())
    assert 0 < len(set(products)) <= 5


def test_called_alone_products_are_not_tuned_and_within_a_program_they_are_its_own(monkeypatch):
    monkeypatch.setattr(_eager, "_TUNED", {"cpu"})  # this platform takes the option, and has no use for it
    options = []
    monkeypatch.setattr(jax, "jit", lambda f, _jit=jax.jit, **kwargs: _recorded(_jit(f, **kwargs), kwargs, options))
    draw = _eager.jitted_alone(lambda key: jax.random.normal(key, (3,)))
    wanted = draw(KEY)
    assert options == [_eager._WITHOUT_TUNING]
    for within in (jax.jit(lambda _: draw(KEY))(0), jax.vmap(draw)(KEY[None])[0], jax.jit(draw)(KEY)):
        np.testing.assert_allclose(within, wanted, rtol=1e-6)
    assert options[1:].count(_eager._WITHOUT_TUNING) == 0


def _recorded(call, kwargs, options):
    """A jitted function that records the compiler's options whenever it is called."""

    def noted(*args):
        options.append(kwargs.get("compiler_options"))
        return call(*args)

    return noted
