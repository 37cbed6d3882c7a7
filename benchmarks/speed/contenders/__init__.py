"""Those who compete, one file each: each makes a `Contender` of a problem."""

from __future__ import annotations

from importlib import import_module

from benchmarks.speed.contenders.contender import Contender, Unavailable
from benchmarks.speed.workloads import Problem

CONTENDERS = {
    "esper": "wrapped",
    "eager torch": "eager",
    "torch.compile": "compiled",
    "idiomatic JAX": "idiomatic",
}
"""Name to module; eager torch is the one that the others' losses are compared with."""


def enter(name: str, problem: Problem) -> Contender:
    """The contender, compiled and ready for its first step.

    Raises:
        Unavailable: It cannot take part here, or not in this workload.
    """
    return import_module(f"{__name__}.{CONTENDERS[name]}").enter(problem)


__all__ = ["CONTENDERS", "Contender", "Unavailable", "enter"]
