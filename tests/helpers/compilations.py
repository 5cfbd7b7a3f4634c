"""Counts what XLA compiles."""

import contextlib

import jax

_counts = []


def _listen(event, _, **__):
    if event == "/jax/core/compile/backend_compile_duration":
        for count in _counts:
            count.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations():
    """A list with an entry for each program that is compiled inside the context, in any thread."""
    count = []
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)
