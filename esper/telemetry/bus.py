"""The bus: numbers the events of a run and hands them to its sinks, never waiting for any of them.

Whoever publishes only leaves the record in a queue. One thread makes events of them, once for all sinks, and hands them
to the sinks' lanes, each of which has a queue and a thread of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from esper.errors import ArgumentError
from esper.telemetry.convert import Recorded, event_of
from esper.telemetry.lane import Counts, Lane
from esper.telemetry.sinks.base import Sink

_LOG = logging.getLogger("esper.telemetry")

BOUND = 10_000
_LINGER = 0.1  # seconds for which records gather: threads that wake for each would keep waking the one that trains
_GRACE = 1.0  # seconds that sinks which work are given for the last notices


@dataclass(frozen=True)
class _Own:
    """A record of the bus's own."""

    step: int
    event: str
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    run: str = "growth"
    layer: None = None
    seed: None = None
    compiles: int = 0
    programs: tuple[str, ...] = ()
    compile_seconds: float = 0.0
    waited: float = 0.0


class Bus:
    """Takes the events of a run to its sinks, each by a bounded queue and a thread of its own.

    Publishing takes microseconds and never fails or waits, whatever the sinks do. One that is slow or away loses
    the oldest of its events once its queue is full; how many is counted, said when it is back, and again at the end. It
    is a callback of `esper.fit`, and a context that closes it. In a forked child it does nothing.

    Args:
        sinks: Where events go.
        run_id: Which run it is; None: that of a sink that goes on from a run before, else a new one.
        bound: How many events may wait for each sink.
        timeout: Seconds that `close` waits for sinks that do not take events.

    Raises:
        ArgumentError: Two sinks have one name, or the bound is no positive number.

    Example:
        >>> from esper.telemetry import Subscriber
        >>> seen = []
        >>> with Bus(Subscriber(seen.append)) as bus:
        ...     bus.tell("start", "an example")
        >>> seen[0].event, seen[0].sequence
        ('start', 0)
    """

    def __init__(self, *sinks: Sink, run_id: str | None = None, bound: int = BOUND, timeout: float = 5.0) -> None:
        names = [sink.name for sink in sinks]
        if len(set(names)) < len(names):
            raise ArgumentError(f"every sink of a bus has a name of its own, and these have {names}: give another name")
        if bound < 1:
            raise ArgumentError(f"a queue holds at least one event, not {bound}: give a larger bound")
        lasts = [sink.last for sink in sinks if sink.last is not None]
        last = max(lasts, key=lambda event: (event.part, event.sequence), default=None)
        self.run_id = run_id or (last.run_id if last and last.run_id else new_run_id())
        self._sequence, self._part = (last.sequence + 1, last.part + 1) if last else (0, 0)
        self._step, self._run = (last.step, last.run) if last else (0, "growth")
        self._bound, self._timeout, self._pid = max(bound, BOUND), timeout, os.getpid()
        self._inbox: deque[tuple[Recorded, Any, int, float]] = deque()
        self._lost = 0
        self._lock, self._arrived, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._closed, self._summary = False, dict[str, Counts]()
        self._lanes = [Lane(sink, bound, self.tell) for sink in sinks]
        self._thread = threading.Thread(target=self._work, name="esper-telemetry", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def publish(self, record: Recorded) -> None:
        """Tells the sinks that something happened; after `close`, and in a forked child, nobody."""
        if self._closed or os.getpid() != self._pid:
            return
        step, run = record.step, record.run
        figures = getattr(record, "figures", None)
        if isinstance(figures, dict):  # whose owner may go on writing into it
            figures = dict(figures)
        with self._lock:
            if len(self._inbox) >= self._bound:
                self._inbox.popleft()
                self._lost += 1
            self._inbox.append((record, figures, self._sequence, time.time()))
            self._sequence, self._step, self._run = self._sequence + 1, step, run
        if not self._arrived.is_set():
            self._arrived.set()

    def __call__(self, record: Recorded, run: Any = None) -> None:
        """As a callback of `esper.fit`."""
        self.publish(record)

    def tell(self, event: str, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        """Publishes an event without a record, at the step of the last one."""
        self.publish(_Own(self._step, event, reason, dict(figures or {}), self._run))

    def counts(self) -> dict[str, Counts]:
        """What became of the events so far, by sink."""
        return self._summary or {lane.sink.name: lane.counts() for lane in self._lanes}

    def close(self, timeout: float | None = None) -> dict[str, Counts]:
        """Writes what waits, says what was lost, and closes the sinks; what was closed stays so.

        Args:
            timeout: Seconds that sinks which do not take events are waited for; None: what the bus was given.

        Returns:
            What became of the events, by sink.
        """
        if self._closed or os.getpid() != self._pid:
            return self._summary
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        self._closing.set()
        self._arrived.set()
        self._thread.join()
        self._dispatch()
        for lane in self._lanes:
            lane.hurry(deadline)
        written = [lane.flush(deadline) for lane in self._lanes]
        for name, lost in {lane.sink.name: lane.losses() for lane in self._lanes}.items():
            if lost:
                self.tell("drops", f"{name} missed {lost} events of this run", {"sink": name, "total": lost})
        self._closed = True
        self._dispatch()
        grace = time.monotonic() + _GRACE
        self._summary = {
            lane.sink.name: lane.end(grace if well else deadline)
            for lane, well in zip(self._lanes, written, strict=True)
        }
        atexit.unregister(self.close)
        for name, counts in self._summary.items():
            if counts.dropped:
                why = f": {counts.problem}" if counts.problem else ""
                _LOG.warning(
                    "telemetry to %s: %d events were lost, %d written%s", name, counts.dropped, counts.written, why
                )
        return self._summary

    def _work(self) -> None:
        """In a thread: hands over what was published, some at a time."""
        while not self._closing.is_set():
            self._arrived.wait()
            self._closing.wait(_LINGER)
            self._arrived.clear()
            self._dispatch()

    def _dispatch(self) -> None:
        """Makes events of what was published, and gives them to the lanes."""
        with self._lock:
            taken, self._inbox = self._inbox, deque()
            lost, self._lost = self._lost, 0
        events = [
            event_of(record, figures=figures, run_id=self.run_id, sequence=sequence, seconds=seconds, part=self._part)
            for record, figures, sequence, seconds in taken
        ]
        for lane in self._lanes:
            if lost:
                lane.lost(lost)
            lane.put(events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.tell("failed", f"the run ended by {kind.__name__}")
        self.close()


def new_run_id() -> str:
    """A name for a run: when it began, in UTC, and enough chance to be unique.

    >>> len(new_run_id())
    22
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
