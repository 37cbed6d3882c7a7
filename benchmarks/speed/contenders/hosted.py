"""esper inside PyTorch: the wrapped module as a torch module, in the loop of the eager one."""

from __future__ import annotations

from dataclasses import replace

import esper
from benchmarks.speed.contenders.contender import Contender
from benchmarks.speed.contenders.torch_loop import Loop
from benchmarks.speed.workloads import Problem


def enter(problem: Problem) -> Contender:
    """`esper.torch_module`, torch's cross-entropy and its fused AdamW."""
    loop = Loop(replace(problem, module=esper.torch_module(esper.wrap(problem.module))), "contiguous_format")
    first = {"first step": loop.timed_step()[1]}
    loop.restart("fused")
    return Contender(step=loop.timed_step, infer=loop.timed_infer, first_call=first, variant="fused AdamW")
