"""One run: contenders take turns in one process, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.speed.contenders import CONTENDERS, HOSTED, Contender, Unavailable, enter
from benchmarks.speed.results import Outcome, Run
from benchmarks.speed.workloads import WORKLOADS, Problem, prepared
from esper.allocation import keep_freed_memory

TURNS, PER_TURN = 4, 3
"""Turns, and the timed calls of each; one before them is not timed, for threads and caches to change hands."""
PAUSE = 0.3
"""Seconds between one contender's turn and the next's: torch's threads go on spinning for that long, and would take a
processor from whoever comes next."""
CHECKED = 3
"""Steps whose losses are compared."""
TOLERANCE = 1e-3
"""Of losses, relative, and of logits, relative to the largest."""
REFERENCE = "eager torch"


IN_TORCH = ("resnet18", "resnet18_cifar", "gpt")
"""Workloads that esper also runs in a loop of torch's."""


def one_run(workload: str, names: Iterable[str]) -> Run:
    """One run of a listed workload, in a process that keeps the memory it frees."""
    keep_freed_memory()
    return measured(prepared(WORKLOADS[workload]), names)


def hosted_run(workload: str) -> Run:
    """One run of esper's own loop beside a loop of torch's, in a process that keeps the memory it frees."""
    return one_run(workload, (REFERENCE, "esper", HOSTED))


def measured(problem: Problem, names: Iterable[str] = tuple(CONTENDERS), turns: int = TURNS) -> Run:
    """Enters the contenders, checks the first steps of each, then lets them take turns."""
    run: Run = {}
    present: dict[str, Contender] = {}
    logits: dict[str, np.ndarray] = {}
    for name in names:
        try:
            present[name] = enter(name, problem)
            run[name], logits[name] = _checked_steps(present[name])
        except Unavailable as reason:
            run[name] = Outcome(absent=str(reason))
    for name in present:
        if REFERENCE in present:
            run[name] = replace(run[name], wrong=_differs(run, logits, name))
    steps: dict[str, list[float]] = {name: [] for name in present}
    inferences: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(turns):
        for name, contender in present.items():
            steps[name] += _turn(contender.step)
        for name, contender in present.items():
            inferences[name] += _turn(contender.infer)
    for name, contender in present.items():
        contender.close()
        run[name] = replace(run[name], step_ms=_milliseconds(steps[name]), infer_ms=_milliseconds(inferences[name]))
    return run


def _turn(call: Callable[[], tuple[Any, float]]) -> list[float]:
    time.sleep(PAUSE)
    return [call()[1] for _ in range(1 + PER_TURN)][1:]


def _checked_steps(contender: Contender) -> tuple[Outcome, np.ndarray]:
    losses = tuple(contender.step()[0] for _ in range(CHECKED))
    outcome = Outcome(
        losses=losses, first_call=contender.first_call, memory=contender.memory, variant=contender.variant
    )
    return outcome, contender.infer()[0]


def _differs(run: Run, logits: dict[str, np.ndarray], name: str) -> str:
    """How the contender's losses or logits differ from the reference's; nothing if they agree."""
    theirs, ours = run[REFERENCE].losses, run[name].losses
    if not all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(ours, theirs, strict=True)):
        return f"losses {ours} for {theirs}"
    scale = np.abs(logits[REFERENCE]).max()
    apart = np.abs(logits[name] - logits[REFERENCE]).max() / scale
    return "" if apart <= TOLERANCE else f"logits are {apart:.2g} apart"


def _milliseconds(seconds: list[float]) -> tuple[float, ...]:
    return tuple(1e3 * spent for spent in seconds)
