"""torch.compile: the best of both memory formats, forward and loss in one graph, fused AdamW."""

from __future__ import annotations

import os

import torch

from benchmarks.speed.contenders.contender import Contender, Unavailable, timed
from benchmarks.speed.contenders.torch_loop import Loop, fastest, formats
from benchmarks.speed.workloads import Problem

# A first call that finds last week's kernels on the disk is no first call.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")


def enter(problem: Problem) -> Contender:
    """The fastest training loop, and the fastest forward."""
    _check()
    loops = {format: Loop(problem, format, torch.compile) for format in formats(problem)}
    seconds = {format: loop.timed_step()[1] for format, loop in loops.items()}
    train = fastest({format: loop.step for format, loop in loops.items()})
    serve = fastest({format: loop.infer for format, loop in loops.items()})
    loops[train].restart("fused")
    names = [format.removesuffix("_format") for format in (train, serve)]
    return Contender(
        step=loops[train].timed_step,
        infer=loops[serve].timed_infer,
        first_call={"first step": seconds[train]},
        variant="{}; inference {}".format(*names),
    )


def _check() -> None:
    """Whether anything compiles; what the first compile of a process sets up is not counted."""
    try:
        timed(torch.compile(lambda x: x + 1), torch.ones(3))
    except Exception as error:
        raise Unavailable(f"torch.compile does not work here: {type(error).__name__}") from error
