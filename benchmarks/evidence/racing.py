"""What B2 and B4 have in common: an MLP of one hidden layer that grows as a whole, and unlike candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.arms import Outcome, Pairs, Runner, Task
from benchmarks.evidence.hosts import Graft, Host, Mlp, born, count
from benchmarks.evidence.learning import Schooling
from benchmarks.evidence.static import POINTS, step_flops, trained
from esper.growth.cost import cost
from esper.growth.policy import Plan

SMALL, BIG, TAPS = 32, 128, 5
HOST, LARGE = Host(Mlp((40, SMALL, 10)), ""), Host(Mlp((40, BIG, 10)), "")
WIDEN = Graft("widen", (("width", BIG - SMALL),))
"""What makes the small network exactly the big one."""


def conv(width: int) -> Graft:
    """A small conv1d kernel."""
    return Graft("conv1d", (("width", width),))


def planned(host: Host, candidates: Sequence[Graft]) -> dict[str, tuple[Plan, ...]]:
    """The candidates as plans of the host's layer."""
    model, made = born(host, 0), []
    for graft in candidates:
        needed = cost(model, layer=host.layer, blueprint=graft.blueprint, options=dict(graft.options))
        made.append(Plan(graft.blueprint, graft.options, needed.parameters, needed.flops, needed.bytes))
    return {host.layer: tuple(made)}


def adapters(size: int) -> tuple[Graft, ...]:
    """Low-rank kernels with which the small host has about `size` parameters; rank 10 is all there are classes."""
    room = size - count(born(HOST, 0))
    return tuple(Graft("low_rank", (("rank", 10),)) for _ in range(max(1, round(room / 500))))


def static(host: Host, schooling: Schooling, task: Task, grafts: tuple[Graft, ...] = ()) -> Runner:
    """Runs an arm that does not grow."""

    def runner(pairs: Pairs) -> list[Outcome]:
        models = [born(host, key, grafts) for key, _ in pairs]
        return trained(models, [rate for _, rate in pairs], [key for key, _ in pairs], schooling, task)

    return runner


def steps_for(budget: float, host: Host, task: Task, grafts: tuple[Graft, ...] = ()) -> int:
    """For how many steps so many FLOPs last."""
    each = step_flops(born(host, 0, grafts), Schooling(POINTS), task.data.train)
    return max(1, math.floor(budget / each / POINTS)) * POINTS


def listed(values: Sequence[Any]) -> str:
    """With commas."""
    return ", ".join(f"{value:g}" for value in values)
