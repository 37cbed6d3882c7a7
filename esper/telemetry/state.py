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
from esper.telemetry.seeds import (
    DECIDED,
    MEASURED,
    WITHIN,
    Journals,
    Moment,
    Place,
    SeedState,
    evaluated,
    put_back,
    until,
)
from esper.telemetry.seeds import told as happened

_LAST = 8  # decisions that are kept
_POINTS = 512  # of a curve; beyond, every second one goes
_BACK = 4  # times that a run went back, before which a resume may go

Key = tuple[str, str]
"""A `run_id`, and which of the runs that share it."""

Curve = tuple[tuple[int, float], ...]
"""Steps, and what was measured after them."""


@dataclass(frozen=True)
class Delivery:
    """How the events of a `run_id` come, those of all runs that share it: they are numbered together.

    Attributes:
        part: How often it had been resumed at the last event.
        sequence: Number of the last event.
        missed: Events that never came to who reduces, by the gaps in their numbers.
        dropped: Events that sinks never got, by sink.
        down: Why sinks take no events at the moment, by sink.
    """

    part: int = 0
    sequence: int = -1
    missed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What a run may go back to.

    Attributes:
        curves: Its curves.
        journals: Its seeds, and what they were before.
        evaluated: Step of its last evaluation; -1: there was none.
        rollbacks: How often it had gone back to a sound state.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    journals: Journals = field(default_factory=dict)
    evaluated: int = -1
    rollbacks: int = 0

    def until(self, moment: Moment) -> Past:
        """The same without what came later."""
        curves = {
            name: tuple(point for point in curve if point[0] <= moment.step) for name, curve in self.curves.items()
        }
        kept = {name: curve for name, curve in curves.items() if curve}
        return replace(
            self, curves=kept, journals=until(self.journals, moment), evaluated=min(self.evaluated, moment.step)
        )


@dataclass(frozen=True)
class RunState:
    """A run as its events tell it.

    Attributes:
        status: "waiting" (nothing was told yet), "running", "ended" or "failed".
        step: Training steps done, at the last event; those that count.
        began: When its first event was told.
        last: When its last event was told.
        why: Why it ended.
        decisions: The last events that have a reason, oldest first.
        compiles: XLA compiles so far.
        compile_seconds: Time they took.
        past: Curves and seeds, as far as the run may go back in them.
        undone: The same before each of the last times that it went back.
        delivery: How its events come, the same for all runs of its `run_id`.
    """

    status: str = "waiting"
    step: int = 0
    began: datetime | None = None
    last: datetime | None = None
    why: str = ""
    decisions: tuple[Event, ...] = ()
    compiles: int = 0
    compile_seconds: float = 0.0
    past: Past = field(default_factory=Past)
    undone: tuple[Past, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)

    @property
    def curves(self) -> Mapping[str, Curve]:
        """Figures of evaluations, by name; what was rolled back is gone, and long ones are thinned out."""
        return self.past.curves

    @property
    def seeds(self) -> dict[Place, SeedState]:
        """Seeds that something happened to, by layer and number; after a rollback, as they were where it went to."""
        return {place: journal[-1][1] for place, journal in self.past.journals.items()}

    @property
    def rollbacks(self) -> int:
        """How often it went back to a sound state."""
        return self.past.rollbacks

    @property
    def part(self) -> int:
        """How often the run had been resumed at the last event of its `run_id`."""
        return self.delivery.part

    @property
    def sequence(self) -> int:
        """Number of the last event of its `run_id`."""
        return self.delivery.sequence

    @property
    def missed(self) -> int:
        """Events of its `run_id` that never came to who reduces, by the gaps in their numbers."""
        return self.delivery.missed

    @property
    def dropped(self) -> Mapping[str, int]:
        """Events of its `run_id` that sinks never got, by sink."""
        return self.delivery.dropped

    @property
    def down(self) -> Mapping[str, str]:
        """Why sinks take no events of its `run_id` at the moment, by sink."""
        return self.delivery.down


def states(events: Iterable[Event], before: Mapping[Key, RunState] | None = None) -> dict[Key, RunState]:
    """The runs that the events are of, each by `after`, in the order they were met.

    >>> from esper.telemetry.convert import parse
    >>> start = parse('{"step": 0, "event": "start"}', run_id="a")
    >>> states([start])[("a", "growth")].status
    'running'
    """
    found = dict(before or {})
    deliveries = {run_id: state.delivery for (run_id, _), state in found.items()}
    for event in events:
        key = event.run_id, event.run
        state = replace(found.get(key, RunState()), delivery=deliveries.get(event.run_id, Delivery()))
        found[key] = after(state, event)
        deliveries[event.run_id] = found[key].delivery
    return {
        key: state if state.delivery is (now := deliveries[key[0]]) else replace(state, delivery=now)
        for key, state in found.items()
    }


def after(state: RunState, event: Event) -> RunState:
    """The state of a run after an event; one that was told already changes nothing."""
    if (event.part, event.sequence) <= (state.part, state.sequence):
        return state
    state = replace(
        state,
        delivery=_delivered(state.delivery, event),
        step=state.step if isinstance(event, Notice) else event.step,  # of the last event, wherever it went back to
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
            return replace(state, past=_measured(state.past, event))
        case Seed():
            at = Moment(event.step, DECIDED if event.step == state.past.evaluated else MEASURED)
            return replace(state, past=replace(state.past, journals=happened(state.past.journals, event, at)))
        case Health(event="rollback" | "give_up"):
            return _back(state, event)
    return state


def _delivered(before: Delivery, event: Event) -> Delivery:
    # A run that was resumed gives some numbers again.
    gap = max(0, event.sequence - before.sequence - 1) if before.sequence >= 0 else 0
    now = replace(before, part=event.part, sequence=event.sequence, missed=before.missed + gap)
    if event.part > before.part:  # another process, with sinks of its own
        now = replace(now, down={})
    return _noticed(now, event) if isinstance(event, Notice) else now


def _noticed(now: Delivery, event: Notice) -> Delivery:
    sink, total = str(event.figures.get("sink", "")), event.figures.get("total")
    down = {name: why for name, why in now.down.items() if name != sink}
    match event.event:
        case "sink_down":
            return replace(now, down={**down, sink: event.reason})
        case "sink_up":
            return replace(now, down=down)
        case "drops" if isinstance(total, int):
            return replace(now, dropped={**now.dropped, sink: total})
    return now


def _course(state: RunState, event: Course) -> RunState:
    match event.event:
        case "start":  # from the beginning, even if something was told of this run before
            past = Past(state.past.until(Moment(event.step, WITHIN)).curves)
            return replace(state, status="running", why="", past=past, undone=())
        case "resume":
            return _resumed(replace(state, status="running", why=""), event)
    return replace(state, status="ended" if event.event == "end" else "failed", why=event.reason)


def _resumed(state: RunState, event: Course) -> RunState:
    """A run that goes on from a checkpoint: what came after it did not happen, rollbacks included."""
    rollbacks, past = event.figures.get("rollbacks"), state.past
    if isinstance(rollbacks, int):  # histories of before it was told have none
        older = [each for each in state.undone if each.rollbacks == rollbacks]
        past = replace(older[-1] if older and rollbacks < past.rollbacks else past, rollbacks=rollbacks)
    order = MEASURED if event.figures.get("undecided") else DECIDED  # what was decided there is decided again
    past = replace(past.until(Moment(event.step, order)), evaluated=event.step)
    return replace(state, past=past, undone=tuple(each for each in state.undone if each.rollbacks < past.rollbacks))


def _back(state: RunState, event: Health) -> RunState:
    """A rollback; the seeds it culled are named as layer[seed], several by commas."""
    to = event.figures.get("back_to")
    step = to if isinstance(to, int) else event.step
    culled = str(event.figures.get("culled", "")).split(", ")
    past = state.past.until(Moment(step, WITHIN))
    now = replace(
        past, journals=put_back(state.past.journals, step, culled), evaluated=step, rollbacks=past.rollbacks + 1
    )
    return replace(state, step=step, past=now, undone=(*state.undone[1 - _BACK :], state.past))


def _measured(past: Past, event: Measurement) -> Past:
    past = replace(past, curves=_longer(past.curves, event))
    if event.event != "evaluate":
        return past
    return replace(past, journals=evaluated(past.journals, event.figures, event.step), evaluated=event.step)


def _longer(curves: Mapping[str, Curve], event: Measurement) -> dict[str, Curve]:
    found = dict(curves)
    for name, value in event.figures.items():
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
            curve = (*found.get(name, ()), (event.step, float(value)))
            found[name] = curve if len(curve) <= _POINTS else (*curve[:-1:2], curve[-1])
    return found


def latest(curve: Curve) -> float:
    """The last value of a curve; NaN where there is none."""
    return curve[-1][1] if curve else math.nan
