"""What a place that events go to has to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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
