"""One table of assertions for the models of every framework: what is traced, and the results of LSUV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import MODELS

import jaxinit
from jaxinit._lsuv._passes import Problem, measured
from jaxinit._reading._trace import trace
from jaxinit._reading._views import scale_factors

# Models whose kind another one of the default run shows too; only tracing them is quick.
RARER = {
    *("linen_ensemble", "linen_mixer", "linen_unet", "nnx_convnet", "nnx_scanned", "equinox_mlp", "haiku_mlp"),
    *("haiku_convnet", "plain_indexed", "plain_fori_loop", "plain_custom_derivatives", "plain_weights_in_carry"),
    *("linen_mlp", "linen_vit", "linen_gru", "haiku_lstm"),
}


def problem_of(params, apply_fn, batch):
    """The task of bringing every layer to unit variance, and the values to evaluate it on."""
    traced = trace(params, apply_fn, batch)
    units = traced.analysis.weights
    factors = {u: scale_factors(traced.analysis, u) for u in units}
    targets = {u: jnp.ones(()) for u in units}
    selected = frozenset(u for u in units if not u.refused)
    problem = Problem(traced.analysis, factors, {}, targets, selected, 1e-2, 1)
    return problem, [*traced.leaves, *jax.tree.leaves(batch)]


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_enough_to_trace(name):
    params, apply_fn, batch = MODELS[name]()
    layers = jaxinit.trace_layers(params, apply_fn, batch)
    shapes = jax.eval_shape(lambda: (params, batch))
    abstract = jaxinit.trace_layers(shapes[0], apply_fn, shapes[1])
    assert [layer.to_dict() for layer in layers] == [layer.to_dict() for layer in abstract]
    assert layers.unvisited == ()
    assert len(layers) > 0
    assert all(layer.note is None for layer in layers)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARER else name for name in MODELS]
)
def test_lsuv(name):
    params, apply_fn, batch = MODELS[name]()

    @jax.jit
    def everything(params, batch):
        new, report = jaxinit.lsuv(params, apply_fn, batch, return_report=True)
        once = jaxinit.lsuv(params, apply_fn, batch, method="fused", orthonormalize=False, where="*")
        problem, values = problem_of(params, apply_fn, batch)
        evaluated, _ = problem.evaluation(frozenset()).run(values, {})
        after = measured(*problem_of(new, apply_fn, batch))
        return new, report, list(after.values()), evaluated, jax.tree.leaves(apply_fn(once, batch))

    new, report, after, evaluated, fresh = everything(params, batch)

    assert jax.tree.structure(new) == jax.tree.structure(params)
    for old, changed in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        assert (old.shape, old.dtype) == (changed.shape, changed.dtype)
        if jnp.issubdtype(changed.dtype, jnp.inexact):
            assert bool(jnp.all(jnp.isfinite(changed)))

    half = name == "linen_half"
    for std, path, note in zip(after, report.paths, report.notes, strict=True):
        if "not reached" in str(report.problems().get(path)):  # the branch that is not taken
            continue
        if "the state of a recurrence" in note:
            assert float(report.scale[report.paths.index(path)]) == 1
            continue
        # Weights that are used once are exact; shared ones are refined to the tolerance.
        np.testing.assert_allclose(std, 1, atol=1e-2 if "shared" in note or half else 1e-3, err_msg=path)

    # What the evaluation computes is what the new parameters compute.
    for a, b in zip(evaluated, fresh, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=(5e-2 if half else 2e-5) * max(1.0, float(np.abs(b).max())))
