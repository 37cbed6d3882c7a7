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
        self._done = dict[tuple[str, int], int]()  # the last number of each part of each run

    def write(self, events: Sequence[Event]) -> None:
        """Calls the function; when events come again, with those it has not taken."""
        for event in events:
            part = event.run_id, event.part
            if event.sequence > self._done.get(part, -1):
                self._told(event)
                self._done[part] = event.sequence
