"""Events in the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.telemetry.events import Event
from esper.telemetry.sinks.base import Sink


class Subscriber(Sink):
    """Calls a function with every event, in a thread of the bus's: what it does never keeps a step waiting.

    Args:
        told: Called with each event, in their order; what it raises is said once, and the events come again.
        name: In messages; each of a bus has its own.
    """

    def __init__(self, told: Callable[[Event], object], name: str = "subscriber") -> None:
        self.name = name
        self._told = told
        self._done = -1

    def write(self, events: Sequence[Event]) -> None:
        """Calls the function; when events come again, with those it has not taken."""
        for event in events:
            if event.sequence > self._done:
                self._told(event)
                self._done = event.sequence
