"""Reading costs in proportion to the program: work is counted, since times depend on the machine."""

import gc
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxinit
from jaxinit import trace_layers
from jaxinit._program import uncollected
from jaxinit._reading import _consumers


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def lines_run(function):
    """How many lines of this library run, with each iteration of a loop counted."""
    counted = [0]
    own = str(Path(jaxinit.__file__).parent)

    def trace_line(frame, event, argument):
        counted[0] += event == "line"
        return trace_line

    def trace_call(frame, event, argument):
        return trace_line if frame.f_code.co_filename.startswith(own) else None

    before = sys.gettrace()
    sys.settrace(trace_call)
    try:
        function()
    finally:
        sys.settrace(before)
    return counted[0]


def dense_chain(params, x):
    for p in params:
        x = jax.nn.relu(x @ p["w"] + p["b"][None])
    return x


def attention_blocks(params, x):
    for p in params:
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["b"][None]
        q, k, v = y @ p["w"], y @ p["u"], y @ p["d"]
        x = x + jax.nn.softmax(q @ k.mT) @ v @ p["o"]
    return x


def branches_of_one_sum(params, x):
    return x + sum(jax.nn.relu(x @ p["u"]) @ p["d"] for p in params)


def one_weight_used_again(params, x):
    for p in params:
        x = jnp.tanh(x @ params[0]["w"] + p["b"][None])
    return x


@pytest.mark.parametrize("apply_fn", [dense_chain, attention_blocks, branches_of_one_sum, one_weight_used_again])
def test_reading_is_linear(apply_fn):
    """Four times the program needs four times the work."""
    block = {name: struct(8, 8) for name in "wudo"} | {"b": struct(8)}
    work = [
        lines_run(lambda n=n: trace_layers([block] * n, lambda params, x: apply_fn(params, x), struct(4, 8)))
        for n in (2, 10, 40)
    ]
    assert work[2] <= 4.4 * work[1], work


def test_what_was_read_is_gone_without_the_garbage_collector():
    block = {name: struct(8, 8) for name in "wudo"} | {"b": struct(8)}
    gc.collect()
    gc.disable()
    try:
        before = len(_consumers._known)
        trace_layers([block] * 2, attention_blocks, struct(4, 8))
        assert len(_consumers._known) == before
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_garbage_collector_goes_on_when_the_last_reading_is_done():
    def fails():
        with uncollected():
            with uncollected():
                pass
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()
