"""`study`: any starts × seeds × learning rates on the user's model, in compiled programs that train seeds together."""

import contextlib
import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arrays import whole_array
from jaxinit._checks import check_flag, check_integer, check_number
from jaxinit._public import __version__
from jaxinit._study._metrics import as_metrics, chosen_metric
from jaxinit._study._options import (
    check_arrays,
    check_functions,
    check_loss,
    check_optimizer,
    check_params,
    check_path,
    device_list,
    rate_numbers,
    sample_count,
    seed_numbers,
    typed_key,
)
from jaxinit._study._processes import Processes
from jaxinit._study._programs import Compiler, Inputs, data_digest, program_digest
from jaxinit._study._progress import progress_bar
from jaxinit._study._records import Plan, Records
from jaxinit._study._result import StudyResult, result_of
from jaxinit._study._run import Runner
from jaxinit._study._starts import as_draw, named_starts, naming
from jaxinit._study._train import SEED, Training
from jaxinit._typing import Array


@jax.disable_jit(False)  # its programs are compiled ahead of time, which JAX refuses when jit is disabled
def study(
    starts: Mapping[str, Any] | Sequence[Any],
    params: Any,
    loss_fn: Callable[..., Any],
    data: Any,
    *,
    optimizer: Callable[[Any], Any],
    learning_rates: Sequence[float],
    steps: int,
    seeds: int | Sequence[int] = 16,
    batch_size: int | None = None,
    apply_fn: Callable[[Any, Any], Any] | None = None,
    test_data: Any = None,
    metrics_fn: Callable[[Any, Any], Any] | None = None,
    metric: str | None = None,
    maximize: bool | None = None,
    diverged_above: float | None = None,
    stochastic: bool = False,
    start_samples: int = 256,
    key: Array | None = None,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> StudyResult:
    """Trains a model from several starts, with many seeds each, and compares the starts.

    A start is a way to initialize the model. Seeds and learning rates are trained side by side (`vmap`), the steps are
    one loop (`scan`), and the seeds are spread over all devices. Starts whose parameters have the same shapes share the
    program that trains them.

    A seed is the same for every start: its random key, the order of its samples and the samples that a start may use
    derive only from `fold_in(key, seed)`. So comparisons are paired, and the numbers of a seed depend neither on the
    other seeds nor on the number of devices. That holds to the last bit for programs of equal `chunk`, which on CPUs is
    always the same; on accelerators set it, since programs for more or fewer seeds round differently.

    Args:
      starts: name → start, or a sequence of starts. A start is a scheme or its name ("auto"), as for
        `jaxinit.initialize`; an initializer, which draws all kernels, while lookup tables, biases and the like have
        Flax's defaults; a function of a key that returns parameters; a method such as `jaxinit.lsuv`, a function of
        (params, apply_fn, batch), here applied to Flax's defaults; or a tuple (start, method, ...).
      params: parameters of the model, of which only shapes and dtypes matter: a pytree of arrays or
        `jax.ShapeDtypeStruct`s, or the function of a key that makes them. Leaves that are not floating-point numbers
        are not trained.
      loss_fn: function of (params, batch) that returns the mean loss of a batch, a scalar.
      data: pytree of arrays with samples along their first axis; a batch has the same structure. Every epoch goes
        through them in a new order, and leaves out samples that do not fill a batch.
      optimizer: function of a learning rate that returns an Optax transformation, such as `optax.adam`.
      learning_rates: each start is trained at each of them.
      steps: number of training steps.
      seeds: how many, or which: non-negative integers.
      batch_size: samples per step; by default 64, or all samples if there are fewer.
      apply_fn: function of (params, batch) whose program is read for the layers of the model; by default `loss_fn`.
      test_data: pytree of arrays for `metrics_fn`; by default `data`.
      metrics_fn: function of (params, test_data) that returns a number, or a dictionary of arrays, measured before and
        after training. By default the loss on `test_data` if there are any.
      metric: name of the metric by which starts are compared. By default the only number that `metrics_fn` returns, or
        the training loss: its mean over the last tenth of the steps.
      maximize: whether more of it is better; required for metrics of your own.
      diverged_above: final training loss above which a run counts as diverged; by default twice its first loss. A run
        whose loss is not finite always counts as diverged.
      stochastic: whether `loss_fn` takes a key as its third argument (dropout), which differs from step to step.
      start_samples: how many samples, drawn anew for each seed, a data-dependent start may use.
      key: a JAX key; by default `jax.random.key(0)`.
      chunk: seeds in one program. By default two on a CPU, and elsewhere an equal share for each device; fewer
        if memory could not hold them.
      devices: where to run; by default on all devices of the default backend. If `jax.distributed` connects several
        processes, they all make the same call and share the study; with `jax.local_devices()` each runs its own.
      path: a file for the study, written as it runs. If the study is interrupted, the same call continues from there;
        more seeds and starts may be added later. A result that `save` wrote after a study without a path cannot be
        used here: it does not record which model, loss and data it belongs to.
      progress: whether to show a progress bar on a terminal.

    Returns:
      A `StudyResult`, with table, statistics, `to_dict`, `save` and `load`; `jaxinit.plot` draws it.

    Raises:
      TypeError: a start, the optimizer or the key has the wrong type.
      ValueError: an option is out of range, the arrays of the data differ in their number of samples, the loss is not a
        scalar, or `path` holds another study, or not a study.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxinit
      >>> x = jax.random.normal(jax.random.key(1), (128, 8))
      >>> params = {"a": jnp.zeros((8, 16)), "b": jnp.zeros((16, 1))}
      >>> def loss_fn(params, batch):
      ...     x, y = batch
      ...     return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)
      >>> result = jaxinit.study(
      ...     {"LeCun": jaxinit.lecun_normal(), "zeros": jaxinit.zeros}, params, loss_fn, (x, x[:, :1]),
      ...     optimizer=optax.sgd, learning_rates=[0.1], steps=20, seeds=6, progress=False,
      ... )
      >>> result.best(), result.values().shape, result.comparisons()[0].p
      ('LeCun', (2, 6), 0.03125)
    """
    named = named_starts(starts)
    numbers = seed_numbers(seeds)
    rates = rate_numbers(learning_rates)
    check_functions(loss_fn, apply_fn, metrics_fn)
    check_params(params)
    check_path(path)
    places = device_list(devices)
    processes = Processes(places)
    for name, flag in {"stochastic": stochastic, "progress": progress}.items():
        check_flag(name, flag)
    if maximize is not None:
        check_flag("maximize", maximize)
    check_integer("steps", steps, 1)
    check_integer("start_samples", start_samples, 1)
    if chunk is not None:
        check_integer("chunk", chunk, 1)
    samples = sample_count(data)
    check_arrays("data", data)
    check_arrays("test_data", test_data)
    if test_data is not None and not jax.tree.leaves(test_data):
        raise ValueError(f"test_data must hold at least one array, or be None for the training data, got {test_data!r}")
    batch_size = min(64, samples) if batch_size is None else batch_size
    check_integer("batch_size", batch_size, 1)
    if batch_size > samples:
        raise ValueError(f"batch_size must be at most the number of samples, {samples}, got {batch_size}")
    if diverged_above is not None:
        check_number("diverged_above", diverged_above)
    check_optimizer(optimizer, rates[0])
    key = typed_key(key, chunk)

    def noisy_loss(params: Any, batch: Any, key: Array) -> Any:
        return loss_fn(params, batch, key) if stochastic else loss_fn(params, batch)

    # Layers are the same for any noise.
    program = apply_fn or (lambda params, batch: noisy_loss(params, batch, jax.random.key(0)))
    if test_data is not None and metrics_fn is None and stochastic:
        raise ValueError("with stochastic=True, metrics_fn must say how to measure test_data without noise")
    training = Training(
        noisy_loss,
        optimizer,
        as_metrics(metrics_fn, None if test_data is None else loss_fn),
        samples,
        operator.index(batch_size),
        min(operator.index(start_samples), samples),
        on_cpu=places[0].platform == "cpu",
    )
    inputs = Inputs(
        key,
        jnp.array(rates, jnp.result_type(float)),
        jax.tree.map(_here, data),
        jax.tree.map(_here, data if test_data is None else test_data),
    )
    draws = {name: as_draw(name, start, params, program) for name, start in named.items()}
    name, draw = next(iter(draws.items()))
    with naming(name):
        drawn = jax.eval_shape(functools.partial(training.draw, draw), SEED, key, inputs.data)
        check_loss(jax.eval_shape(training.batch_loss, drawn, key, inputs.data))
        measured = jax.eval_shape(training.measure, drawn, inputs.test_data)
    metric, maximize = chosen_metric(measured, metric, maximize)

    settings = {
        "batch_size": training.batch_size,
        "samples": samples,
        "start_samples": training.looked_at,
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "platform": places[0].platform,
        "jax": jax.__version__,
        "data": data_digest(inputs.data, inputs.test_data) if path is not None else "",
    }
    digests = (
        {} if path is None else {name: program_digest(training, draw, inputs, steps) for name, draw in draws.items()}
    )
    records = Records(Plan(rates, operator.index(steps), settings, digests), tuple(named), numbers)
    contents = None if path is None else processes.contents(path)
    if path is not None and contents is not None:
        records.take_over(Records.read(path, contents)[0], path)
    compiler = Compiler(training, processes, inputs, chunk, len(numbers), records.plan.steps)

    def facts() -> dict[str, Any]:
        further = {
            "steps": records.plan.steps,
            "devices": f"{len(places)} × {places[0].device_kind}",
            "jaxinit": __version__,
            "seed_steps_per_second": round(runner.clock.rate, 1),
        }
        return {"metric": metric, "maximize": maximize, "diverged_above": diverged_above, "settings": further}

    def save() -> None:
        if path is not None and processes.is_first:
            records.write(path, facts())

    each = len(rates) * records.plan.steps
    bar = progress_bar(progress and processes.is_first, records.done.size * each, int(records.done.sum()) * each)
    with contextlib.closing(compiler), bar as told:
        runner = Runner(compiler, records, save, told)
        runner.run(draws)
    return result_of(records, **facts())


def _here(x: Any) -> Any:
    """A copy of an array that every device can use."""
    return jnp.asarray(whole_array(x))
