"""Python work in a thread beside training, made to stand behind it."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NICE = 9  # of the thread: below training, and not so low that others starve it
_SLICE = 0.0005  # seconds for which a thread holds the interpreter while another waits for it

_lock = threading.Lock()
_at_work = 0
_before = (True, _SLICE)  # whether the collector ran, and the slice, before the first of those at work


@contextmanager
def unobtrusive() -> Iterator[None]:
    """For a thread's whole work: it has a low priority, hands the interpreter over often, and no garbage is collected.

    Tracing allocates so much that full passes of the collector would come one after another, each of which stops
    every thread for hundreds of milliseconds. The next full pass looks at what was allocated meanwhile.
    The collector and the slice belong to the process; they are as before when the last of such threads is done.
    """
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _at_work, _before
    with _lock:
        if not _at_work:
            _before = gc.isenabled(), sys.getswitchinterval()
            gc.disable()
            sys.setswitchinterval(min(_before[1], _SLICE))
        _at_work += 1


def _leave() -> None:
    global _at_work
    with _lock:
        _at_work -= 1
        if _at_work:
            return
        collects, interval = _before
        sys.setswitchinterval(interval)
        if collects:
            if not gc.get_freeze_count():  # what was allocated counts as old without being looked at now
                gc.freeze()
                gc.unfreeze()
            gc.enable()
