"""What a place that events go to has to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby

from esper.telemetry.events import Event


class Sink(ABC):
    """A place that events go to.

    Everything but the constructor is called in a thread of its own, which may wait as long as it likes. A constructor
    opens nothing that can be away for a while: a server that is down at the start is one that comes back.

    Attributes:
        name: In messages, and in the events about it; unique on a bus.
        last: The last event that a run before left here, which this one goes on from; None: it begins.
    """

    name: str
    last: Event | None = None

    @abstractmethod
    def write(self, events: Sequence[Event]) -> None:
        """Writes the events, all or none as far as it can; they come again after a failure.

        Raises:
            OSError: What keeps it from writing may pass: it is tried again until it does. A `TelemetryError` says what
                to do about it.
            Exception: Anything else may be the events' fault: they are given up after a few tries.
        """

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """Closes what is open; called once, after the last `write`."""


class LineSink(Sink):
    """A place that takes events as lines of JSON: for it, a bus makes nothing else of a record."""

    @abstractmethod
    def write_lines(self, run_id: str, lines: Sequence[bytes]) -> None:
        """Writes lines of events of a run, their ends included; as `write` does it, and with the same errors."""

    def write(self, events: Sequence[Event]) -> None:
        """Writes the events' lines."""
        for run_id, some in groupby(events, lambda event: event.run_id):
            self.write_lines(run_id, [event.line for event in some])
