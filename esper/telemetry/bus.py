"""The bus: numbers the events of a run and hands them to its sinks, never waiting for any of them.

Whoever publishes leaves a line in a queue, which takes microseconds. One thread hands what gathers there to the sinks'
lanes, each of which has a queue and a thread of its own; what takes longer, events for sinks that want them and records
that have to be validated, it does once for all of them.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from numbers import Integral
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeGuard

import numpy as np

from esper.errors import ArgumentError
from esper.recorded import Recorded
from esper.telemetry.convert import event_of, proper, proper_event, proper_line, stamped
from esper.telemetry.events import LARGEST, Event
from esper.telemetry.lane import Counts, Lane
from esper.telemetry.sinks.base import LineSink, Sink

_LOG = logging.getLogger("esper.telemetry")

BOUND = 10_000
_WRITABLE = (list, dict, set, np.ndarray)
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


class _Proper(NamedTuple):
    """A record that needs no validation."""

    stamp: dict[str, Any]
    fields: dict[str, Any]
    line: bytes


class _Other(NamedTuple):
    """A record that does."""

    record: Recorded
    figures: Any
    sequence: int
    seconds: float
    place: tuple[int, str]


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
        ArgumentError: Two sinks have one name, the bound is no positive number, or the run's name is no Unicode.

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
        _check_name(run_id or "")
        lasts = [sink.last for sink in sinks if sink.last is not None]
        last = max(lasts, key=lambda event: (event.part, event.sequence), default=None)
        self.run_id = run_id or (last.run_id if last and last.run_id else new_run_id())
        self._sequence, self._part = (last.sequence + 1, last.part + 1) if last else (0, 0)
        self._place = (last.step, last.run) if last else (0, "growth")
        self._bound, self._timeout, self._pid = max(bound, BOUND), timeout, os.getpid()
        self._inbox: deque[bytes | _Proper | _Other] = deque()
        self._lost = 0
        self._lock, self._arrived, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._closed, self._summary = False, dict[str, Counts]()
        self._lanes = [Lane(sink, self._writer(sink), bound, self.tell) for sink in sinks]
        self._lines_only = all(_takes_lines(sink) for sink in sinks)
        self._thread = threading.Thread(target=self._work, name="esper-telemetry", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def publish(self, record: Recorded) -> None:
        """Tells the sinks that something happened; after `close`, and in a forked child, nobody."""
        if self._closed or os.getpid() != self._pid:
            return
        fields = proper(record)
        with self._lock:
            if len(self._inbox) >= self._bound:
                self._inbox.popleft()
                self._lost += 1
            self._inbox.append(self._left(record, fields, time.time()))
            self._sequence += 1
        if not self._arrived.is_set():
            self._arrived.set()

    def __call__(self, record: Recorded, run: Any = None) -> None:
        """As a callback of `esper.fit`."""
        self.publish(record)

    def tell(self, event: str, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        """Publishes an event without a record, at the step of the last one."""
        step, run = self._place
        self.publish(_Own(step, event, reason, dict(figures or {}), run))

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

    def _left(self, record: Recorded, fields: dict[str, Any] | None, seconds: float) -> bytes | _Proper | _Other:
        """What is left in the queue for the thread; nothing whose owner may go on writing into it.

        Lines alone, where they will do, are nothing to Python's garbage collector, whose passes over what is held for a
        while keep all threads waiting.
        """
        if fields is not None:
            stamp = stamped(self.run_id, self._sequence, self._part, seconds)
            try:
                line = proper_line(stamp, fields)
            except ValueError:
                pass  # it has text that is no Unicode
            else:
                self._place = fields["step"], fields["run"]
                return line if self._lines_only else _Proper(stamp, {**fields, "figures": {**fields["figures"]}}, line)
        step, run, figures = (getattr(record, name, None) for name in ("step", "run", "figures"))
        if isinstance(step, Integral) and 0 <= int(step) <= LARGEST and isinstance(run, str):
            self._place = int(step), run
        if isinstance(figures, dict):
            figures = {name: copy(value) if isinstance(value, _WRITABLE) else value for name, value in figures.items()}
        return _Other(record, figures, self._sequence, seconds, self._place)

    def _dispatch(self) -> None:
        """Makes lines and events of what was published, and gives them to the lanes."""
        with self._lock:
            taken, self._inbox = self._inbox, deque()
            lost, self._lost = self._lost, 0
        made = [self._made(each) for each in taken]
        for lane in self._lanes:
            if lost:
                lane.lost(lost)
            at = 0 if _takes_lines(lane.sink) else 1
            lane.put([each[at] for each in made])

    def _made(self, left: bytes | _Proper | _Other) -> tuple[bytes, Event | None]:
        """Its line and, if a sink wants any, its event."""
        if isinstance(left, bytes):
            return left, None
        if isinstance(left, _Proper):
            return left.line, proper_event(left.stamp, left.fields)
        stamp = {"run_id": self.run_id, "sequence": left.sequence, "part": self._part, "seconds": left.seconds}
        event = event_of(left.record, figures=left.figures, place=left.place, **stamp)
        return event.line, event

    def _writer(self, sink: Sink) -> Callable[[list[Any]], None]:
        return partial(sink.write_lines, self.run_id) if _takes_lines(sink) else sink.write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.tell("failed", f"the run ended by {kind.__name__}")
        self.close()


def _takes_lines(sink: Sink) -> TypeGuard[LineSink]:
    """Whether lines will do; not for a class derived from such a one that looks at the events."""
    return isinstance(sink, LineSink) and type(sink).write is LineSink.write


def _check_name(run_id: str) -> None:
    """Raises an ArgumentError unless every event can be told under this name."""
    try:
        run_id.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{run_id!r} names no run: it is no Unicode; give another name") from None


def new_run_id() -> str:
    """A name for a run: when it began, in UTC, and enough chance to be unique.

    >>> len(new_run_id())
    22
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
