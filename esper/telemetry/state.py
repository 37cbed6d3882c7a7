"""What is known of a run after its events: a pure reduction, for whoever shows or watches runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from esper.telemetry.events import (
    Compile,
    Course,
    Decision,
    Event,
    Health,
    Measurement,
    Notice,
    Outside,
    Seed,
    Update,
)

_LAST = 8  # decisions that are kept
_POINTS = 512  # of a curve; beyond, every second one goes

_STATUS = {"start": "running", "resume": "running", "end": "ended", "failed": "failed"}
_ALPHA = {"germinate": 0.0, "training": 0.0, "grafting": None, "active": 1.0, "fossilized": 1.0}

Key = tuple[str, str]
"""A `run_id`, and which of the runs that share it."""

Curve = tuple[tuple[int, float], ...]
"""Steps, and what was measured after them."""


@dataclass(frozen=True)
class SeedState:
    """A seed as its events tell it.

    Attributes:
        state: Name of its lifecycle's state, in lower case.
        since: Step at which it was entered.
        alpha: How far its kernel is blended in; None: it is rising.
        blueprint: What its kernel was made by.
    """

    state: str
    since: int
    alpha: float | None = 0.0
    blueprint: str = ""


@dataclass(frozen=True)
class RunState:
    """A run as its events tell it.

    Attributes:
        status: "waiting" (nothing was told yet), "running", "ended" or "failed".
        step: Training steps done, at the last event.
        began: When its first event was told.
        last: When its last event was told.
        why: Why it ended.
        curves: Figures of evaluations, by name; what was rolled back is gone, and long ones are thinned out.
        seeds: Seeds that something happened to, by layer and number.
        decisions: The last events that have a reason, oldest first.
        compiles: XLA compiles so far.
        compile_seconds: Time they took.
        rollbacks: How often it went back to a sound state.
        dropped: Events that sinks never got, by sink.
        down: Why sinks take no events at the moment, by sink.
        part: How often the run had been resumed at the last event.
        sequence: Number of the last event.
        missed: Events that never came to who reduces, by the gaps in their numbers.
    """

    status: str = "waiting"
    step: int = 0
    began: datetime | None = None
    last: datetime | None = None
    why: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    seeds: Mapping[tuple[str, int], SeedState] = field(default_factory=dict)
    decisions: tuple[Event, ...] = ()
    compiles: int = 0
    compile_seconds: float = 0.0
    rollbacks: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, str] = field(default_factory=dict)
    part: int = 0
    sequence: int = -1
    missed: int = 0


def states(events: Iterable[Event], before: Mapping[Key, RunState] | None = None) -> dict[Key, RunState]:
    """The runs that the events are of, each by `after`, in the order they were met.

    >>> from esper.telemetry.convert import parse
    >>> start = parse('{"step": 0, "event": "start"}', run_id="a")
    >>> states([start])[("a", "growth")].status
    'running'
    """
    found = dict(before or {})
    for event in events:
        key = event.run_id, event.run
        found[key] = after(found.get(key, RunState()), event)
    return found


def after(state: RunState, event: Event) -> RunState:
    """The state of a run after an event; one that was told already changes nothing."""
    if (event.part, event.sequence) <= (state.part, state.sequence):
        return state
    # A run that was resumed gives some numbers again.
    gap = max(0, event.sequence - state.sequence - 1) if state.sequence >= 0 else 0
    state = replace(
        state,
        part=event.part,
        sequence=event.sequence,
        missed=state.missed + gap,
        step=event.step,
        began=state.began or event.time,
        last=event.time,
        status="running" if state.status == "waiting" else state.status,
        compiles=state.compiles + event.compiles,
        compile_seconds=state.compile_seconds + event.compile_seconds,
    )
    if event.reason and isinstance(event, Seed | Decision | Outside | Update | Health | Compile):
        state = replace(state, decisions=(*state.decisions[1 - _LAST :], event))
    match event:
        case Course():
            return _course(state, event)
        case Measurement():
            return replace(state, curves=_longer(state.curves, event))
        case Seed():
            place = event.layer, event.seed
            return replace(state, seeds={**state.seeds, place: _seed(state.seeds.get(place), event)})
        case Health(event="rollback" | "give_up"):
            return _back(replace(state, rollbacks=state.rollbacks + 1), event)
        case Notice():
            return _noticed(state, event)
    return state


def _course(state: RunState, event: Course) -> RunState:
    ended = event.event in ("end", "failed")
    state = replace(state, status=_STATUS[event.event], why=event.reason if ended else "")
    return state if ended else replace(state, curves=_until(state.curves, event.step))


def _back(state: RunState, event: Health) -> RunState:
    """A rollback; the seeds it culled are named as layer[seed], several by commas."""
    to = event.figures.get("back_to")
    step = to if isinstance(to, int) else event.step
    culled = str(event.figures.get("culled", "")).split(", ")
    seeds = {
        (layer, seed): SeedState("culled", step) if f"{layer or '(root)'}[{seed}]" in culled else known
        for (layer, seed), known in state.seeds.items()
    }
    return replace(state, step=step, curves=_until(state.curves, step), seeds=seeds)


def _noticed(state: RunState, event: Notice) -> RunState:
    sink, total = str(event.figures.get("sink", "")), event.figures.get("total")
    down = {name: why for name, why in state.down.items() if name != sink}
    match event.event:
        case "sink_down":
            return replace(state, down={**down, sink: event.reason})
        case "sink_up":
            return replace(state, down=down)
        case "drops" if isinstance(total, int):
            return replace(state, dropped={**state.dropped, sink: total})
    return state


def _seed(known: SeedState | None, event: Seed) -> SeedState:
    known = known or SeedState("dormant", event.step)
    match event.event:
        case "alpha":
            alpha = event.figures.get("alpha")
            return replace(known, alpha=float(alpha)) if isinstance(alpha, int | float) else known
        case "germinate":
            return SeedState("training", event.step, 0.0, str(event.figures.get("blueprint", "")))
        case "load":
            return SeedState("grafting", event.step, None, str(event.figures.get("blueprint", "")))
        case "declined" | "remove":
            return SeedState("dormant", event.step)
    return replace(known, state=event.event, since=event.step, alpha=_ALPHA.get(event.event, 0.0))


def _longer(curves: Mapping[str, Curve], event: Measurement) -> dict[str, Curve]:
    found = dict(curves)
    for name, value in event.figures.items():
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
            curve = (*found.get(name, ()), (event.step, float(value)))
            found[name] = curve if len(curve) <= _POINTS else (*curve[:-1:2], curve[-1])
    return found


def _until(curves: Mapping[str, Curve], step: int) -> dict[str, Curve]:
    return {name: tuple(point for point in curve if point[0] <= step) for name, curve in curves.items()}


def latest(curve: Curve) -> float:
    """The last value of a curve; NaN where there is none."""
    return curve[-1][1] if curve else math.nan
