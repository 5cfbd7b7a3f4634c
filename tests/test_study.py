"""`study`: it trains as a plain loop does, seeds are independent to the last bit, starts are what they are called."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.studies import (
    DATA,
    FEATURES,
    KEY,
    PARAMS,
    WIDTH,
    N,
    X,
    apply_fn,
    fresh,
    loss_fn,
    momentum,
    planted,
    study,
    usual,
)

import jaxinit
from jaxinit import schemes
from jaxinit._study import _programs
from jaxinit._study._programs import segment
from jaxinit._study._records import as_stored, from_stored
from jaxinit._study._starts import as_draw
from jaxinit._study._train import START, own_key


def test_a_study_trains_as_a_loop_does():
    result = usual()
    assert result.losses.shape == (2, 2, 7, 9)
    for seed, rate in ((0, 0), (6, 1)):
        key = jax.random.fold_in(KEY, seed)
        params = fresh(jax.random.fold_in(key, 0))
        full_loss = functools.partial(lambda order, p, b: loss_fn(p | {"order": order}, b), params.pop("order"))
        optimizer = momentum(result.learning_rates[rate])
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(params)
        losses = []
        for step in range(9):
            epoch, at = divmod(step, N // 32)
            rows = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), epoch), N)
            batch = tuple(x[rows[32 * at : 32 * (at + 1)]] for x in DATA)
            loss, gradients = jax.value_and_grad(full_loss)(params, batch)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradients, state, params)
                params = optax.apply_updates(params, updates)
            losses.append(float(loss))
        np.testing.assert_allclose(result.losses[0, rate, seed], losses, rtol=1e-4)


def test_metrics_are_measured_before_and_after():
    result = usual()
    assert {name: values.shape for name, values in result.initial.items()} == {
        "loss": (2, 7),
        "a": (2, 7, FEATURES, WIDTH),
        "error": (2, 7),
    }
    first = fresh(own_key(KEY, 2, START))
    np.testing.assert_allclose(result.initial["a"][0, 2], first["a"], rtol=1e-5)
    np.testing.assert_allclose(result.initial["error"][0, 2], loss_fn(first, DATA), rtol=1e-5)
    assert result.final["error"].shape == (2, 2, 7)
    assert (result.final["error"] < result.initial["error"][:, None]).all()
    np.testing.assert_allclose(result.final["loss"], result.losses[..., -1])


def test_equal_starts_have_equal_runs():
    result = usual()
    np.testing.assert_array_equal(result.losses[0], result.losses[1])
    (comparison,) = result.comparisons()
    assert (comparison.difference, comparison.p, comparison.p_holm) == (0, 1, 1)


def test_numbers_of_a_seed_depend_neither_on_other_seeds_nor_on_devices():
    few = study({"fresh": fresh}, seeds=[5, 2, 0], devices=jax.devices()[1:3])
    np.testing.assert_array_equal(few.losses[0], usual().losses[0][:, [5, 2, 0]])


def test_memory_bounds_the_size_of_programs(monkeypatch):
    sizes, fitting = [], _programs.Compiler._fitting

    def watched(self, params):
        made = fitting(self, params)
        sizes.append(made.size)
        return made

    monkeypatch.setattr(_programs.Compiler, "_fitting", watched)
    monkeypatch.setattr(_programs, "_CPU_CHUNK", 7)
    monkeypatch.setattr(_programs, "_free_bytes", lambda device: 5e3)
    result = study({"fresh": fresh}, seeds=7)
    assert 1 <= sizes[0] < 7
    np.testing.assert_allclose(result.losses[0], usual().losses[0], rtol=1e-4)


def test_keys_of_rbg_depend_on_what_runs_beside_and_are_warned_of():
    key = jax.random.key(0, impl="rbg")
    many = jax.jit(jax.vmap(lambda seed: fresh(own_key(key, seed, START))["a"]))
    beside_0, beside_2 = (many(jnp.array(seeds))[1] for seeds in ([0, 1], [2, 1]))
    assert (beside_0 != beside_2).any()
    refused = pytest.raises(ValueError, match="of no name")
    with pytest.warns(UserWarning, match="depend on the seeds that run beside it"), refused:
        study([fresh], key=key, metric="of no name")
    with refused:  # without a warning: nothing runs beside
        study([fresh], key=key, metric="of no name", chunk=1)


def drawn(start, params=PARAMS, program=apply_fn, data=DATA):
    return as_draw("start", start, params, program)(KEY, data)


def test_starts_are_what_they_are_called():
    for name in "abc":
        np.testing.assert_array_equal(drawn(fresh)[name], fresh(KEY)[name])
        expected = jaxinit.initialize(KEY, PARAMS, apply_fn, DATA, "torch_default")[name]
        np.testing.assert_array_equal(drawn("torch_default")[name], expected)
        np.testing.assert_array_equal(drawn(schemes.torch_default())[name], expected)
    constant = drawn(jaxinit.constant(0.5))
    assert (constant["a"] == 0.5).all()
    assert (constant["c"] == 0.5).all()
    assert (constant["b"] == 0).all()


def test_methods_change_what_another_start_drew():
    def std(params):
        return jnp.std(DATA[0][:, params["order"]] @ params["a"] + params["b"][None])

    flax = drawn("flax_default")
    assert std(drawn(jaxinit.lsuv)) == pytest.approx(1, rel=1e-4)
    np.testing.assert_array_equal(drawn(jaxinit.lsuv)["a"], jaxinit.lsuv(flax, apply_fn, DATA)["a"])
    scale = functools.partial(jaxinit.lsuv, target=3.0, orthonormalize=False)
    both = drawn((fresh, scale, lambda params, apply_fn, batch: params | {"b": params["b"] + 1}))
    assert std(both) == pytest.approx(3, rel=1e-4)
    assert (both["b"] == 1).all()
    ratio = both["a"] / fresh(KEY)["a"]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_leaves_without_a_start_are_those_of_the_parameters():
    init = lambda key: PARAMS | {"order": jax.random.permutation(key, FEATURES)}  # noqa: E731
    np.testing.assert_array_equal(drawn("auto", init)["order"], init(KEY)["order"])


def test_an_initializer_is_for_kernels_alone():
    def model(params, tokens):
        h = params["table"][tokens] @ (params["v"] / jnp.linalg.norm(params["v"], axis=0)[None] * params["g"][None])
        return h @ params["readout"] + params["bias"][None]

    shape = jax.ShapeDtypeStruct
    params = {"table": shape((9, 4), jnp.float32), "v": shape((4, 5), jnp.float32), "g": shape((5,), jnp.float32)}
    params |= {"readout": shape((5, 1), jnp.float32), "bias": shape((1,), jnp.float32)}
    found = drawn(jaxinit.constant(0.25), params, model, jnp.arange(9))
    assert (found["readout"] == 0.25).all()
    np.testing.assert_allclose(found["g"], 1, rtol=1e-6)  # which gives the normalised kernel the variance 1 / fan-in
    assert (found["bias"] == 0).all()
    assert len(np.unique(found["table"])) == 36


def test_noise_of_the_loss_is_new_in_every_step_and_the_same_for_every_start():
    result = jaxinit.study(
        {"a": fresh, "b": lambda key: jax.tree.map(lambda x: 2 * x, fresh(key))},
        PARAMS,
        lambda params, batch, key: jax.random.uniform(key) + 0 * loss_fn(params, batch),
        DATA,
        optimizer=optax.sgd,
        learning_rates=[0.1],
        steps=4,
        seeds=3,
        stochastic=True,
        devices=jax.devices()[:1],
        progress=False,
    )
    np.testing.assert_array_equal(result.losses[0], result.losses[1])
    assert len(np.unique(result.losses[0])) == 12


def test_diverged_runs_are_counted_and_compared_as_the_worst():
    result = study(
        {"good": fresh, "bad": lambda key: jax.tree.map(lambda x: 1000 * x, fresh(key))},
        seeds=6,
        steps=30,
        test_data=DATA,
    )
    assert result.metric == "test_loss"
    assert result.diverged()[1].all()
    assert not result.diverged()[0].any()
    good, bad = result.summary()
    assert (good.finite, good.diverged, bad.finite, bad.diverged) == (6, 0, 0, 1)
    assert math.isnan(bad.mean)
    (comparison,) = result.comparisons()
    assert comparison.p == 2 / 2**6
    assert result.best() == "good"
    for text in (str(result), result._repr_html_()):
        assert "100%" in text
        assert "best" in text


def test_no_seed_has_a_say_in_its_own_rate():
    noise = np.random.default_rng(0).normal(size=(40, 12, 16))
    result = planted(noise)
    # With no difference between rates, the best of twelve looks better than it is by about half a deviation.
    optimistic = noise.mean(axis=2).max(axis=1)
    assert optimistic.mean() > 0.3
    assert abs(result.values().mean()) < 4 / math.sqrt(40 * 16)


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_rate_is_chosen(maximize):
    scores = np.array([[[0.0, 1, 0, 1], [5, 6, 7, 6], [9, 9, np.nan, np.nan]]])
    result = planted(scores if maximize else -scores, maximize=maximize)
    assert result.chosen_rates().tolist() == [[1, 1, 1, 1]]
    assert result.summary()[0].learning_rates == (10.0,)


def test_one_lucky_seed_does_not_choose_for_the_others():
    result = planted(np.array([[[0.9, 0.9, 0.9], [0.99, 0.8, 0.8]]]))
    assert result.chosen_rates().tolist() == [[0, 0, 0]]


def test_rates_at_which_runs_diverge_are_not_chosen():
    scores = np.array([[[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]])
    curves = np.ones((1, 2, 3, 4), np.float32)
    curves[0, 1, :, 1:] = np.nan  # the metric of what such parameters predict may still be a number
    assert planted(scores, losses=curves).chosen_rates().tolist() == [[0, 0, 0]]


def test_divergence_is_what_it_is_said_to_be():
    curves = np.ones((1, 1, 5, 4), np.float32)
    curves[0, 0, 1, 1] = np.nan
    curves[0, 0, 2, -1] = 2.1
    curves[0, 0, 3] = -1
    curves[0, 0, 4] = [-1, 0, 0, 0.1]
    scores = np.zeros((1, 1, 5))
    assert planted(scores, losses=curves).diverged().tolist() == [[[False, True, True, False, True]]]
    scores[0, 0, 0] = np.inf
    assert planted(scores, losses=curves).diverged()[0, 0, 0]


def test_seeds_needed_and_comparisons_with_a_reference():
    random = np.random.default_rng(0)
    result = planted(random.normal(size=(3, 1, 20)))
    n = result.seeds_needed(1.0, "s0", "s1")
    spread = (result.values()[0] - result.values()[1]).std(ddof=1)
    assert n == pytest.approx(7.9 * spread**2 / 0.955, rel=0.3)
    assert result.seeds_needed(1.0, "s0", "s1", comparisons=10) > n
    assert [(c.first, c.second) for c in result.comparisons("s1")] == [("s0", "s1"), ("s2", "s1")]
    with pytest.raises(ValueError, match="positive number"):
        result.seeds_needed(0.0, "s0", "s1")
    with pytest.raises(ValueError, match=r"one of \['s0', 's1', 's2'\]"):
        result.comparisons("s9")


def test_results_are_data():
    result = planted(np.random.default_rng(0).normal(size=(3, 2, 4)))
    found = json.loads(json.dumps(result.to_dict()))
    assert [row["start"] for row in found["summary"]] == ["s0", "s1", "s2"]
    assert np.shape(found["values"]["s0"]) == (2, 4)
    text = str(result)
    assert "s2" in text
    assert "With 4 seeds no p below 0.38 is possible; at least 7 seeds" in text
    assert "best for all the others" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seeds": 0}, ValueError, "seeds must be 1 or more"),
        ({"seeds": [1, 1]}, ValueError, "different integers"),
        ({"seeds": [-1]}, ValueError, "0 or more"),
        ({"learning_rates": 0.1}, TypeError, "sequence of at least one number"),
        ({"learning_rates": [0.1, 0.1]}, ValueError, "different from one another"),
        ({"steps": 0}, ValueError, "steps must be 1 or more"),
        ({"batch_size": N + 1}, ValueError, f"number of samples, {N}"),
        ({"optimizer": optax.sgd(0.1)}, TypeError, "called with each of learning_rates"),
        ({"key": 0}, TypeError, "takes a key"),
        ({"chunk": 0}, ValueError, "chunk must be 1 or more"),
        ({"metric": "accuracy"}, ValueError, "one of .'loss'.*got 'accuracy'"),
        ({"metrics_fn": lambda p, x: jnp.float32(1)}, ValueError, "maximize=True or maximize=False"),
        (
            {"metrics_fn": lambda p, x: {"u": jnp.float32(1), "v": jnp.float32(1)}},
            ValueError,
            "choose one to compare by",
        ),
        ({"metrics_fn": lambda p, x: {"loss": jnp.float32(1)}}, ValueError, "call it something else"),
        ({"stochastic": True, "test_data": DATA}, ValueError, "without noise"),
        (
            {"metrics_fn": "acc"},
            TypeError,
            "metrics_fn must be a function of .params, test_data.*metric= says.*, got 'acc'",
        ),
        ({"metrics_fn": lambda p, x: {"a": None}}, TypeError, "its 'a' is None"),
        ({"apply_fn": "model"}, TypeError, "apply_fn must be a function"),
        ({"test_data": "digits"}, TypeError, "test_data must be made of arrays of numbers, but test_data is 'digits'"),
        ({"test_data": ()}, ValueError, "test_data must hold at least one array"),
        ({"devices": []}, TypeError, "at least one device, such as jax.devices"),
        ({"devices": "cpu"}, TypeError, "devices must be a sequence"),
        ({"path": 3}, TypeError, "path must be the name of a file.*got 3"),
        ({"path": "."}, ValueError, "is a directory"),
        ({"seeds": -1}, ValueError, "seeds must be 1 or more"),
        ({"seeds": "12"}, TypeError, "a number of seeds, or a sequence"),
        ({"seeds": {1, 2}}, TypeError, "a number of seeds, or a sequence"),
        ({"seeds": []}, ValueError, "one or more different integers"),
        ({"learning_rates": []}, TypeError, "at least one number"),
        ({"learning_rates": ["fast"]}, TypeError, "a learning rate must be a real number, got 'fast'"),
        ({"learning_rates": np.ones((2, 2))}, TypeError, "a learning rate must be a real number"),
        ({"learning_rates": [-0.1]}, ValueError, "zero or more"),
        ({"optimizer": lambda rate: rate}, TypeError, "must return an Optax transformation"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
        ({"progress": "bar"}, TypeError, "progress must be True or False"),
        ({"stochastic": 1}, TypeError, "stochastic must be True or False"),
        ({"maximize": "yes"}, TypeError, "maximize must be True or False"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        study([fresh], **options)


@pytest.mark.parametrize(
    ("starts", "error", "message"),
    [
        ({}, ValueError, "at least one start"),
        ("auto", TypeError, "a mapping from names to starts, or a sequence"),
        ([fresh, fresh], ValueError, "same name"),
        (["best"], ValueError, "one of the schemes"),
        ([3], TypeError, "must be a scheme or its name"),
        ([jaxinit.he_normal], TypeError, r"call it: he_normal\(\)"),
        ([(fresh, fresh)], TypeError, "tuple \\(start, method"),
        ({"two": lambda a, b: a}, TypeError, "'two' must be a scheme"),
    ],
)
def test_starts_are_checked(starts, error, message):
    with pytest.raises(error, match=message):
        study(starts)


def test_all_samples_are_a_batch_where_there_are_fewer_than_64_and_the_user_names_no_size():
    data = jax.tree.map(lambda x: x[:20], DATA)
    options = {"optimizer": momentum, "learning_rates": [0.1], "steps": 1, "seeds": 1, "progress": False}
    result = jaxinit.study([fresh], PARAMS, loss_fn, data, **options)
    assert result.settings["batch_size"] == 20
    with pytest.raises(ValueError, match="at most the number of samples, 20, got 64"):
        jaxinit.study([fresh], PARAMS, loss_fn, data, batch_size=64, **options)


def test_data_and_loss_are_checked():
    options = {"optimizer": momentum, "learning_rates": [0.1], "steps": 1}
    with pytest.raises(ValueError, match=r"equally many samples.*'0': \(70, 4\), '1': \(3,\)"):
        jaxinit.study([fresh], PARAMS, loss_fn, (X, X[:3, 0]), **options)
    with pytest.raises(ValueError, match="equally many samples"):
        jaxinit.study([fresh], PARAMS, loss_fn, {}, **options)
    with pytest.raises(TypeError, match="data must be made of arrays of numbers, but data/0 is"):
        jaxinit.study([fresh], PARAMS, loss_fn, (np.array(["a", "b"]), np.ones(2)), batch_size=1, **options)
    for params, got in ((None, "None"), (3, "3"), ({}, "{}"), ({"a": "x"}, "'x' at 'a'")):
        with pytest.raises(TypeError, match=f"params must be a pytree of arrays.* got {got}"):
            jaxinit.study([fresh], params, loss_fn, DATA, **options)
    with pytest.raises(TypeError, match=r"loss_fn must be a function of .params, batch"):
        jaxinit.study([fresh], PARAMS, None, DATA, **options)
    with pytest.raises(ValueError, match="one floating-point number") as caught:
        jaxinit.study({"mine": fresh}, PARAMS, apply_fn, DATA, **options)
    assert any("'mine'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("steps", [1, 7, 100, 140, 997, 10_000])
def test_segments_are_few_and_even(steps):
    length = segment(steps)
    assert 1 <= steps / length <= 45
    assert steps % length == 0 or steps == 997


def test_leaves_of_any_kind_are_stored():
    leaves = [jax.random.split(KEY, 3), jnp.ones((3, 2), jnp.bfloat16), jnp.arange(3), jnp.ones((3, 2)) > 0]
    for leaf in leaves:
        like = jax.eval_shape(lambda x: x[0], leaf)
        stored = as_stored(leaf)
        assert stored.dtype.kind in "uifb"
        back = jnp.asarray(from_stored(stored, like))
        assert back.dtype == leaf.dtype
        np.testing.assert_array_equal(as_stored(back), stored)


@pytest.mark.slow
def test_numbers_are_the_same_on_eight_devices_for_every_kind_of_start():
    starts = ["auto", "orthogonal_critical", jaxinit.lsuv, jaxinit.he_normal(), (fresh, jaxinit.lsuv)]
    options = {"optimizer": optax.adam, "steps": 40, "seeds": 16, "metrics_fn": lambda p, x: {"out": apply_fn(p, x)}}
    one, eight = (study(starts, devices=jax.devices()[:n], **options) for n in (1, 8))
    np.testing.assert_array_equal(one.losses, eight.losses)
    np.testing.assert_array_equal(one.final["out"], eight.final["out"])
