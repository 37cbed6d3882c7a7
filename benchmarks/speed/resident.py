"""How much a process grows that trains with one contender: what torch has in place of a compiler's count."""

from __future__ import annotations

import ctypes
from pathlib import Path

from benchmarks.speed.contenders import Unavailable, enter
from benchmarks.speed.workloads import WORKLOADS, prepared

STEPS = 3


def resident(workload: str, contender: str) -> float | None:
    """MiB between a process with module and batch, and its peak in three steps; for a fresh process.

    What compiling took is given back and not counted; of contenders with several variants all are in memory at their
    first steps, and not counted either.
    """
    problem = prepared(WORKLOADS[workload])
    before = _status("VmRSS")
    try:
        entered = enter(contender, problem)
    except Unavailable:
        return None
    entered.step()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(STEPS):
        entered.step()
    entered.close()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)
