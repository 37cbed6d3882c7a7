"""Arms: every one is swept over the same learning rates on tuning keys, then run on the keys that count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.learning import measured
from benchmarks.evidence.results import Arm, Event, Run
from benchmarks.evidence.signals import Data
from esper.jax_backend.model import MorphableModel


@dataclass(frozen=True, eq=False)
class Task:
    """What all arms of a benchmark have in common.

    Attributes:
        data: Training, validation and test split.
        rates: The learning rates every arm is swept over.
        tuning: Keys that learning rates are chosen with, on validation; where they are among `keys`, those runs count.
        keys: Keys that count.
        by: What they are chosen by, "accuracy" or "loss".
    """

    data: Data
    rates: tuple[float, ...]
    tuning: tuple[int, ...]
    keys: tuple[int, ...]
    by: str = "accuracy"


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run, before the test split is looked at; `loss` and `accuracy` (percent) are validation's.

    Attributes:
        model: What came out.
        loss: At the end.
        accuracy: At the end.
        flops: Of the whole run.
        parameters: Of the model.
        seconds: Wall time.
        losses: (FLOPs so far, validation loss).
        accuracies: (FLOPs so far, validation accuracy).
        events: What growth did.
        extra: Further figures.
    """

    model: MorphableModel
    loss: float
    accuracy: float
    flops: int
    parameters: int
    seconds: float
    losses: tuple[tuple[float, float], ...]
    accuracies: tuple[tuple[float, float], ...]
    events: tuple[Event, ...] = ()
    extra: dict[str, float] = field(default_factory=dict)


Pairs = Sequence[tuple[int, float]]
"""Of a key and a learning rate."""

Runner = Callable[[Pairs], list[Outcome]]


@dataclass(frozen=True, eq=False)
class Spec:
    """An arm before it is run: its name, what it is, its steps, and what runs it."""

    name: str
    about: str
    steps: int
    runner: Runner


def arm(spec: Spec, task: Task) -> Arm:
    """Sweeps an arm, runs it, and looks at the test split, once."""
    return with_outcomes(spec, task)[0]


def with_outcomes(spec: Spec, task: Task) -> tuple[Arm, list[Outcome]]:
    """The arm, and what came out of every run."""
    tried = [(key, rate) for rate in task.rates for key in task.tuning]
    found = spec.runner(tried)
    swept = {
        rate: statistics.fmean(getattr(o, task.by) for (_, r), o in zip(tried, found, strict=True) if r == rate)
        for rate in task.rates
    }
    best = (min if task.by == "loss" else max)(swept, key=lambda rate: swept[rate])
    known = {key: outcome for (key, rate), outcome in zip(tried, found, strict=True) if rate == best}
    missing = [key for key in task.keys if key not in known]
    known |= dict(zip(missing, spec.runner([(key, best) for key in missing]), strict=True)) if missing else {}
    outcomes = [known[key] for key in task.keys]
    runs = tuple(_run(key, outcome, task) for key, outcome in zip(task.keys, outcomes, strict=True))
    made = Arm(spec.name, spec.about, spec.steps, runs, best, {f"{rate:g}": value for rate, value in swept.items()})
    print(
        f"  {spec.name}: rate {best:g} of {made.swept}, test {made.mean():.2f} ± {made.spread():.2f}, "
        f"{made.mean('flops') / 1e9:.2f} GFLOPs, {made.mean('seconds'):.1f} s a run",
        flush=True,
    )
    return made, outcomes


def _run(key: int, outcome: Outcome, task: Task) -> Run:
    loss, accuracy = map(float, measured(outcome.model, task.data.test))
    by_loss = task.by == "loss"
    extra: dict[str, Any] = {"test_accuracy" if by_loss else "test_loss": accuracy if by_loss else loss}
    return Run(
        key=key,
        test=loss if by_loss else accuracy,
        validation=outcome.loss if by_loss else outcome.accuracy,
        flops=outcome.flops,
        parameters=outcome.parameters,
        seconds=outcome.seconds,
        events=outcome.events,
        curve=outcome.losses if by_loss else outcome.accuracies,
        extra={**outcome.extra, **extra},
    )
