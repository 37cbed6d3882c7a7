"""The form of the results that are no race: calls, seeds, loops of torch's, and processes that find caches."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.results import FOLDER, Measurement, load, save, write


@dataclass(frozen=True)
class Overhead:
    """What it costs to hand many arrays to a compiled program.

    Attributes:
        leaves: How many arrays.
        microseconds: Median of a call, by what the arrays are in.
        reading: Likewise of a call that gives none of them back.
    """

    leaves: int
    microseconds: dict[str, float]
    reading: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeededStep:
    """What a train step cost in one run.

    Attributes:
        step_ms: Of every timed step.
        compile_s: Of every time that it was compiled.
        lowered_bytes: Of the program's text before XLA compiles it.
        instructions: Of the compiled program.
        flops: Floating-point operations, counted on the jaxpr.
    """

    step_ms: tuple[float, ...]
    compile_s: tuple[float, ...]
    lowered_bytes: int
    instructions: int
    flops: int

    @property
    def step(self) -> float:
        """Median."""
        return statistics.median(self.step_ms)

    @property
    def compiling(self) -> float:
        """Median."""
        return statistics.median(self.compile_s)


SeedRun = dict[str, SeededStep]
"""Steps that took turns in one process: "plain", without seeds; "dormant"; "active", with one that is."""


@dataclass(frozen=True)
class Seeded:
    """All runs of a workload with and without seeds.

    Attributes:
        workload: Its name.
        layer: That with the active seed.
        machine: Where the runs were made.
        runs: One for each process.
    """

    workload: str
    layer: str
    machine: dict[str, str]
    runs: tuple[SeedRun, ...]

    def ratios(self, step: str, what: str) -> list[float]:
        """A figure of the step by that of the plain one, run by run."""
        return [getattr(run[step], what) / getattr(run["plain"], what) for run in self.runs]

    def overspent(self) -> list[float]:
        """How many times its share of floating-point operations the active seed's step takes."""
        times, works = self.ratios("active", "step"), self.ratios("active", "flops")
        return [time / work for time, work in zip(times, works, strict=True)]


@dataclass(frozen=True)
class Warm:
    """The first call of a process with empty caches, and of the next one.

    Attributes:
        workload: Its name.
        machine: Where the runs were made.
        runs: The seconds of the parts of both first calls, for each pair of processes.
    """

    workload: str
    machine: dict[str, str]
    runs: tuple[tuple[dict[str, float], dict[str, float]], ...]

    def ratios(self) -> list[float]:
        """The second process's first call by the first's."""
        return [sum(second.values()) / sum(first.values()) for first, second in self.runs]

    def parts(self, which: int) -> dict[str, float]:
        """Means over runs, of the first process (0) or the second (1)."""
        return {name: statistics.fmean(pair[which][name] for pair in self.runs) for name in self.runs[0][which]}


def save_overhead(overhead: Overhead, folder: Path = FOLDER) -> Path:
    """Writes the file of the calls' overhead."""
    return write(folder / "overhead" / "calls.json", asdict(overhead))


def load_overhead(folder: Path = FOLDER) -> Overhead | None:
    """Reads it, if there is one."""
    path = folder / "overhead" / "calls.json"
    return Overhead(**json.loads(path.read_text())) if path.exists() else None


def save_seeded(found: Seeded, folder: Path = FOLDER) -> Path:
    """Writes the file of a workload's seeds."""
    return write(folder / "seeds" / f"{found.workload}.json", asdict(found))


def load_seeded(folder: Path = FOLDER) -> list[Seeded]:
    """Reads all of them."""
    read = [json.loads(path.read_text()) for path in sorted((folder / "seeds").glob("*.json"))]
    return [Seeded(runs=tuple(map(_seed_run, found.pop("runs"))), **found) for found in read]


def save_hosted(found: Measurement, folder: Path = FOLDER) -> Path:
    """Writes the file of a workload in a loop of torch's."""
    return save(found, folder / "hosted")


def load_hosted(folder: Path = FOLDER) -> list[Measurement]:
    """Reads all of them."""
    return [load(path) for path in sorted((folder / "hosted").glob("*.json"))]


def save_warm(found: Warm, folder: Path = FOLDER) -> Path:
    """Writes the file of a workload's warm start."""
    return write(folder / "warm" / f"{found.workload}.json", asdict(found))


def load_warm(folder: Path = FOLDER) -> list[Warm]:
    """Reads all of them."""
    read = [json.loads(path.read_text()) for path in sorted((folder / "warm").glob("*.json"))]
    return [Warm(runs=tuple((first, second) for first, second in found.pop("runs")), **found) for found in read]


def _seed_run(found: dict[str, dict[str, Any]]) -> SeedRun:
    return {name: SeededStep(**step) for name, step in found.items()}
