"""Reading without pauses of Python's garbage collector.

Reading a program creates tens of thousands of objects that live until the end. The collector scans all of them
whenever their number has grown by a quarter, in vain: there is nothing to collect. That takes a quarter of the time.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_running = 0
_was_enabled = False


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the collector, in all threads; when the last thread that paused it is done, it is enabled again."""
    global _running, _was_enabled
    with _lock:
        if _running == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _was_enabled:
                gc.enable()
