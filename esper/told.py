"""Floor 5: what a run of the main job tells, so that its history is whole after a kill and after a full disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from esper.errors import EventError
from esper.report.read import NOTICES, gone_on, happening, missing, numbered_once
from esper.telemetry.bus import Bus
from esper.telemetry.convert import event_of
from esper.telemetry.events import Event
from esper.telemetry.reading import HISTORY, read
from esper.train.history import Record

Listen = Callable[[Record], None]


class Told:
    """Tells records to a run's bus and to whoever listens, and knows what the history is to hold.

    Args:
        folder: Of the run.
        bus: Of the run; nothing has been told to it yet.
        listen: Told every record.
        resumed: Whether the run goes on after the history that is there.

    Raises:
        EventError: A line of that history is no event.
    """

    def __init__(self, folder: Path, bus: Bus, listen: Listen, *, resumed: bool) -> None:
        self._folder, self._bus, self._listen = folder, bus, listen
        self._before = numbered_once(read(folder)) if resumed and (folder / HISTORY).is_file() else []
        self._said: list[tuple[Record, float]] = []
        self._known = Counter(_known(self._before))

    def __call__(self, record: Record) -> None:
        """Tells a record."""
        self._known[_what(record)] += 1
        self._tell(record)
        self._listen(record)

    def recall(self, records: Sequence[Record]) -> None:
        """Tells the history what happened and it does not hold: the run was killed before that came there."""
        for record in records:
            if self._known[_what(record)]:
                self._known[_what(record)] -= 1
            elif record.event != "resume":
                self._tell(record)

    def events(self) -> Iterator[Event]:
        """The whole history, with what was told in this process, numbered without a gap."""
        part = self._before[-1].part + 1 if self._before else 0
        for sequence, event in enumerate(self._before):
            yield event if event.sequence == sequence else event.model_copy(update={"sequence": sequence})
        for sequence, (record, seconds) in enumerate(self._said, len(self._before)):
            yield event_of(record, run_id=self._bus.run_id, sequence=sequence, seconds=seconds, part=part)

    def is_written(self) -> bool:
        """Whether the file holds the whole history: somebody may have taken it away while the run went on."""
        try:
            found = read(self._folder)
        except (EventError, OSError):
            return False
        return not missing(found) and not Counter(_told(self.events())) - Counter(_told(found))

    def _tell(self, record: Record) -> None:
        self._bus.publish(record)
        self._said.append((record, time.time()))


def _known(events: Sequence[Event]) -> Iterator[tuple[object, ...]]:
    """What happened, without what happened again after the run had been resumed."""
    for name in dict.fromkeys(event.run for event in events):
        yield from map(_what, gone_on(tuple(event for event in events if event.run == name)))


def _told(events: Iterable[Event]) -> Iterator[tuple[object, ...]]:
    """What the events say, but those that telemetry tells of itself."""
    return (_what(event) for event in events if event.event not in NOTICES)


def _what(event: Event | Record) -> tuple[object, ...]:
    return event.run, *happening(event)
