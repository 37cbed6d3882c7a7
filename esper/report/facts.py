"""What a run came to, in a few figures; every one is read off its files, and None where they do not say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper.report.read import Event, RunData
from esper.report.timeline import ARRIVALS, curve, is_share, scores, thrown_away


@dataclass(frozen=True)
class Reached:
    """How good a network was at some point.

    Attributes:
        step: When.
        loss: Its loss.
        accuracy: Share of right answers, or what the run calls accuracy; NaN: not measured.
        error: Standard error of that; NaN: not known.
        parameters: How many it had; NaN: not known.
    """

    step: int
    loss: float
    accuracy: float
    error: float
    parameters: float


@dataclass(frozen=True)
class Facts:
    """The figures of a headline.

    Attributes:
        part: What the scores were measured on: "test" or "validation".
        share: Whether accuracies are shares of 1.
        before: Before anything grew.
        after: At the end, or where the run stands.
        control: The run without growth, at its end.
        germinated: How many kernels germinated.
        loaded: How many came trained, from a library.
        stayed: How many of them take part in the network.
        flops: Operations of the whole run.
        seconds: Wall time that the ledger accounts for.
        host_flops: Operations of the host's forward for one example.
        kernel_flops: Of the kernels'.
    """

    part: str
    share: bool
    before: Reached | None
    after: Reached | None
    control: Reached | None
    germinated: int
    loaded: int
    stayed: int
    flops: float
    seconds: float
    host_flops: float
    kernel_flops: float

    @property
    def arrived(self) -> int:
        """How many kernels came to seeds, either way."""
        return self.germinated + self.loaded


def facts(run: RunData) -> Facts:
    """The figures of a run."""
    phases = _phases(run.ledger)
    layers = list(run.network["layers"]) if run.network else []
    kernels = [kernel for layer in layers for kernel in layer.get("kernels") or ()]
    part, before, after = _before_and_after(run.events)
    ended = bool(run.network) and run.drawn_at is None  # else a kernel that takes part may still be culled
    return Facts(
        part=part,
        share=is_share((*run.events, *run.control), "accuracy"),
        before=before,
        after=after,
        control=_end(run.control, part),
        germinated=sum(event.event == "germinate" for event in run.events),
        loaded=sum(event.event == "load" for event in run.events),
        stayed=sum(_takes_part(kernel) for kernel in kernels) if ended else _fossilised(run.events),
        flops=_sum(phases, "flops"),
        seconds=_sum(phases, "seconds"),
        host_flops=_total(layers),
        kernel_flops=_total([kernel for kernel in kernels if _takes_part(kernel)]) if run.network else math.nan,
    )


def _before_and_after(events: Sequence[Event]) -> tuple[str, Reached | None, Reached | None]:
    """The part, and both figures of it: what the test says is no match for what validation says."""
    taken = scores(events)
    if "end" not in taken:
        return "validation", _evaluated(events, before=True), _evaluated(events, before=False)
    grew = any(event.event in ARRIVALS for event in events)
    before = taken.get("before growth") or (None if grew else taken.get("untrained"))
    return "test", _scored(before), _scored(taken["end"])


def _end(events: Sequence[Event], part: str) -> Reached | None:
    if part == "test":
        return _scored(scores(events).get("end"))
    return _evaluated(events, before=False)


def _scored(event: Event | None) -> Reached | None:
    if event is None:
        return None
    accuracy, examples = event.number("test_accuracy"), event.number("examples")
    error = math.sqrt(accuracy * (1 - accuracy) / examples) if 0 <= accuracy <= 1 and examples >= 1 else math.nan
    return Reached(event.step, event.number("test_loss"), accuracy, error, event.number("parameters"))


def _evaluated(events: Sequence[Event], *, before: bool) -> Reached | None:
    """The last evaluation, or the last before anything grew."""
    born = next((event.step for event in events if event.event in ARRIVALS), None)
    losses = curve(events, "validation_loss").points or curve(events, "train_loss").points
    right = dict(curve(events, "validation_accuracy").points)
    kept = [point for point in losses if not before or (born is not None and point[0] <= born)]
    if not kept:
        return None
    step, loss = kept[-1]
    return Reached(int(step), loss, right.get(step, math.nan), math.nan, math.nan)


def _fossilised(events: Sequence[Event]) -> int:
    gone = thrown_away(events)
    return sum(event.event == "fossilized" and place not in gone for place, event in enumerate(events))


def _takes_part(kernel: Mapping[str, Any]) -> bool:
    return kernel.get("state") in ("GRAFTING", "ACTIVE", "FOSSILIZED") and not kernel.get("reserved")


def _total(parts: Sequence[Mapping[str, Any]]) -> float:
    known = [part.get("flops") for part in parts]
    return math.nan if not parts or None in known else float(sum(int(own or 0) for own in known))


def _phases(ledger: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    held = (ledger or {}).get("phases")
    return [spent for spent in held.values() if isinstance(spent, dict)] if isinstance(held, dict) else []


def _sum(phases: Sequence[Mapping[str, Any]], name: str) -> float:
    amounts = [spent.get(name) for spent in phases]
    numbers = [float(amount) for amount in amounts if isinstance(amount, int | float)]
    return sum(numbers) if numbers else math.nan
