"""What a run folder holds, read with tolerance: it may be of a run that goes on, or of a newer version."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

from esper.drawing.network import SCHEMA_VERSION as NETWORK_VERSION
from esper.errors import ArgumentError, RunFolderError
from esper.recorded import Happening
from esper.report.bounds import cut

HISTORY = "history.jsonl"
JOURNAL = "job.json"
EVENT_VERSION = 1
"""Major version of the events' envelope; lines without an envelope are of this one."""

NOTICES = ("sink_down", "sink_up", "drops", "malformed")
"""Events that telemetry tells of itself."""

GOING_BACK = ("rollback", "give_up")
"""Events by which a run goes back to where it was sound."""

_LARGEST = 2**53  # steps beyond are no steps


@dataclass(frozen=True)
class Event:
    """One line of `history.jsonl`; `esper.train.history.Record` says what the fields are."""

    step: int
    event: str
    reason: str = ""
    layer: str | None = None
    seed: int | None = None
    figures: Mapping[str, float | str] = field(default_factory=dict)
    compiles: int = 0
    run: str = "growth"
    time: str = ""
    run_id: str = ""
    sequence: int | None = None
    part: int = 0

    @property
    def place(self) -> tuple[str, int] | None:
        """The layer and the seed it happened to, if it was one."""
        return None if self.layer is None else (self.layer, self.seed or 0)

    def number(self, name: str) -> float:
        """A figure; NaN if it is not there."""
        value = self.figures.get(name)
        return float(value) if isinstance(value, int | float) else math.nan


class Numbered(Protocol):
    """What has a number in its run, if it is not of before there were any."""

    @property
    def sequence(self) -> int | None: ...  # noqa: D102
    @property
    def part(self) -> int: ...  # noqa: D102


H = TypeVar("H", bound=Happening)
N = TypeVar("N", bound=Numbered)


@dataclass(frozen=True)
class RunData:
    """What is known of a run.

    Attributes:
        name: What the page calls it.
        folder: Where it was read from.
        events: What happened, in order, in the run that grows.
        control: The same of the run without growth; empty: there is none, or not yet.
        ledger: As `Ledger.as_dict` made it; None: not there.
        certificate: Of the module that was given back; None: not there.
        network: As `esper.jax_backend.description` made it; None: not there.
        can_resume: Whether it keeps what `esper grow --resume` goes on from.
        missing: How many events its history has lost.
        notes: What could not be read, and why.
    """

    name: str
    folder: str
    events: tuple[Event, ...]
    control: tuple[Event, ...] = ()
    ledger: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None
    can_resume: bool = False
    missing: int = 0
    notes: tuple[str, ...] = ()

    @property
    def drawn_at(self) -> int | None:
        """The step at which the network was as it is here, if that was before the run's end."""
        step = (self.network or {}).get("step")
        return step if isinstance(step, int) else None

    @property
    def is_running(self) -> bool:
        """Whether it has not written its end; one that was killed has not either."""
        parts = [self.events] + ([self.control] if self.control else [])
        return self.failure is None and any(not any(event.event == "end" for event in part) for part in parts)

    @property
    def failure(self) -> Event | None:
        """The error that ended it, if one did."""
        return next((event for event in (*self.events, *self.control) if event.event == "failed"), None)


def run(folder: str | Path, name: str | None = None) -> RunData:
    """Reads a run folder.

    Args:
        folder: The folder, or its `history.jsonl`.
        name: What to call the run; None: the folder's name.

    Raises:
        RunFolderError: There is no such folder, or no history in it.
        ArgumentError: The history is of a version that this one does not know, or no history.
    """
    place = Path(folder)
    place = place.parent if place.name == HISTORY else place
    if not place.is_dir():
        raise RunFolderError(
            f"{folder}: no such run folder; `esper grow CONFIG` writes one, at the configuration's "
            "`training.output_dir`"
        )
    history = place / HISTORY
    if not history.is_file():
        held = ", ".join(sorted(found.name for found in place.iterdir())[:8]) or "nothing"
        raise RunFolderError(
            f"{place}: a run folder holds {HISTORY}, and this one does not (it holds {held}); name the folder that "
            "`esper grow` wrote, or wait for the run to write its first event"
        )
    events, notes = _events(history)
    lost = missing(_own(events))
    events, said = told_once(events)
    notes = [*_lost(lost), *notes, *said]
    growth, control = _split(events)
    files: dict[str, Any] = {}
    run_id = next((event.run_id for event in reversed(events) if event.run_id), "")
    for kind in ("ledger", "certificate", "network"):
        files[kind], said = _of_run(run_id, place / f"{kind}.json")
        notes += said
    network, said = _network(files["network"])
    return RunData(
        name=cut(name or place.resolve().name, 80),
        folder=cut(str(folder)),
        events=growth,
        control=control,
        ledger=files["ledger"],
        certificate=files["certificate"],
        network=network,
        can_resume=(place / JOURNAL).is_file(),
        missing=lost,
        notes=tuple(notes + said),
    )


def _events(path: Path) -> tuple[list[Event], list[str]]:
    """The events of a history, and what is to be said of lines that are none."""
    found: list[Event] = []
    bad: list[int] = []
    number = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            event = _event(line, path, number)
            if event is not None:
                found.append(event)
            elif line.strip():
                bad.append(number)
    if bad and bad[-1] == number:  # what a run is writing just now, or was when it was killed
        bad.pop()
    if bad and not found:
        raise ArgumentError(f"{path}: no line of it is an event; give the history that a run wrote")
    told = (
        f"{len(bad)} lines of {HISTORY} are no events and were left out, the first of them line {bad[0]}" if bad else ""
    )
    return found, [told] if told else []


def _event(line: str, path: Path, number: int) -> Event | None:
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(plain, dict):
        return None
    _check_version(plain, path, number)
    step, event = plain.get("step"), plain.get("event")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _LARGEST or not isinstance(event, str):
        return None
    layer, seed, figures = plain.get("layer"), plain.get("seed"), plain.get("figures")
    compiles = plain.get("compiles")
    return Event(
        step=step,
        event=cut(event, 40),
        reason=cut(str(plain.get("reason") or "")),
        layer=cut(layer, 200) if isinstance(layer, str) else None,
        seed=seed if isinstance(seed, int) else None,
        figures=_figures(figures if isinstance(figures, dict) else {}),
        compiles=compiles if isinstance(compiles, int) else 0,
        run=cut(str(plain.get("run") or "growth"), 80),
        time=cut(str(plain.get("time") or ""), 40),
        run_id=cut(str(plain.get("run_id") or ""), 80),
        sequence=_count(plain.get("sequence")),
        part=_count(plain.get("part")) or 0,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None


def _check_version(plain: Mapping[str, Any], path: Path, number: int) -> None:
    version = str(plain.get("schema_version", EVENT_VERSION)).partition(".")[0]
    if version != str(EVENT_VERSION):
        raise ArgumentError(
            f"{path}, line {number}: events of schema version {cut(version, 20)!r}, and this esper reads "
            f"{EVENT_VERSION}; read it with the version that wrote it"
        )


def _figures(plain: Mapping[str, Any]) -> dict[str, float | str]:
    """Null is what JSON has for a number that is not finite."""
    found: dict[str, float | str] = {}
    for name, value in plain.items():
        if value is None or isinstance(value, int | float):
            number = math.nan if value is None else value
            found[name] = float(number) if abs(number) < 1e300 or number != number else math.inf
        elif isinstance(value, str | list):
            found[name] = cut(value if isinstance(value, str) else ", ".join(map(str, value[:40])), 400)
    return found


def _split(events: list[Event]) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """The run that grows, which is the first that is no control, and the control."""
    control = tuple(event for event in events if event.run == "control")
    name = next((event.run for event in events if event.run != "control"), "control")
    growth = tuple(event for event in events if event.run == name)
    return gone_on(growth), () if name == "control" else gone_on(control)


def told_once(events: list[Event]) -> tuple[list[Event], list[str]]:
    """The events of one run, each once, and what is to be said of others.

    A sink that failed may write an event again. A folder may hold an earlier run's events, of another id.
    """
    own = _own(events)
    once = numbered_once(own)
    notes = [f"{len(events) - len(own)} events of another run in this folder were left out"] if own != events else []
    about = [event.event for event in once if event.event in NOTICES]
    if about:
        counts = ", ".join(f"{name} {about.count(name)}" for name in dict.fromkeys(about))
        notes.append(f"telemetry says of itself: {counts}; {HISTORY} has the reasons")
    last = max((event.part for event in once), default=0)
    over = (*NOTICES, "failed")  # a failure that the run went on after is none of it
    return [event for event in once if event.event not in (over if event.part < last else NOTICES)], notes


def _own(events: list[Event]) -> list[Event]:
    """Those of the run that was told last."""
    last = next((event.run_id for event in reversed(events) if event.run_id), "")
    return [event for event in events if event.run_id in ("", last)]


def numbered_once(events: Sequence[N]) -> list[N]:
    """The events without those whose part and number were there before."""
    met: set[tuple[int, int]] = set()
    once: list[N] = []
    for event in events:
        if event.sequence is None:
            once.append(event)
        elif (number := (event.part, event.sequence)) not in met:
            met.add(number)
            once.append(event)
    return once


def missing(events: Sequence[Numbered]) -> int:
    """How many events of a run are not there, by the gaps in their numbers; those that have none fill as many.

    Each part goes on from where the part before it was, as far as whoever resumed the run knew.
    """
    parts: dict[int, set[int]] = {}
    for event in events:
        if event.sequence is not None:
            parts.setdefault(event.part, set()).add(event.sequence)
    gaps, expected = 0, 0
    for _, numbers in sorted(parts.items()):
        gaps += max(numbers) + 1 - min(expected, *numbers) - len(numbers)
        expected = max(numbers) + 1
    return max(0, gaps - sum(event.sequence is None for event in events))


def _lost(count: int) -> list[str]:
    if not count:
        return []
    are = "1 event is" if count == 1 else f"{count:,} events are"
    return [
        f"{are} missing from {HISTORY}, by the gaps in the events' numbers: what is counted here is at least as much, "
        "and curves, seeds and decisions have gaps"
    ]


def gone_on(events: tuple[H, ...]) -> tuple[H, ...]:
    """The events that count: without those of futures that were lost when the run was resumed from before them."""
    kept: list[H] = []
    again: set[tuple[Any, ...]] = set()
    for event in events:
        if event.event == "start":
            kept, again = _before_the_start(kept), set()
        elif event.event == "resume":
            kept = _until_the_checkpoint(kept, event)
            since = max((at for at, known in enumerate(kept) if known.event in GOING_BACK), default=-1) + 1
            again = {happening(known) for known in kept[since:] if known.step == event.step}
        elif happening(event) in again:
            continue
        else:  # a run that goes back comes to the step once more
            again = {told for told in again if told[0] == event.step}
        kept.append(event)
    return tuple(kept)


def _before_the_start(events: list[H]) -> list[H]:
    """What is told before a start; one that comes after another, of a run without a checkpoint, begins anew."""
    if not any(event.event == "start" for event in events):
        return events
    return list(takewhile(lambda event: event.event == "library", reversed(events)))[::-1]


def _until_the_checkpoint(events: list[H], resume: H) -> list[H]:
    """The events that a checkpoint holds, as far as the resume tells: older ones tell the step alone."""
    kept = [event for event in takewhile(lambda event: event.event != "end", events) if event.event != "failed"]
    notes = list(takewhile(lambda event: event.event == "library", reversed(kept)))[::-1]  # told before it goes on
    kept = kept[: len(kept) - len(notes)]
    back = [at for at, event in enumerate(kept) if event.event in GOING_BACK]
    held, rollbacks = 0, resume.figures.get("rollbacks")
    if isinstance(rollbacks, int | float) and rollbacks >= 0:
        count = int(min(rollbacks, len(back)))
        kept, held = kept[: back[count]] if count < len(back) else kept, back[count - 1] + 1 if count else 0
    while len(kept) > held and kept[-1].step > resume.step:
        kept.pop()
    if resume.figures.get("undecided") == 1:  # what was decided there is decided again
        after = range(held, len(kept))
        ends = [at for at in after if kept[at].event == "evaluate" and kept[at].step == resume.step]
        last = ends[-1] if ends else len(kept)
        kept = kept[: last + 1] + [event for event in kept[last + 1 :] if event.event == "library"]
    return kept + notes


def happening(event: Happening) -> tuple[Any, ...]:
    """What tells an event from another one; the same after a resume."""
    return event.step, event.event, event.layer, event.seed, event.reason


def _plain(path: Path) -> tuple[Mapping[str, Any] | None, list[str]]:
    """What a JSON file holds; None, with a note unless it is not there."""
    if not path.is_file():
        return None, []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return None, [f"{path.name} is no JSON ({cut(str(error), 120)}); it may be being written"]
    return (_sane(held), []) if isinstance(held, dict) else (None, [f"{path.name} holds no object"])


def _of_run(run_id: str, path: Path) -> tuple[Mapping[str, Any] | None, list[str]]:
    """What a JSON file holds, unless it says that it is of another run than the history."""
    held, said = _plain(path)
    if held is not None and run_id and held.get("run_id", run_id) != run_id:
        return None, [f"{path.name} is of another run than {HISTORY} and was left out"]
    return held, said


def _sane(plain: Any) -> Any:
    """The same without numbers beyond what anything counts or measures, which become None."""
    if isinstance(plain, dict):
        return {name: _sane(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_sane(value) for value in plain]
    if isinstance(plain, int) and abs(plain) >= 2**80:
        return None
    return None if isinstance(plain, float) and not abs(plain) < 1e30 else plain


def _network(held: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, list[str]]:
    if held is None:
        return None, []
    if held.get("schema_version") != NETWORK_VERSION:
        version = cut(str(held.get("schema_version")), 20)
        return None, [f"network.json is of schema version {version}, and this esper reads {NETWORK_VERSION}"]
    layers = held.get("layers")
    if not isinstance(layers, list) or not all(_is_layer(layer) for layer in layers):
        return None, ["network.json holds no list of layers"]
    return held, []


def _is_layer(layer: Any) -> bool:
    """Whether the drawing can rely on what it counts with."""
    if not isinstance(layer, dict):
        return False
    if not all(layer.get(name) is None or isinstance(layer[name], str) for name in ("name", "type")):
        return False
    kernels, reads = layer.get("kernels", []), layer.get("reads", [])
    counts = [layer.get("parameters"), layer.get("flops"), *(reads if isinstance(reads, list) else [""])]
    if not isinstance(kernels, list) or not all(isinstance(kernel, dict) for kernel in kernels):
        return False
    counts += [kernel.get(name) for kernel in kernels for name in ("parameters", "flops")]
    options = all(isinstance(kernel.get("options") or {}, dict) for kernel in kernels)
    return options and all(count is None or (isinstance(count, int) and abs(count) < 2**63) for count in counts)
