"""One sink's way out of the process: a bounded queue, and a thread that empties it and tries again what failed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esper.configs.redaction import redacted
from esper.telemetry.sinks.base import Sink

_LOG = logging.getLogger("esper.telemetry")

_BATCH = 1000  # events in one write
_FIRST, _LONGEST = 0.1, 30.0  # seconds between tries, doubled from one to the other
_SOON = 0.25  # the same, when the bus is being closed
_TRIES = 5  # of a batch that fails for no reason of the place's
_REPORTS = 1.0  # least seconds between two reports of drops

Tell = Callable[[Literal["sink_down", "sink_up", "drops"], str, dict[str, int | str]], None]


@dataclass(frozen=True)
class Counts:
    """What became of the events that were meant for one sink.

    Attributes:
        written: That it took.
        dropped: That it never got: the queue was full, they were given up, or the bus was closed before it was back.
        problem: Why it does not take any at the moment; empty: it does.
    """

    written: int
    dropped: int
    problem: str


class Lane:
    """A sink, its queue and its thread.

    Args:
        sink: Where events go.
        write: Writes there what is put here.
        bound: How many may wait; then the oldest gives way, since the end of a run says more than its middle.
        tell: Publishes an event about the sink.
    """

    def __init__(self, sink: Sink, write: Callable[[list[Any]], None], bound: int, tell: Tell) -> None:
        self.sink, self._write, self._bound, self._tell = sink, write, bound, tell
        self._queue: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._busy = 0  # events in the thread's hands
        self._written = self._dropped = self._told = 0
        self._told_at = 0.0
        self._problem, self._ended = "", False
        self._thread = threading.Thread(target=self._work, name=f"esper-telemetry-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, events: Sequence[Any]) -> None:
        """Adds events; never waits for the sink."""
        with self._changed:
            self._queue.extend(events)
            while len(self._queue) > self._bound:
                self._queue.popleft()
                self._dropped += 1
            self._changed.notify_all()

    def lost(self, events: int) -> None:
        """Counts events that were dropped before they came here."""
        with self._changed:
            self._dropped += events

    def counts(self) -> Counts:
        """What became of the events so far; those that wait are neither written nor dropped."""
        with self._changed:
            return Counts(self._written, self._dropped, self._problem)

    def flush(self, deadline: float) -> bool:
        """Waits until everything is written, or until then; whether it was."""
        with self._changed:
            while self._queue or self._busy:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._changed.wait(min(left, 0.05))
        return True

    def hurry(self, deadline: float) -> None:
        """Tries again at once what waits to be tried, and gives up then."""
        self._deadline = deadline
        self._closing.set()
        with self._changed:
            self._changed.notify_all()

    def losses(self) -> int:
        """How many events are lost if it ends now: those dropped, and those not written yet."""
        with self._changed:
            return self._dropped + len(self._queue) + self._busy

    def end(self, deadline: float) -> Counts:
        """Closes the sink once everything is written, or gives up then; the thread of one that hangs is left behind."""
        self.hurry(deadline)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()) + 0.1)
        with self._changed:
            left = len(self._queue) + self._busy
            self._queue.clear()
            self._dropped, self._busy = self._dropped + left, 0
        return self.counts()

    # ---- in the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._take():
            self._deliver(batch)
            self._report()
        try:
            self.sink.close()
        except Exception as error:
            _LOG.warning("telemetry to %s did not close well: %s", self.sink.name, _said(error))

    def _take(self) -> list[Any]:
        """The next events, waiting for them; none: there will be none."""
        with self._changed:
            while not self._queue:
                if self._ended:
                    return []
                self._changed.wait()
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._busy = len(batch)
        return batch

    def _deliver(self, batch: list[Any]) -> None:
        pause, tries = _FIRST, 0
        while True:
            try:
                self._write(batch)
            except Exception as error:
                tries += 1
                self._failed(error)
                lasting = not isinstance(error, OSError) and tries >= _TRIES
                if lasting and len(batch) > 1:
                    self._deliver_apart(batch)
                    return
                if lasting or not self._paused(pause):
                    self._done(len(batch), written=False)
                    return
                pause = min(2 * pause, _LONGEST)
            else:
                self._done(len(batch), written=True)
                return

    def _deliver_apart(self, batch: list[Any]) -> None:
        """Delivers events one by one, since one of them may be why none was taken; gives up those that are not."""
        refused, why = 0, ""
        for event in batch:
            try:
                self._write([event])
            except OSError:
                self._deliver([event])  # it is the place that fails now
            except Exception as error:
                refused, why = refused + 1, _said(error)
                self._done(1, written=False)
            else:
                self._done(1, written=True)
        if refused:
            _LOG.warning(
                "telemetry to %s: %d events that it does not take were given up: %s", self.sink.name, refused, why
            )

    def _paused(self, seconds: float) -> bool:
        """Waits before another try; whether there is time for one."""
        if not self._closing.is_set():
            self._closing.wait(seconds)  # closing is a reason to try at once
            return True
        left = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(seconds, left, _SOON)))
        return left > 0

    def _failed(self, error: Exception) -> None:
        """Says once that the sink does not take events, whatever is tried until it does."""
        if self._problem:
            return
        with self._changed:
            self._problem = _said(error)
        _LOG.warning("telemetry to %s fails, training goes on: %s", self.sink.name, self._problem)
        self._tell("sink_down", self._problem, {"sink": self.sink.name})

    def _done(self, events: int, *, written: bool) -> None:
        with self._changed:
            if self._ended and not self._busy:
                return  # too late: it was counted as dropped
            back = written and bool(self._problem)
            self._busy = max(0, self._busy - events)
            if written:
                self._written, self._problem = self._written + events, ""
            else:
                self._dropped += events
            self._changed.notify_all()
        if back:
            _LOG.warning("telemetry to %s works again", self.sink.name)
            self._tell("sink_up", "it takes events again", {"sink": self.sink.name})

    def _report(self) -> None:
        """Says how many events were dropped since it was said last, once the sink takes any and there is room again."""
        now = time.monotonic()
        with self._changed:
            new, total = self._dropped - self._told, self._dropped
            if not new or self._problem or now - self._told_at < _REPORTS or len(self._queue) >= self._bound:
                return
            self._told, self._told_at = total, now
        reason = f"{new} events for {self.sink.name} were dropped: it took them slower than they came, or not at all"
        _LOG.warning("telemetry: %s", reason)
        self._tell("drops", reason, {"sink": self.sink.name, "dropped": new, "total": total})


def _said(error: Exception) -> str:
    """An error in one line, without what a URL may give away."""
    text = " ".join(str(error).split())
    return redacted(text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}")
