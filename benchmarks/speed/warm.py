"""The first call of esper's train step in a process, and in the next one, which finds what that left on the disk."""

from __future__ import annotations

import os

import jax

from benchmarks.speed.contenders import enter
from benchmarks.speed.workloads import WORKLOADS, Problem, prepared

LISTED = tuple(name for name, workload in WORKLOADS.items() if workload.tuned)


def first_call(workload: str, folder: str) -> dict[str, float]:
    """Seconds of the first call's parts, for a fresh process of a listed workload."""
    return called(prepared(WORKLOADS[workload]), folder)


def called(problem: Problem, folder: str) -> dict[str, float]:
    """With the caches that the command `esper` keeps, in this folder."""
    from esper.caching import VARIABLE, caches

    os.environ[VARIABLE] = folder
    jax.config.update("jax_compilation_cache_dir", None)  # one that is set would go before
    with caches():
        return enter("esper", problem).first_call
