"""The form of a benchmark's results: small JSON files under docs/evidence, from which the page and plots are made.

A figure is in the metric's own unit: accuracies are percent, losses are as they are. FLOPs are those of
`esper.jax_backend.flops` for what an arm did from its first step to its last.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"
DIGITS = 5
"""Significant digits of floats in the files."""


@dataclass(frozen=True)
class Event:
    """One thing that growth did: at which step, what ("germinate", "graft", "fossilise", "cull"), where and why."""

    step: int
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """One arm with one key.

    Attributes:
        key: What initial values and batches were drawn from.
        test: The metric on the test split, touched once, at the end.
        validation: The metric on the validation split, at the end.
        flops: All of the run: for arms that grow, the ledger's total (culled work, isolation, statistics, and
            evaluations included).
        parameters: Of the network that came out.
        seconds: Wall time; of arms that ran as one batch of keys, the batch's time shared out.
        events: What growth did.
        curve: (FLOPs so far, validation metric) for the plot; few points.
        extra: Further figures of this run, by name.
    """

    key: int
    test: float
    validation: float
    flops: int
    parameters: int
    seconds: float = 0.0
    events: tuple[Event, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One way to spend FLOPs.

    Attributes:
        name: Short, as in the table and the legend.
        about: What it is, one sentence.
        steps: Training steps.
        runs: One for each key.
        rate: The learning rate, chosen on validation.
        swept: Mean validation metric of every learning rate that was tried.
    """

    name: str
    about: str
    steps: int
    runs: tuple[Run, ...]
    rate: float | None = None
    swept: dict[str, float] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        """A figure of every run, by the name of its field or of its extra."""
        known = {f.name for f in fields(Run)}
        return [float(getattr(run, name) if name in known else run.extra[name]) for run in self.runs]

    def mean(self, name: str = "test") -> float:
        """Mean over keys."""
        return statistics.fmean(self.values(name))

    def spread(self, name: str = "test") -> float:
        """Standard deviation over keys."""
        return deviation(self.values(name))


@dataclass(frozen=True)
class Claim:
    """One line of the page's first table.

    Attributes:
        claim: What is claimed.
        target: The figure that was asked for.
        measured: What came out, with its spread.
        met: Whether it is met.
        why: If missed, why; else anything that must be known to read the figure.
    """

    claim: str
    target: str
    measured: str
    met: bool
    why: str = ""


@dataclass(frozen=True)
class Benchmark:
    """All results of a benchmark.

    Attributes:
        name: Such as "B1".
        title: Its heading.
        setup: What was done: data, host, steps, sweep; one sentence each.
        metric: What `test` and `validation` are, such as "accuracy, %".
        higher_is_better: Whether more of it is.
        claims: Met or missed.
        arms: All arms; empty where there are none.
        notes: What else there is to say; one sentence each.
        seconds: Wall time of the whole benchmark.
    """

    name: str
    title: str
    setup: tuple[str, ...]
    metric: str
    higher_is_better: bool
    claims: tuple[Claim, ...]
    arms: tuple[Arm, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def deviation(values: Iterable[float]) -> float:
    """Standard deviation of a sample; NaN for a single value."""
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else math.nan


def spelt(values: Iterable[float], digits: int = 2) -> str:
    """Mean and standard deviation, as they stand in tables."""
    found = list(values)
    return f"{statistics.fmean(found):.{digits}f} ± {deviation(found):.{digits}f}"


def save(benchmark: Benchmark, folder: Path = FOLDER) -> Path:
    """Writes the benchmark's file."""
    path = folder / f"{benchmark.name.lower()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(asdict(benchmark)), separators=(",", ":")) + "\n")
    return path


def load(name: str, folder: Path = FOLDER) -> Benchmark:
    """Reads the file of a benchmark."""
    return _benchmark(json.loads((folder / f"{name.lower()}.json").read_text()))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _benchmark(found: dict[str, Any]) -> Benchmark:
    arms = tuple(_arm(arm) for arm in found.pop("arms"))
    claims = tuple(Claim(**claim) for claim in found.pop("claims"))
    setup, notes = tuple(found.pop("setup")), tuple(found.pop("notes"))
    return Benchmark(arms=arms, claims=claims, setup=setup, notes=notes, **found)


def _arm(found: dict[str, Any]) -> Arm:
    return Arm(runs=tuple(_run(run) for run in found.pop("runs")), **found)


def _run(found: dict[str, Any]) -> Run:
    events = tuple(Event(**event) for event in found.pop("events"))
    curve = tuple((flops, value) for flops, value in found.pop("curve"))
    return Run(events=events, curve=curve, **found)
