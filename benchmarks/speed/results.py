"""The form of the results: a small JSON file under docs/performance for each workload, from which the page is made.

What else is measured has its forms in `costs.py`.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "performance"
DIGITS = 5
"""Significant digits of floats in the files."""


@dataclass(frozen=True)
class Outcome:
    """What one contender did in one run.

    Attributes:
        step_ms: Of every timed train step.
        infer_ms: Of every timed inference.
        losses: Of the first three steps.
        first_call: Seconds that the parts of the first call took.
        memory: MiB that the compiled step needs at once, as its compiler says.
        variant: What was found fastest, where there was a choice.
        wrong: Why its times do not count; empty where they do.
        absent: Why it did not take part; empty where it did.
    """

    step_ms: tuple[float, ...] = ()
    infer_ms: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    first_call: dict[str, float] = field(default_factory=dict)
    memory: float | None = None
    variant: str = ""
    wrong: str = ""
    absent: str = ""

    @property
    def counts(self) -> bool:
        """Whether there are times, of a program that does what the others do."""
        return not self.wrong and not self.absent

    @property
    def step(self) -> float:
        """Median of the train steps; NaN without any."""
        return statistics.median(self.step_ms) if self.step_ms else math.nan

    @property
    def infer(self) -> float:
        """Median of the inferences; NaN without any."""
        return statistics.median(self.infer_ms) if self.infer_ms else math.nan

    @property
    def first(self) -> float:
        """Seconds of the first call; NaN where nobody counted."""
        return sum(self.first_call.values()) if self.first_call else math.nan


Run = dict[str, Outcome]
"""Contenders that took turns in one process, by name."""


@dataclass(frozen=True)
class Measurement:
    """All runs of a workload.

    Attributes:
        workload: Its name.
        about: What it is.
        tuned: Whether esper is tuned on it.
        machine: Where the runs were made.
        runs: One for each process.
        resident: MiB by which a process of the contender's own grew until after three steps, by contender.
    """

    workload: str
    about: str
    tuned: bool
    machine: dict[str, str]
    runs: tuple[Run, ...]
    resident: dict[str, float] = field(default_factory=dict)

    def outcomes(self, contender: str) -> list[Outcome]:
        """Of one contender, run by run; those that count."""
        found = [run[contender] for run in self.runs if contender in run]
        return [outcome for outcome in found if outcome.counts]

    def mean(self, contender: str, what: str = "step") -> float:
        """Mean over runs of the medians; NaN where nothing counts."""
        found = [getattr(outcome, what) for outcome in self.outcomes(contender)]
        return statistics.fmean(found) if found else math.nan

    def ratios(self, contender: str, what: str = "step", of: str = "esper") -> list[float]:
        """The first's median by the second's, in every run in which both count: above 1, the second is faster."""
        pairs = [(run.get(contender), run.get(of)) for run in self.runs]
        return [getattr(a, what) / getattr(b, what) for a, b in pairs if a and b and a.counts and b.counts]


def save(measurement: Measurement, folder: Path = FOLDER) -> Path:
    """Writes the workload's file."""
    return write(folder / f"{measurement.workload}.json", asdict(measurement))


def load(path: Path) -> Measurement:
    """Reads a workload's file."""
    found = json.loads(path.read_text())
    runs = tuple({name: _outcome(outcome) for name, outcome in run.items()} for run in found.pop("runs"))
    return Measurement(runs=runs, **found)


def write(path: Path, found: dict[str, Any]) -> Path:
    """Writes a file of results, floats rounded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(found), indent=1) + "\n")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _outcome(found: dict[str, Any]) -> Outcome:
    lists = {name: tuple(found.pop(name)) for name in ("step_ms", "infer_ms", "losses")}
    return Outcome(**lists, **found)
