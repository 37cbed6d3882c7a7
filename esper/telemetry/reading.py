"""Histories that are files: read, and followed as they are written."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from esper.errors import EventError
from esper.telemetry.convert import parse
from esper.telemetry.events import Event

HISTORY = "history.jsonl"
_POLL = 0.1  # seconds
_CHUNK = 1 << 20


def read(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a history, in order; a last line that is cut short is left out.

    Args:
        path: A `history.jsonl`, or the folder of a run that has one. Lines without an envelope, as esper wrote them
            once, get the folder's name as `run_id` and are numbered.

    Raises:
        EventError: A line is no event, or of a newer major version; the message has its number.
        OSError: The file cannot be read.
    """
    found = history(path)
    found.stat()
    tail = _Tail(found, _name(found, ()))
    try:
        return list(tail.new())
    finally:
        tail.close()


def follow(
    *paths: str | os.PathLike[str],
    beginning: bool = True,
    stop: threading.Event | None = None,
    poll: float = _POLL,
) -> Iterator[Event]:
    """The events of histories as they are written, those of several runs in turn.

    A file need not be there yet; one that is replaced, as by a run in the same folder, is read from its beginning.

    Args:
        paths: Histories, folders of runs, or folders of such folders, whose runs are found as they come. Where lines
            without an envelope are of folders of one name, more of their paths tells them apart.
        beginning: Whether to give what is there already.
        stop: When set, it ends once everything is read; None: it never ends.
        poll: Seconds between looks at files that have nothing new.

    Raises:
        EventError: A line is no event.
    """
    stop = stop or threading.Event()
    tails: dict[Path, _Tail] = {}
    late = not beginning
    try:
        while True:
            ending = stop.is_set()
            for path in histories(paths):
                if path not in tails:
                    name = _name(path, {tail.name for tail in tails.values()})
                    tails[path] = _Tail(path, name, skip=late)
            late = False
            met = False
            for tail in tails.values():
                for event in tail.new():
                    met = True
                    yield event
            if ending:
                return
            if not met:
                stop.wait(poll)
    finally:
        for tail in tails.values():
            tail.close()


def history(path: str | os.PathLike[str]) -> Path:
    """The file of a run that is given by it or by its folder."""
    return Path(path) / HISTORY if os.path.isdir(path) else Path(path)


def histories(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files of the runs at these paths; those of a folder's folders where it has none itself."""
    found: dict[Path, None] = {}
    for path in paths:
        own = history(path)
        nested = [] if own.exists() or not os.path.isdir(path) else sorted(Path(path).glob(f"*/{HISTORY}"))
        found |= dict.fromkeys(nested or [own])
    return list(found)


def _name(path: Path, taken: Collection[str]) -> str:
    """What a run without a name is called: as its folder, with as much of the path as tells it from others."""
    parts = path.absolute().parts[1:-1]
    names = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)] or [""]
    return next((name for name in names if name not in taken), names[-1])


class _Tail:
    """The whole lines of a file that were not given yet; events without a name of a run get `name`."""

    def __init__(self, path: Path, name: str, *, skip: bool = False) -> None:
        self.name = name
        self._path, self._number, self._at = path, 0, 0
        self._file: BinaryIO | None = None
        if skip and path.exists():
            for _ in self._lines():
                pass

    def new(self) -> Iterator[Event]:
        """The events of lines that were written since the last time."""
        for line in self._lines():
            try:
                yield parse(line, run_id=self.name, sequence=self._number - 1)
            except EventError as error:
                raise EventError(f"{self._path}, line {self._number}: no event of a run ({error})") from None

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _lines(self) -> Iterator[bytes]:
        yield from self._rest_of_file()
        if self._is_replaced():
            self.close()
            yield from self._rest_of_file()

    def _rest_of_file(self) -> Iterator[bytes]:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except (FileNotFoundError, IsADirectoryError):  # not yet; a folder that has become one of a run
                return
            self._number, self._at = 0, 0
        # What comes after the last end of a line is read again: whoever writes there may take it back.
        rest, at = b"", self._at
        while part := os.pread(self._file.fileno(), _CHUNK, at):
            at += len(part)
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._number, self._at = self._number + 1, self._at + len(line) + 1
                if line.strip():
                    yield line

    def _is_replaced(self) -> bool:
        if self._file is None:
            return False
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._file.fileno())
        return not os.path.samestat(here, there) or here.st_size < self._at
