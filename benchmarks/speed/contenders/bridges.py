"""The tracing bridges from torch to JAX, which need an environment of their own: `make bench-bridges`.

Each runs as a process of that environment, takes its turns with the others, and times itself.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.contenders.contender import Contender, Unavailable
from benchmarks.speed.workloads import WORKLOADS, Problem

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-bridges" / "bin" / "python"


def torchax(problem: Problem) -> Contender:
    """torchax: `extract_jax`, jitted with optax."""
    return _entered("torchax", problem)


def torch2jax(problem: Problem) -> Contender:
    """torch2jax: `t2j`, jitted with optax."""
    return _entered("torch2jax", problem)


def _entered(bridge: str, problem: Problem) -> Contender:
    if not PYTHON.exists():
        raise Unavailable("no environment for the bridges; `make bench-bridges` makes it")
    if WORKLOADS.get(problem.workload.name) != problem.workload:
        raise Unavailable("runs the listed workloads only")
    worker = _Worker(bridge, problem.workload.name)
    ready = worker.hears()
    return Contender(
        step=lambda: worker.asked("step"),
        infer=worker.infer,
        first_call=ready["first_call"],
        memory=ready["memory"],
        close=worker.close,
    )


class _Worker:
    """A process that answers each line with a line of JSON."""

    def __init__(self, bridge: str, workload: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.logits = Path(self.folder.name) / "logits.npy"
        command = [PYTHON, "-W", "ignore", "-m", "benchmarks.speed.contenders.bridge_worker"]
        self.process = subprocess.Popen(
            [*command, bridge, workload, self.logits],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self) -> Any:
        """The next answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            self.close()
            raise Unavailable(f"fails: {answer['error']}")
        return answer

    def asked(self, what: str) -> tuple[float, float]:
        """What the worker measures."""
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self.hears()
        return answer["loss"], answer["seconds"]

    def infer(self) -> tuple[np.ndarray, float]:
        """The logits, which stay what they were, and the seconds."""
        seconds = self.asked("infer")[1]
        return np.load(self.logits), seconds

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()
