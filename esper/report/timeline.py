"""What happened, worked out from a run's events: what counts after rollbacks, the curves, the life of each seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from esper.drawing.lanes import Span
from esper.drawing.thin import Point
from esper.lifecycle import LEADS_TO
from esper.report.read import GOING_BACK, Event

STATES = {event: state.name for event, state in LEADS_TO.items()}
"""The state that a seed is in after an event."""

LOOKS = STATES | {"declined": "CULLED", "rollback": "ERROR_RECOVERY", "give_up": "ERROR_RECOVERY"}
"""The state whose look an event has."""

PLAIN = ("start", "resume", "evaluate", "score", "prepare", "shape", "end")
"""Events that nobody decided; all others are decisions, those of newer versions too."""

STANDING = ("update", "update_refused", "library", "remote", "rejected", "watch")
"""Decisions about the run rather than its network: going back to an earlier state takes none of them back."""

ARRIVALS = ("germinate", "load")
"""Events by which a kernel comes to a seed."""

Place = tuple[str, int]

_WITHIN = "it failed within a step"


@dataclass(frozen=True)
class Life:
    """The life of a seed.

    Attributes:
        place: Its layer, and which of its seeds.
        spans: Its states, in order.
        alpha: (step, alpha) where the curve bends; empty: never above 0.
        blueprints: What it held, one after the other.
    """

    place: Place
    spans: tuple[Span, ...]
    alpha: tuple[Point, ...]
    blueprints: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """A figure over the steps: the points that count, and the pieces that rollbacks threw away."""

    points: tuple[Point, ...]
    lost: tuple[tuple[Point, ...], ...] = ()


def label(place: Place) -> str:
    """What people call a seed."""
    return f"{place[0] or '(root)'}[{place[1]}]"


def last_step(events: Iterable[Event]) -> int:
    """The furthest step that anything happened at."""
    return max((event.step for event in events), default=0)


def planned_steps(events: Sequence[Event]) -> int:
    """How many steps the run is to take; of a run that does not say, as many as it took."""
    said = [event.number("steps") for event in events if event.event in ("start", "resume")]
    return max(
        [last_step(events), *(int(steps) for steps in said if math.isfinite(steps) and steps < 2**53)], default=0
    )


def end_step(events: Sequence[Event]) -> int:
    """The step at which the run stands: less than the furthest if it was given up."""
    if events and any(event.event == "give_up" for event in events):
        back = next(event for event in reversed(events) if event.event == "give_up").number("back_to")
        return int(back) if math.isfinite(back) else last_step(events)
    return last_step(events)


def is_going_back(event: Event) -> bool:
    """Whether what came after some step was thrown away."""
    return event.event in GOING_BACK and math.isfinite(event.number("back_to"))


def curve(events: Sequence[Event], name: str) -> Curve:
    """A figure of the evaluations."""
    points: list[Point] = []
    lost: list[tuple[Point, ...]] = []
    for event in events:
        if event.event == "evaluate" and name in event.figures:
            points.append((event.step, event.number(name)))
        elif is_going_back(event):
            back = event.number("back_to")
            kept = [point for point in points if point[0] <= back]
            gone = points[max(0, len(kept) - 1) :]
            if name in event.figures:
                gone = [*gone, (event.step, event.number(name))]
            lost.append(tuple(gone))
            points = kept
    return Curve(tuple(points), tuple(piece for piece in lost if len(piece) > 1))


def names_measured(events: Iterable[Event]) -> list[str]:
    """Names of the figures of evaluations and scores that are curves, in order of their first appearance."""
    found: dict[str, None] = {}
    for event in events:
        if event.event in ("evaluate", "score"):
            found |= dict.fromkeys(
                name for name in event.figures if name.startswith(("train_", "validation_", "test_"))
            )
    return list(found)


def is_share(events: Iterable[Event], measure: str) -> bool:
    """Whether a metric is a share of 1 for all that the events tell: finite values are from 0 to 1. A loss is none."""
    if measure == "loss":
        return False
    values = [event.number(f"{part}_{measure}") for event in events for part in ("train", "validation", "test")]
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) >= 0 and max(finite) <= 1


def scores(events: Iterable[Event]) -> dict[str, Event]:
    """The test scores by label: "untrained", "before growth", "end"."""
    return {event.reason: event for event in events if event.event == "score"}


def thrown_away(events: Sequence[Event]) -> set[int]:
    """Places of the events that a later rollback undid."""
    gone: set[int] = set()
    for place, event in enumerate(events):
        if is_going_back(event):
            back = event.number("back_to")
            # The state that is gone back to was kept before anything was decided there.
            gone |= {at for at in range(place) if events[at].step >= back and events[at].event not in PLAIN + STANDING}
            gone -= {at for at in range(place) if is_going_back(events[at])}
    return gone


def lives(events: Sequence[Event]) -> list[Life]:
    """The lives of the seeds to which anything happened, in order of that."""
    end = end_step(events)
    by_place: dict[Place, list[Event]] = {}
    for event in events:
        if event.place is not None and event.event in STATES:
            by_place.setdefault(event.place, [])
    counting = _counting(events, {said(place): place for place in by_place for said in (label, _named)})
    for event in counting:
        if event.place in by_place and event.event in (*STATES, "prepare", "alpha"):
            by_place[event.place].append(event)
    ramp, seen = ramp_of(events), measured_alphas(counting)
    return [_life(place, own, end, ramp, seen.get(_named(place), {})) for place, own in by_place.items()]


def _named(place: Place) -> str:
    """What figures call a seed."""
    return f"{place[0]}[{place[1]}]"


def _failures(event: Event, known: Mapping[str, Place]) -> list[Event]:
    """The seeds whose kernels failed within steps before an evaluation, as it tells them."""
    named = [(known.get(name.removeprefix("failed ")), name) for name in event.figures if name.startswith("failed ")]
    steps = [(place, event.number(name)) for place, name in named if place]
    return [Event(int(step), "error_recovery", _WITHIN, *place) for place, step in steps if 0 <= step <= event.step]


def _counting(events: Sequence[Event], known: Mapping[str, Place]) -> list[Event]:
    """The events that count in the end; seeds that a rollback blamed are culled there, preparations are the seed's."""
    kept: list[Event] = []
    asked: Event | None = None
    for event in events:
        if is_going_back(event):
            back, asked = int(event.number("back_to")), None
            kept = [known for known in kept if _stands(known, back)]
            blamed = str(event.figures.get("culled", "")).split(", ")
            for place, state in _states_now(kept).items():
                if state == "LOADING":  # what was being prepared is withdrawn
                    kept.append(Event(back, "dormant", "", *place))
                elif label(place) in blamed and state not in ("DORMANT", "CULLED", "FOSSILIZED"):
                    kept.append(Event(back, "culled", event.reason, *place))
        elif event.event in (*ARRIVALS, "declined") and event.place is not None:
            # One preparation at a time, and it may be of several seeds; this one may have done something else since.
            if asked is not None and not _has_moved_since(event.place, asked.step, kept):
                kept.append(replace(asked, layer=event.layer, seed=event.seed))
            kept.append(event)
        else:
            asked = event if event.event == "prepare" else asked
            kept += [*_failures(event, known), event] if event.event == "evaluate" else [event]
    return kept


def _stands(event: Event, back: int) -> bool:
    """Whether going back to a step leaves the event: what was sound was kept before anything was decided there."""
    return event.step < back or (event.step == back and (event.event == "evaluate" or event.reason == _WITHIN))


def _has_moved_since(place: Place, step: int, events: Iterable[Event]) -> bool:
    return any(event.place == place and event.event in STATES and event.step > step for event in events)


def _states_now(events: Iterable[Event]) -> dict[Place, str]:
    known = STATES | {"prepare": "LOADING"}
    return {event.place: known[event.event] for event in events if event.place and event.event in known}


def _life(
    place: Place, events: Sequence[Event], end: int, ramp: Callable[[float], float] | None, seen: dict[int, float]
) -> Life:
    moves = [
        (event.step, "LOADING" if event.event == "prepare" else STATES.get(event.event, ""), event) for event in events
    ]
    stated = [(step, state) for step, state, _ in moves if state]
    changes = [new for before, new in pairwise([(0, ""), *stated]) if new[1] != before[1]]
    spans = [
        Span(start, stop, state)
        for (start, state), (stop, following) in pairwise([*changes, (end, "")])
        if state != "DORMANT" and (stop > start or (stop == start and not following))  # it may end with a change
    ]
    held = [str(event.figures.get("blueprint")) for event in events if event.event in ARRIVALS]
    return Life(place, tuple(spans), tuple(_alpha(moves, end, ramp, seen)), tuple(name for name in held if name))


# ---- alpha --------------------------------------------------------------------------------------------------------


def ramp_of(events: Iterable[Event]) -> Callable[[float], float] | None:
    """From steps since a seed began to graft to the share of the way that its alpha has gone; None: not known."""
    start = next((e for e in events if e.event in ("start", "resume") and "blend_steps" in e.figures), None)
    if start is None or not start.number("blend_steps") >= 1:
        return None
    rise, blend = _RISES.get(str(start.figures.get("schedule"))), start.number("blend_steps")
    if rise is None:
        return None
    return lambda steps: 1.0 if steps >= blend else rise(max(0.0, steps / blend))


def _sigmoid(progress: float) -> float:
    low = 1 / (1 + math.exp(6))
    return (1 / (1 + math.exp(6 - 12 * progress)) - low) / (1 - 2 * low)


# As `esper.growth.schedule` has them, which runs on the device.
_RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: math.sin(0.5 * math.pi * progress) ** 2,
    "sigmoid": _sigmoid,
    "instant": lambda progress: float(progress > 0),
}


def measured_alphas(events: Iterable[Event]) -> dict[str, dict[int, float]]:
    """What evaluations say of the alpha of grafting seeds, as far as it is finite, by the seed's label."""
    found: dict[str, dict[int, float]] = {}
    for event in events:
        if event.event == "evaluate":
            for name in event.figures:
                if name.startswith("alpha ") and math.isfinite(event.number(name)):
                    own = found.setdefault(name.removeprefix("alpha "), {})
                    own[event.step] = event.number(name)
    return found


def _alpha(
    moves: Sequence[tuple[int, str, Event]], end: int, ramp: Callable[[float], float] | None, seen: dict[int, float]
) -> list[Point]:
    """The curve of a seed's alpha: exact where the schedule is known, through what was measured elsewhere."""
    points: list[Point] = []
    if not moves:
        return points
    alpha, before, stops = 0.0, "", [*(step for step, _, _ in moves[1:]), end]
    for (step, state, event), stop in zip(moves, stops, strict=True):
        new = alpha
        if event.event == "alpha":
            new = event.number("alpha") if math.isfinite(event.number("alpha")) else alpha
        elif state == "GRAFTING":
            rising = _ramp(step, stop, alpha, 0.0 if before == "ACTIVE" else 1.0, ramp, seen)
            points += rising
            new = alpha = rising[-1][1]
        elif state == "ACTIVE" and before == "GRAFTING" and alpha != 0.0:
            new = seen.get(step, 1.0 if alpha > 0.5 else alpha)
        elif state in ("CULLED", "DORMANT", "LOADING", "TRAINING", "ERROR_RECOVERY"):
            new = 0.0
        if new != alpha:
            points += [(step, alpha), (step, new)]
            alpha = new
        before = state or before
    points.append((end, alpha))
    return _bends(points) if any(value > 0 for _, value in points) else []


def _bends(points: Sequence[Point]) -> list[Point]:
    """The points at which a line through all of them bends."""
    kept: list[Point] = []
    for point in points:
        while len(kept) > 1 and _is_between(kept[-2], kept[-1], point):
            kept.pop()
        if not kept or point != kept[-1]:
            kept.append(point)
    return kept


def _is_between(before: Point, middle: Point, after: Point) -> bool:
    if after[0] == before[0]:
        return middle == before
    straight = before[1] + (after[1] - before[1]) * (middle[0] - before[0]) / (after[0] - before[0])
    return abs(straight - middle[1]) < 1e-4


def _ramp(
    start: int, stop: int, origin: float, target: float, ramp: Callable[[float], float] | None, seen: dict[int, float]
) -> list[Point]:
    inside = [(step, value) for step, value in sorted(seen.items()) if start < step <= stop]
    if ramp is None:
        return [(start, origin), *inside] if inside else [(start, origin), (stop, target)]
    drawn = [start + (stop - start) * part / 16 for part in range(17)] if stop > start else [start]
    made = [(step, origin + (target - origin) * ramp(step - start)) for step in drawn]
    said = all(abs(origin + (target - origin) * ramp(step - start) - value) < 0.02 for step, value in inside)
    return made if said else [(start, origin), *inside]  # what was measured is right where the two differ
