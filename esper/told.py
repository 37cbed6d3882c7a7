"""Floor 5: what a run of the main job tells, so that its history is whole after a kill and after a full disk."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from esper.errors import EventError
from esper.report.read import NOTICES, gone_on, happening, missing, numbered_once
from esper.telemetry.bus import Bus
from esper.telemetry.convert import event_of
from esper.telemetry.events import Event
from esper.telemetry.folder import is_of_newer, set_damaged_aside
from esper.telemetry.reading import HISTORY, read
from esper.train.history import Record

Listen = Callable[[Record], None]
_LOG = logging.getLogger("esper.job")


def told_before(folder: Path, run_id: str) -> list[Event]:
    """The history that a run goes on after; one that is damaged is set aside, and the run tells what it holds again.

    Raises:
        EventError: It is of a newer esper.
        ConfigError: It is damaged, and cannot be renamed.
        OSError: It cannot be read.
    """
    path = folder / HISTORY
    if not path.is_file():
        return []
    try:
        return numbered_once(read(folder))
    except EventError as error:
        if is_of_newer(path):
            raise
        aside = set_damaged_aside(folder, run_id)
        _LOG.warning("%s: it is damaged, and set aside as %s; the run tells what it knows of it again", error, aside)
        return []


class Told:
    """Tells records to a run's bus and to whoever listens, and knows what the history is to hold.

    Args:
        folder: Of the run.
        bus: Of the run; nothing has been told to it yet.
        listen: Told every record.
        before: The history that the run goes on after.
    """

    def __init__(self, folder: Path, bus: Bus, listen: Listen, before: Sequence[Event] = ()) -> None:
        self._folder, self._bus, self._listen, self._before = folder, bus, listen, before
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
