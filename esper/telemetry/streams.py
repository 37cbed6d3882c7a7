"""Histories that are on Redis: followed by each reader for itself, or shared out among the consumers of a group."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from esper.configs import OonaSettings, RedisConfig
from esper.errors import EventError
from esper.telemetry.convert import parse
from esper.telemetry.events import Event
from esper.telemetry.redis_client import client, event_stream, explained, run_index

_LOG = logging.getLogger("esper.telemetry")
_COUNT = 500  # entries in one answer
_AGAIN = 0.5  # seconds until a server that is away is asked again

T = TypeVar("T")
Entries = list[tuple[str, bytes, Event | None]]
"""Stream, id of the entry, event; None: it holds none."""


def follow_redis(
    config: RedisConfig,
    oona: OonaSettings | None = None,
    *,
    runs: Sequence[str] = (),
    beginning: bool = True,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """The events of runs as they come, each once; a server that is away is waited for.

    An entry that is no event, or of a newer major version, is logged and left out, and so is a key that is no stream:
    anybody may have put it there.

    Args:
        config: The server.
        oona: Names and bounds of streams.
        runs: Ids of runs; none: all, new ones as they come.
        beginning: Whether to give what is there already.
        stop: When set, it ends once everything is read; None: it never ends.

    Raises:
        MissingExtraError: The package `redis` is not installed.
        TelemetryError: The server refuses the user or a command, or it is away when `stop` is set.
    """
    with _Server(config, oona, runs, stop) as server:
        places: dict[str, bytes] = {}
        seen: dict[str, tuple[int, int]] = {}
        late = not beginning
        while True:
            ending = server.stop.is_set()
            for stream in server.ask(server.streams):
                if stream not in places:
                    end = server.ask(lambda stream=stream: server.end(stream))
                    if end is not None:
                        places[stream] = end if late else b"0-0"
            late = False
            entries = server.ask(lambda: server.after(places)) if places else server.nothing()
            for stream, place, event in entries:
                places[stream] = place
                if event is not None and (event.part, event.sequence) > seen.get(stream, (0, -1)):
                    seen[stream] = event.part, event.sequence
                    yield event
            if ending and not entries:
                return


def consume_redis(
    config: RedisConfig,
    oona: OonaSettings | None = None,
    *,
    consumer: str,
    runs: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """The events of runs, each for one of the consumers of the group `oona.group`, from the streams' beginning.

    An event is acknowledged when the next one is asked for. One that is not, since its consumer died, comes again: to
    the consumer of the same name when it is back, or after `oona.claim_idle_ms` to another. So each comes once or more.

    Args:
        config: The server.
        oona: Names and bounds of streams, and the group.
        consumer: A name that no other consumer of the group has at the time.
        runs: Ids of runs; none: all, new ones as they come.
        stop: When set, it ends once everything is read; None: it never ends.

    Raises:
        As `follow_redis`.
    """
    with _Server(config, oona, runs, stop) as server:
        group = _Group(server, consumer)
        while True:
            ending = server.stop.is_set()
            entries = server.ask(group.next, again=group.forget)
            for stream, place, event in entries:
                if event is not None:
                    yield event
                server.ask(lambda stream=stream, place=place: server.client.xack(stream, group.name, place))
            if ending and not entries:
                return


class _Server:
    """A server that is asked until it answers."""

    def __init__(
        self, config: RedisConfig, oona: OonaSettings | None, runs: Sequence[str], stop: threading.Event | None
    ) -> None:
        self.config, self.oona, self._runs = config, oona or OonaSettings(), runs
        self.stop = stop or threading.Event()
        self.client: Any = client(config)  # whose types are those of its asynchronous twin as well
        self._away = False
        self._no_streams: set[str] = set()

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def block(self) -> int:
        """Milliseconds to wait for entries: less than the client waits for an answer."""
        return 1 if self.stop.is_set() else max(1, int(min(self.oona.block_ms, self.config.timeout * 500)))

    def ask(self, question: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
        """The answer, however often it takes; `again` is called before it is asked for again.

        Raises:
            TelemetryError: The server refuses, or it is away and `stop` is set.
        """
        from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, RedisError
        from redis.exceptions import ConnectionError as Away
        from redis.exceptions import TimeoutError as Late

        while True:
            try:
                answer = question()
            except (RedisError, OSError) as error:
                refused = isinstance(error, AuthenticationError | AuthorizationError)
                passing = isinstance(error, Away | Late | BusyLoadingError | OSError) and not refused
                if not passing or self.stop.is_set():
                    raise explained(self.config, error) from None
                if not self._away:
                    _LOG.warning("telemetry is not read until it is back: %s", explained(self.config, error))
                self._away = True
                self.stop.wait(_AGAIN)
                again()
            else:
                self._away = False
                return answer

    def nothing(self) -> Entries:
        """No entries, after as long as one would wait for some."""
        self.stop.wait(self.block / 1000)
        return []

    def streams(self) -> list[str]:
        """The streams to read; those of all runs where none were named."""
        runs = self._runs or [
            run.decode("utf-8", "backslashreplace") for run in self.client.zrange(run_index(self.oona), 0, -1)
        ]
        return [stream for run in runs if (stream := event_stream(self.oona, run)) not in self._no_streams]

    def end(self, stream: str) -> bytes | None:
        """The id of the last entry; None: it is left out."""
        from redis.exceptions import ResponseError

        try:
            last = self.client.xrevrange(stream, count=1)
        except ResponseError as error:
            self.leave_out(stream, error)
            return None
        return last[0][0] if last else b"0-0"

    def leave_out(self, stream: str, error: Exception) -> None:
        """Reads no more of a key that is no stream; raises any other error."""
        if not str(error).startswith("WRONGTYPE"):
            raise error
        _LOG.warning("telemetry: %s is left out: it is no stream", stream)
        self._no_streams.add(stream)

    def after(self, places: dict[str, bytes]) -> Entries:
        """Entries after these, waiting for some."""
        return _entries(self.client.xread(dict(places), count=_COUNT, block=self.block))


class _Group:
    """One consumer of a group."""

    def __init__(self, server: _Server, consumer: str) -> None:
        self.name, self._server, self._consumer = server.oona.group, server, consumer
        self._known: set[str] = set()
        self._own: dict[str, bytes] = {}  # streams whose entries that this consumer took before are not all read
        self._claimed = 0.0

    def forget(self) -> None:
        """Joins again: a server that was away may have lost the group, and its answers may be lost."""
        self._known.clear()
        self._own.clear()

    def next(self) -> Entries:
        """Entries: first those that were taken and never acknowledged, then new ones."""
        from redis.exceptions import ResponseError

        streams = [stream for stream in self._server.streams() if self._join(stream)]
        if not streams:
            return self._server.nothing()
        try:
            return self._taken_before() or self._claim(streams) or self._new(streams)
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            self.forget()  # a stream has expired, or the server lost it
            return []

    def _join(self, stream: str) -> bool:
        """Whether there is such a stream, and the group on it then."""
        from redis.exceptions import ResponseError

        if stream in self._known:
            return True
        try:
            self._server.client.xgroup_create(stream, self.name, id="0")
        except ResponseError as error:
            if "key to exist" in str(error):
                return False
            if not str(error).startswith("BUSYGROUP"):
                self._server.leave_out(stream, error)
                return False
        self._known.add(stream)
        self._own[stream] = b"0-0"
        return True

    def _new(self, streams: Sequence[str]) -> Entries:
        places = dict.fromkeys(streams, ">")
        client, block = self._server.client, self._server.block
        return _entries(client.xreadgroup(self.name, self._consumer, places, count=_COUNT, block=block))

    def _taken_before(self) -> Entries:
        """Entries that this consumer took and never acknowledged, from when it joined on."""
        for stream, place in list(self._own.items()):
            asked = {stream: place}
            found = _entries(self._server.client.xreadgroup(self.name, self._consumer, asked, count=_COUNT))
            if found:
                self._own[stream] = found[-1][1]
                return found
            del self._own[stream]
        return []

    def _claim(self, streams: Sequence[str]) -> Entries:
        """Entries that others took long ago."""
        idle, now = self._server.oona.claim_idle_ms, time.monotonic()
        if now - self._claimed < idle / 1000:
            return []
        found: Entries = []
        for stream in streams:
            answer = self._server.client.xautoclaim(stream, self.name, self._consumer, idle, count=_COUNT)
            found += _entries([(stream.encode(), answer[1])])
        if not found:
            self._claimed = now
        return found


def _entries(answer: Any) -> Entries:
    """What Redis answered; entries that were trimmed meanwhile have no fields."""
    found = answer.items() if isinstance(answer, dict) else answer or ()
    entries: Entries = []
    for stream, listed in found:
        if listed and isinstance(listed[0], list):  # as answers of the third protocol come
            listed = listed[0]
        name, bad = stream.decode(), Counter[str]()
        entries += [(name, place, _event(fields, bad)) for place, fields in listed if fields]
        for reason, times in bad.items():
            _LOG.warning("telemetry: %d entries of %s are left out: %s", times, name, reason)
    return entries


def _event(fields: dict[bytes, bytes], bad: Counter[str]) -> Event | None:
    """The event of an entry; None: there is none, which is counted."""
    try:
        return parse(fields.get(b"event", b""))
    except EventError as error:
        bad[str(error)] += 1
        return None
