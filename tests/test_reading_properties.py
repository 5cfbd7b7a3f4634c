"""Properties of reading: random programs, whose layers are known by construction, against finite evaluation.

Every claim is checked by independent computations: fans by evaluating the contraction on ones, linearity by scaling a
region and running the program, and what `lsuv` and `initialize` promise by measuring marked values with an interpreter
of the tests' own (`helpers.interpreter`). The library's own measurements are only compared with these.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.interpreter import evaluate
from helpers.programs import FEATURES, UNCHECKED, Program, Weight, programs, reference_activation
from hypothesis import given
from hypothesis import strategies as st

import jaxinit

NOT_YET: dict[str, frozenset[str]] = {}
"""Property → features of programs that it does not hold for yet."""


NOT_YET_TOGETHER: dict[str, frozenset[frozenset[str]]] = {}
"""Property → features that it holds for, but not for all of these in one program."""

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "center": {"center": True},
    "channel": {"statistic": "channel"},
    "scan": {"method": "scan"},
    "verify": {"verify": True},
    "as they are": {"orthonormalize": False},
    "center by channel": {"center": True, "statistic": "channel"},
}
"""Name → options of `lsuv`."""


def profile(max_examples: int) -> Callable[[Any], Any]:
    """Settings under which a run draws the same programs every time."""
    return hypothesis.settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def applies(name: str, program: Program) -> bool:
    """Whether a property is expected to hold for a program."""
    together = NOT_YET_TOGETHER.get(name, frozenset())
    return not program.features & left_out(name) and not any(group <= program.features for group in together)


def left_out(*properties: str) -> frozenset[str]:
    return frozenset().union(*(NOT_YET.get(name, frozenset()) for name in properties))


@pytest.fixture(autouse=True)
def room_for_programs():
    """Forgets compiled programs before they fill the process: each takes four of the 65,530 maps that Linux allows."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


# What a table of layers says.


def rows_of(weight: Weight, layers: Any) -> list[Any]:
    """The rows of a weight."""
    return [row for row in layers if row.path in weight.leaves]


def check_listed(program: Program, layers: Any) -> None:
    """Each leaf that is a weight is a layer or is named with a reason, and no other leaf is a layer."""
    named = {entry.path for entry in layers.unvisited if entry.reason}
    for weight in program.weights:
        for leaf in weight.leaves:
            assert leaf in named or any(leaf in row.paths for row in layers), f"{leaf} is neither listed nor named"
    weights = {leaf for weight in program.weights for leaf in weight.leaves}
    others = [row.path for row in layers if not weights.issuperset(row.paths)]
    assert not others, f"listed as layers: {others}"


def check_is_layer(program: Program, layers: Any) -> None:
    """Each leaf that is a weight is a layer, and says so itself."""
    for weight in program.weights:
        for leaf in weight.leaves:
            rows = [row for row in layers if leaf in row.paths]
            assert rows, f"{leaf} is no layer"
            assert all(row.note is None for row in rows), [row.note for row in rows]


def fans_by_ones(weight: Weight) -> tuple[float, float]:
    """The result of a product for all-ones: an output counts its inputs, and a gradient the outputs of an input."""
    product, made = weight.product(), np.ones(weight.made_shape, np.float32)
    data = np.ones(weight.data_shape, np.float32)
    counted = jnp.max(product(made, data))
    gradient = jnp.max(jax.grad(lambda x: jnp.sum(product(made, x)))(data))
    return float(counted), float(gradient)


def check_fans(program: Program, layers: Any) -> None:
    """Fans are those of evaluation on ones."""
    for weight in program.weights:
        fan_in, fan_out = fans_by_ones(weight)
        for row in rows_of(weight, layers):
            assert row.fan_in == fan_in, f"fan-in of {row.name}: {row.fan_in}, counted {fan_in}"
            if weight.fan_out is not False:
                wanted = fan_out if weight.fan_out is True else weight.fan_out
                assert row.fan_out == wanted, f"fan-out of {row.name}: {row.fan_out}, counted {wanted}"


def check_biases(program: Program, layers: Any) -> None:
    """A layer has a bias exactly if parameters are added to its product."""
    for weight in program.weights:
        for row in rows_of(weight, layers):
            assert weight.has_bias in (UNCHECKED, row.has_bias), f"{row.name}: has_bias={row.has_bias}"


GRID = np.linspace(-3.1, 3.0, 40, dtype=np.float32)


def check_activations(program: Program, layers: Any) -> None:
    """The activation computes what the program does, and has its name."""
    for weight in program.weights:
        for row in rows_of(weight, layers):
            name = weight.activation
            if name == UNCHECKED:
                continue
            if name is None:
                assert row.activation is None, f"{row.name}: {row.activation}, but none follows"
                continue
            assert row.activation is not None, f"{row.name}: no activation, but {name} follows"
            function, found = reference_activation(name), row.activation(GRID)
            if weight.shift and np.allclose(found, function(GRID + weight.shift), rtol=1e-3, atol=1e-4):
                continue  # the number counts as part of the function, which is then no named one
            np.testing.assert_allclose(found, function(GRID), rtol=1e-3, atol=1e-4, err_msg=name)
            assert row.activation.name.startswith(name.removesuffix("_exact")), f"{row.activation} for {name}"


def check_structure(program: Program, layers: Any) -> None:
    """How often a weight is used, and how many slices a loop runs over."""
    for weight in program.weights:
        rows = rows_of(weight, layers)
        for row in rows:
            uses = row.stacked * row.uses * sum(len(x.paths) for x in rows) // len(weight.leaves)
            assert uses == weight.stacked * weight.uses, f"{row.name}: stacked {row.stacked}, uses {row.uses}"


CHECKS = {
    "listed": check_listed,
    "is a layer": check_is_layer,
    "fans": check_fans,
    "biases": check_biases,
    "activations": check_activations,
    "structure": check_structure,
}
"""Property of the table → its check."""


def check_linear(program: Program, layers: Any) -> None:
    """Multiplying the region of a layer multiplies its product, and so no region is too large or too small."""
    params, batch = program.params(), program.batch()
    _, before = evaluate(program.marked, params, batch)
    for weight in program.weights:
        rows = rows_of(weight, layers)
        if not rows or not weight.reached:
            continue
        for turn, index in enumerate(weight.order):
            scaled = dict(params)
            for row in rows:
                region = [slice(*bounds) for bounds in row.region]
                if weight.stacked > 1:
                    if not row.region[0][0] <= index < row.region[0][1]:
                        continue
                    region[0] = slice(index, index + 1)
                for path in row.paths:
                    scaled[path] = scaled[path].at[tuple(region)].multiply(1.7)
            _, after = evaluate(program.marked, scaled, batch)
            # A turn of a loop does not change what came before it; of a shared weight only the first use is so.
            old, new = before[f"{weight.name} product"][turn], after[f"{weight.name} product"][turn]
            np.testing.assert_allclose(new, 1.7 * old, rtol=1e-3, atol=1e-4 * np.abs(old).max(), err_msg=weight.name)


# What LSUV does.


def run_lsuv(program: Program, **options: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lsuv leaves all parameters unchanged")
        return jaxinit.lsuv(program.params(), program.apply, program.batch(), return_report=True, **options)


def check_lsuv(program: Program, options: dict[str, Any], new: Any, report: Any, layers: Any) -> None:
    """Every pre-activation has unit variance, measured here; the report says what is measured here; the rest stays."""
    outputs, seen = evaluate(program.marked, new, program.batch())
    assert np.all(np.isfinite(outputs))
    for weight in program.weights:
        entries = [i for i, row in enumerate(layers) if row.path in weight.leaves]
        for i in entries:
            assert report.paths[i] == layers[i].name
            _check_entry(weight, options, layers[i], report, i, seen)
        named = {path for path, reason in report.unvisited if reason}
        if not entries:
            assert set(weight.leaves) <= named, f"{weight.name} is neither scaled nor named"
    _check_leaves(program, options, new, report, layers)


def _check_entry(weight: Weight, options: dict[str, Any], row: Any, report: Any, i: int, seen: Any) -> None:
    flags, after = np.asarray(report.flags[i]), np.asarray(report.after[i])
    if not weight.reached:
        assert np.all(flags != 0), f"{row.name} is not reached, and the report does not say so"
        return
    outputs, products = seen[f"{weight.name} output"], seen[f"{weight.name} product"]
    if any(np.std(y) <= 1e-3 * np.abs(y).max() + 1e-12 for y in products):
        return  # activations died
    if weight.stacked == 1:
        by_slice = [np.stack(outputs)]
    else:
        start, stop = row.region[0]
        by_slice = [outputs[weight.order.index(i)][None] for i in range(start, stop)]
    assert after.size % len(by_slice) == 0, f"{row.name}: {after.shape} numbers for {len(by_slice)} slices"
    size = after.size // len(by_slice)
    kept = _kept_axes(weight, options, row, report, i, by_slice[0].shape, size)
    if kept is None:
        return
    axes = tuple(a for a in range(by_slice[0].ndim) if a not in kept)
    measured = np.stack([np.std(y, axes).reshape(-1) for y in by_slice])
    reported = after.reshape(len(by_slice), -1)
    # The order of channels within a slice is that of the leaf, which the program may change.
    np.testing.assert_allclose(
        np.sort(measured), np.sort(reported), rtol=3e-3, atol=1e-3, err_msg=f"report: {row.name}"
    )
    if report.notes[i].startswith("skipped"):
        return
    shared = weight.uses > 1 or options.get("method") == "scan"
    if weight.uses > 1 and np.any(flags):
        return  # not converged, and says so
    assert not np.any(flags), f"{row.name}: {report.problems()}"
    np.testing.assert_allclose(measured, 1, rtol=1.1e-2 if shared else 2e-3, err_msg=f"std of {row.name}")
    if options.get("center") and "not centred" not in report.notes[i] and weight.channels is not None:
        kept = [a + 1 for a in (*(weight.members or ()), *weight.channels)]
        axes = tuple(a for a in range(by_slice[0].ndim) if a not in kept)
        means = np.stack([np.mean(y, axes) for y in by_slice])
        np.testing.assert_allclose(means, 0, atol=2e-3, err_msg=f"mean of {row.name}")


def _kept_axes(
    weight: Weight, options: dict[str, Any], row: Any, report: Any, i: int, shape: tuple[int, ...], size: int
) -> list[int] | None:
    """The axes of the outputs, uses first, that should have separate scales; None if that is not specified."""
    one = "one scale for the whole weight" in report.notes[i]
    if weight.members is None or (options.get("statistic") == "channel" and weight.channels is None):
        return [] if size == 1 else None
    kept = [] if one else [a + 1 for a in weight.members]
    if options.get("statistic") == "channel" and not one:
        kept += [a + 1 for a in weight.channels or ()]
    wanted = int(np.prod([shape[a] for a in kept]))
    assert size == wanted, f"{row.name}: {size} scales a slice, {wanted} are due"
    return kept


def _check_leaves(program: Program, options: dict[str, Any], new: Any, report: Any, layers: Any) -> None:
    """Only weights are scaled, and biases moved; without orthonormalization a weight stays a multiple of itself."""
    old = program.params()
    weights = {leaf for weight in program.weights for leaf in weight.leaves}
    for path, leaf in old.items():
        if path not in weights and not options.get("center"):
            np.testing.assert_array_equal(new[path], leaf, err_msg=path)
        rows = [i for i, row in enumerate(layers) if row.path == path]
        if path in weights and options.get("orthonormalize") is False and len(rows) == 1:
            scale = np.asarray(report.scale[rows[0]])
            if scale.size == 1:
                np.testing.assert_allclose(new[path], leaf * scale.reshape(()), rtol=1e-4, err_msg=path)


# What `initialize` does.

SIMPLE = frozenset(
    feature
    for feature in FEATURES
    if feature.startswith(("activation:", "layer:", "weight:"))
    or feature in ("block: jit", "block: checkpoint", "block: scan", "block: fori", "block: unrolled-stack")
    or feature in ("move: rev", "move: roll", "move: swap-halves", "move: index")
)
"""Features of programs for which the second moment of every pre-activation is known."""


def second_moment(name: str | None) -> float:
    """E[f(z)²] for standard normal z, by a sum over a fine grid."""
    z = np.linspace(-8, 8, 4001, dtype=np.float32)
    density = np.exp(-(z.astype(np.float64) ** 2) / 2)
    return float(np.sum(np.asarray(reference_activation(name)(z), np.float64) ** 2 * density) / np.sum(density))


def check_initialize(program: Program, change: Callable[[Any], Any] = lambda leaf: leaf) -> None:
    """E[y²] = 1 for every product y, for any input."""
    ratios: dict[str, list[float]] = {weight.name: [] for weight in program.weights}
    params, batch = program.params(), program.batch()
    draw = jax.jit(lambda key: jaxinit.initialize(key, params, program.apply, batch, return_report=True))

    def measure(seed: int, count: int) -> None:
        for key in jax.random.split(jax.random.key(seed), count):
            new, report = draw(key)
            _, seen = evaluate(program.marked, jax.tree.map(change, new), batch)
            named = {row.path for row in report.rows if "kept" in f"{row.init} {row.reason}"}
            for weight in program.weights:
                if set(weight.leaves) <= named or weight.activation == UNCHECKED:
                    continue
                product = np.stack(seen[f"{weight.name} product"])
                ratios[weight.name].append(float(np.mean(np.abs(product) ** 2)))

    measure(program.seed, 3)
    # 64 units of each of 3 draws: the mean square of a Gaussian row is off by √(2/192) = .1.
    if all(not found or 0.67 < np.mean(found) < 1.5 for found in ratios.values()):
        return
    # Where a few numbers make a whole weight, as a circulant one, a draw says little, and errors of layers multiply.
    measure(program.seed + 100, 60)
    for name, found in ratios.items():
        mean, error = np.mean(found or [1.0]), np.std(found or [0.0]) / max(len(found), 1) ** 0.5
        unlikely = abs(mean - 1) > 3 * error
        assert not unlikely or 0.67 < mean < 1.5, f"{name}: second moment is {mean:.3g} ± {error:.2g} of what is due"


# The properties.


def check_reading(program: Program, layers: Any) -> None:
    for name, check in CHECKS.items():
        if applies(name, program):
            check(program, layers)


def trace(program: Program) -> Any:
    return jaxinit.trace_layers(program.params(), program.apply, program.batch())


def combinations(*properties: str, only: frozenset[str] = FEATURES) -> list[tuple[str, ...]]:
    """Features that a program is to have, one of each kind, so that every feature is in one of few programs."""
    kinds: dict[str, list[str]] = {}
    for feature in sorted(only - left_out(*properties)):
        kinds.setdefault(feature.split(":")[0], []).append(feature)
    count = max(map(len, kinds.values()))
    groups = {group for name in properties for group in NOT_YET_TOGETHER.get(name, ())}
    found = []
    for i in range(count):
        focus = [names[i % len(names)] for names in kinds.values()]
        for group in groups:
            if group <= set(focus):
                focus.remove(max(group))
        found.append(tuple(focus))
    return found


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_layers_fans_biases_and_activations_are_those_of_construction(feature):
    @profile(2)
    @given(programs(focus=[feature], leave_out=left_out(*CHECKS) - {feature}))
    def run(program):
        check_reading(program, trace(program))

    run()


@pytest.mark.parametrize("focus", combinations("linear"), ids=str)
def test_a_layer_is_linear_in_its_region(focus):
    @profile(1)
    @given(programs(focus=focus, leave_out=left_out("linear"), max_layers=1))
    def run(program):
        check_linear(program, trace(program))

    run()


def lsuv_holds(program: Program, options: dict[str, Any]) -> None:
    hypothesis.assume(applies("lsuv", program))
    new, report = run_lsuv(program, **options)
    check_lsuv(program, options, new, report, trace(program))


@pytest.mark.parametrize("focus", combinations("lsuv"), ids=str)
def test_pre_activations_have_unit_variance_after_lsuv(focus):
    @profile(1)
    @given(programs(focus=focus, leave_out=left_out("lsuv"), max_layers=1))
    def run(program):
        lsuv_holds(program, {})

    run()


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_of_lsuv_keeps_its_promise(option):
    @profile(3)
    @given(programs(leave_out=left_out("lsuv"), max_layers=2))
    def run(program):
        lsuv_holds(program, OPTIONS[option])

    run()


@pytest.mark.parametrize("focus", combinations("initialize", only=SIMPLE), ids=str)
def test_initialize_keeps_the_second_moment(focus):
    @profile(1)
    @given(programs(focus=focus, leave_out=left_out("initialize"), only=SIMPLE, wide=True, max_layers=1))
    def run(program):
        hypothesis.assume(applies("initialize", program))
        check_initialize(program)

    run()


# With time: every feature by itself, and among others.


@pytest.mark.slow
@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_reading_of_many_programs(feature):
    @profile(100)
    @given(programs(focus=[feature], leave_out=left_out(*CHECKS) - {feature}))
    def run(program):
        check_reading(program, trace(program))

    run()


@pytest.mark.slow
@pytest.mark.parametrize("feature", sorted(FEATURES - left_out("lsuv")))
def test_lsuv_of_many_programs(feature):
    @profile(20)
    @given(programs(focus=[feature], leave_out=left_out("lsuv")), st.sampled_from(sorted(OPTIONS)))
    def run(program, option):
        check_linear(program, trace(program))
        lsuv_holds(program, OPTIONS[option])

    run()


@pytest.mark.slow
@pytest.mark.parametrize("feature", sorted(SIMPLE - left_out("initialize")))
def test_initialize_of_many_programs(feature):
    @profile(20)
    @given(programs(focus=[feature], leave_out=left_out("initialize"), only=SIMPLE, wide=True))
    def run(program):
        hypothesis.assume(applies("initialize", program))
        check_initialize(program)

    run()


# These tests can fail.


def is_caught(check: Callable[[Program], None], **grammar: Any) -> bool:
    """Whether a check fails for one of a few programs."""

    @hypothesis.settings(profile(10), phases=[hypothesis.Phase.generate])
    @given(programs(**grammar))
    def run(program):
        check(program)

    try:
        run()
    except AssertionError:
        return True
    return False


def changed(layers: Any, **fields: Callable[[Any], Any]) -> Any:
    """The table with fields of every row replaced by functions of the row."""
    rows = (dataclasses.replace(row, **{name: make(row) for name, make in fields.items()}) for row in layers)
    return dataclasses.replace(layers, layers=tuple(rows))


WRONG_READERS = {
    "fans the other way round": lambda x: changed(x, fan_in=lambda r: r.fan_out, fan_out=lambda r: r.fan_in),
    "fans off by one axis": lambda x: changed(x, fan_in=lambda r: r.fan_in * r.shape[-1]),
    "no layer is listed": lambda x: dataclasses.replace(x, layers=()),
    "no layer has a bias": lambda x: changed(x, has_bias=lambda r: False),
    "no layer has an activation": lambda x: changed(x, activation=lambda r: None),
    "a weight is used once": lambda x: changed(x, uses=lambda r: 1, stacked=lambda r: 1),
    "activations are those of other layers": lambda x: changed(
        x, activation=lambda r: next((other.activation for other in x if other.activation != r.activation), None)
    ),
}


@pytest.mark.parametrize("wrong", WRONG_READERS)
def test_a_wrong_reader_is_caught(wrong):
    grammar = {"leave_out": left_out(*CHECKS)}
    assert not is_caught(lambda program: check_reading(program, trace(program)), **grammar)
    assert is_caught(lambda program: check_reading(program, WRONG_READERS[wrong](trace(program))), **grammar)


def test_a_region_that_is_too_small_is_caught():
    def smaller(row):
        return tuple((start, max(stop - 1, start + 1)) for start, stop in row.region)

    grammar = {"leave_out": left_out("linear"), "max_layers": 1}
    assert is_caught(lambda program: check_linear(program, changed(trace(program), region=smaller)), **grammar)


@pytest.mark.parametrize("wrong", ["scale of another leaf", "bias moved", "report"])
def test_a_wrong_lsuv_is_caught(wrong):
    def check(program: Program) -> None:
        new, report = run_lsuv(program)
        if wrong == "report":
            report = dataclasses.replace(report, after=tuple(1.01 * x for x in report.after))
        paths = [path for path in new if path.startswith("b") == (wrong == "bias moved")]
        for path in paths if wrong != "report" else ():
            new = new | {path: 1.5 * new[path]}
        check_lsuv(program, {}, new, report, trace(program))

    assert is_caught(check, leave_out=left_out("lsuv"), max_layers=1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_wrong_weights_of_initialize_are_caught(factor):
    def check(program: Program) -> None:
        check_initialize(program, lambda leaf: factor * leaf)

    grammar = {"leave_out": left_out("initialize"), "only": SIMPLE, "wide": True, "max_layers": 1}
    assert is_caught(check, **grammar)


def test_the_interpreter_agrees_with_jax():
    @profile(10)
    @given(programs())
    def run(program):
        params, batch = program.params(), program.batch()
        outputs, seen = evaluate(program.marked, params, batch)
        wanted = program.apply(params, batch)
        np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5 * (1 + np.abs(wanted).max()))
        assert {f"{weight.name} output" for weight in program.weights if weight.reached} <= set(seen)

    run()


def test_programs_obey_strict_promotion_of_ranks():
    @profile(50)
    @given(programs())
    def run(program):
        with jax.numpy_rank_promotion("raise"):
            jax.eval_shape(program.apply, program.params(), program.batch())

    run()
