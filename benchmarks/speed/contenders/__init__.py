"""Those who compete: each is a function that makes a `Contender` of a problem."""

from __future__ import annotations

from importlib import import_module

from benchmarks.speed.contenders.contender import Contender, Unavailable
from benchmarks.speed.workloads import Problem

CONTENDERS = {
    "esper": "wrapped.enter",
    "eager torch": "eager.enter",
    "torch.compile": "compiled.enter",
    "idiomatic JAX": "handwritten.idiomatic",
    "hand-tuned JAX": "handwritten.tuned",
    "torchax": "bridges.torchax",
    "torch2jax": "bridges.torch2jax",
}
"""Name to module and function; eager torch is the one that the others' losses are compared with."""

HOSTED = "esper in torch"
"""Who competes with esper alone: its model in a loop of torch's."""


def enter(name: str, problem: Problem) -> Contender:
    """The contender, compiled and ready for its first step.

    Raises:
        Unavailable: It cannot take part here, or not in this workload.
    """
    module, function = {**CONTENDERS, HOSTED: "hosted.enter"}[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)(problem)


__all__ = ["CONTENDERS", "HOSTED", "Contender", "Unavailable", "enter"]
