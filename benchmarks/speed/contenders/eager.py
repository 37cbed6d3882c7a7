"""Eager torch: the best of both memory formats and of AdamW's two fast implementations."""

from __future__ import annotations

from benchmarks.speed.contenders.contender import Contender
from benchmarks.speed.contenders.torch_loop import Loop, fastest, formats
from benchmarks.speed.workloads import Problem


def enter(problem: Problem) -> Contender:
    """The fastest training loop, and the fastest forward."""
    loops = {format: Loop(problem, format) for format in formats(problem)}
    first = {"first step": next(iter(loops.values())).timed_step()[1]}
    trainer = loops[fastest({format: loop.step for format, loop in loops.items()})]
    server = loops[fastest({format: loop.infer for format, loop in loops.items()})]
    seconds = {}
    for optimizer in ("fused", "foreach"):
        trainer.restart(optimizer)
        trainer.step()
        seconds[optimizer] = trainer.optimizer.step
    chosen = fastest(seconds)
    trainer.restart(chosen)
    names = {id(loop): format.removesuffix("_format") for format, loop in loops.items()}
    return Contender(
        step=trainer.timed_step,
        infer=server.timed_infer,
        first_call=first,
        variant=f"{names[id(trainer)]}, {chosen} AdamW; inference {names[id(server)]}",
    )
