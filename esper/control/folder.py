"""A channel between the processes of a machine: a folder for every inbox, a file for every message.

Anybody who may write there may have put anything there, and any number of it: every call does a bounded piece of work,
and what lies in the way is passed by or removed.
"""

from __future__ import annotations

import heapq
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from esper.control.channel import KEPT, too_large
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError

_SUFFIX = ".msg"
_PAUSES = (0.002, 0.05)  # seconds between looks into the inbox, the first and the longest
_LOOK = 0.1  # seconds that one look takes, at most, unless there are few files
_ROOM = 16  # messages that one which is sent removes, at most


class FolderChannel:
    """One end. Messages appear whole, by renaming, and whoever removes one has received it.

    A message about something is named after it, so that it is found at once, however many others there are, and takes
    the place of what somebody else has put there before. The others are received the oldest first.

    Args:
        folder: Shared by all ends; those who may write into it can delay messages, and not forge any.
        inbox: Name of the own inbox.
    """

    def __init__(self, folder: str | os.PathLike[str], inbox: str) -> None:
        self._folder, self._own = Path(folder), Path(folder) / inbox
        self._found: deque[str] = deque()  # names of messages that a look has found, the oldest first
        # Where a look goes on that was not done in its time.
        self._entries: Generator[os.DirEntry[str]] | None = None

    def send(self, to: str, message: bytes, about: str = "") -> None:
        """Puts a message into an inbox; some of the oldest go where there are too many."""
        inbox = self._folder / to
        name = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
        part = inbox / f"{name}.part"
        try:
            inbox.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(message)
            _put(part, _file(inbox, about or name))
        except OSError as error:
            with suppress(OSError):  # what is half written on a full disk
                part.unlink(missing_ok=True)
            raise ChannelError(f"cannot put a message into {inbox}: {error.strerror or error}") from error
        with suppress(OSError):  # it is sent
            _make_room(inbox)

    def receive(self, timeout: float, about: str = "") -> bytes | None:
        """The message about this, else the oldest of the own inbox."""
        deadline, (pause, longest) = time.monotonic() + timeout, _PAUSES
        while True:
            try:
                message = self._next(about)
            except OSError as error:
                self._entries = None
                raise ChannelError(f"cannot look into {self._own}: {error.strerror or error}") from error
            left = deadline - time.monotonic()
            if message is not None or left <= 0:
                return message
            if self._entries is None:
                time.sleep(min(pause, left))
                pause = min(2 * pause, longest)

    def close(self) -> None:
        """Removes the own inbox, if nothing is left in it."""
        if self._entries is not None:
            self._entries.close()
            self._entries = None
        with suppress(OSError):  # there is, or it never was
            self._own.rmdir()

    def _next(self, about: str) -> bytes | None:
        if about and (message := _claimed(_file(self._own, about))) is not None:
            return message
        if not self._found:
            self._found.extend(self._look())
        while self._found:
            if (message := _claimed(self._own / self._found.popleft())) is not None:
                return message
        return None

    def _look(self) -> list[str]:
        """Names of the newest messages, the oldest of them first, in as much of the inbox as can be gone through.

        The next look goes on from there, so that nothing can hide a message for good. What is too much is for a later
        one: removing it would take many times as long as passing it by, while somebody waits for an answer.
        """
        until = time.monotonic() + _LOOK
        newest: list[tuple[int, str]] = []
        self._entries = entries = self._entries or _entries(self._own)
        for count, entry in enumerate(entries):
            if (found := _message(entry)) is not None:
                heapq.heappush(newest, found)
            if len(newest) > KEPT:
                heapq.heappop(newest)
            if count > 2 * KEPT and time.monotonic() > until:
                break
        else:
            self._entries = None
        return [name for _, name in sorted(newest)]


def _file(inbox: Path, name: str) -> Path:
    return inbox / f"{name}{_SUFFIX}"


def _entries(inbox: Path) -> Generator[os.DirEntry[str]]:
    """What lies in an inbox, which there need not be."""
    with suppress(FileNotFoundError), os.scandir(inbox) as entries:
        yield from entries


def _message(entry: os.DirEntry[str]) -> tuple[int, str] | None:
    """When it was put there, and its name; None: it is no message.

    By the clock of the file system, which no sender sets: junk cannot pass for newer than it is.
    """
    if not entry.name.endswith(_SUFFIX):
        return None
    try:
        put = entry.stat(follow_symlinks=False)
    except OSError:  # it is gone
        return None
    return (put.st_ctime_ns, entry.name) if stat.S_ISREG(put.st_mode) else None


def _make_room(inbox: Path) -> None:
    """Removes some of the oldest messages, as far as can be told from a few, where there are too many."""
    with os.scandir(inbox) as entries:
        found = sorted(filter(None, map(_message, islice(entries, 2 * KEPT))))
    for _, name in found[: max(0, min(len(found) - KEPT, _ROOM))]:
        (inbox / name).unlink(missing_ok=True)


def _put(part: Path, file: Path) -> None:
    """Gives a message its name, in place of whatever somebody has put there."""
    try:
        part.rename(file)
    except IsADirectoryError:
        file.rename(part.with_suffix(".aside"))
        part.rename(file)


def _claimed(file: Path) -> bytes | None:
    """The message; None: there is none, another has received it, or it cannot be taken from where it is."""
    try:
        descriptor = _opened(file)
        if descriptor is None:
            return b""
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, "rb") as source:
            file.unlink()  # before it is read: what stays where it is costs no reading
            return too_large() if about.st_size > MAX_BYTES else source.read(MAX_BYTES + 1)  # it may have grown
    except OSError:
        return None


def _opened(file: Path) -> int | None:
    """A descriptor, without waiting for anybody; None: nobody can read the file, and it is removed."""
    try:
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        file.unlink()
        return None
