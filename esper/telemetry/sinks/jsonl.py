"""Events as lines of a file, written as they happen."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from esper.errors import EventError, SinkError
from esper.telemetry.convert import parse
from esper.telemetry.events import Event
from esper.telemetry.sinks.base import Sink

_CHUNK = 1 << 16

_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on file sizes, or move the file away",
    errno.EACCES: "let this user write there, or choose another folder",
    errno.EPERM: "let this user write there, or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOTDIR: "choose another folder: a part of this path is a file",
    errno.EISDIR: "choose another name: this is a folder",
}


class Jsonl(Sink):
    """One event a line, appended whole: a reader sees complete lines, and at most one that is being written.

    Lines are handed to the operating system as they come, so a process that is killed loses what its queue held, some
    hundredths of a second. They are forced to the disk when the sink closes, or with `fsync` at every write, which a
    loss of power makes worth its time. A write that fails, as on a full disk, is taken back, so that no line is torn;
    it is tried again, and so is a file that was taken away.

    Args:
        path: The file, which this sink alone writes; folders above it are made.
        resume: Whether to go on after what the file holds, with its run and its numbers; a last line that was cut short
            goes. Otherwise the file is replaced, once there is something to write.
        fsync: Whether to force every write to the disk.

    Raises:
        EventError: To go on after a file that holds something else.
        OSError: To go on after a file that cannot be read.
    """

    name = "jsonl"

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False, fsync: bool = False) -> None:
        self.path, self._fsync, self._fresh = Path(path), fsync, not resume
        self._file: int | None = None
        self.last = last_event(self.path) if resume else None

    def write(self, events: Sequence[Event]) -> None:
        """Appends the events' lines, all or none."""
        try:
            _append(self._opened(), b"".join(event.line for event in events))
            if self._fsync and self._file is not None:
                os.fsync(self._file)
        except OSError as error:
            self._drop()
            raise _refusal(self.path, error) from error

    def close(self) -> None:
        """Forces what was written to the disk."""
        if self._file is not None:
            try:
                os.fsync(self._file)
            finally:
                self._drop()

    def _opened(self) -> int:
        """The file, opened again if it is no longer the one at the path."""
        if self._file is not None and not _is_at(self._file, self.path):
            self._drop()
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._fresh:
                self.path.unlink(missing_ok=True)  # who follows the old file sees that there is a new one
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._fresh = False
            _cut_torn_line(self._file)
        return self._file

    def _drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def last_event(path: Path) -> Event | None:
    """The last whole line of a file; None where there is none, and no file.

    Raises:
        EventError: It holds no event.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        end = _end_of_lines(file)
        begin = _end_of_lines(file, end - 1)
        line = os.pread(file, end - begin, begin)
    finally:
        os.close(file)
    try:
        return parse(line) if line else None
    except EventError as error:
        raise EventError(f"{path} is not the history of a run, so it cannot be gone on with: {error}") from None


def _append(file: int, lines: bytes) -> None:
    """Writes all of it, or leaves the file as it was."""
    before = os.fstat(file).st_size
    try:
        while lines:
            lines = lines[os.write(file, lines) :]
    except OSError:
        os.ftruncate(file, before)
        raise


def _cut_torn_line(file: int) -> None:
    if os.fstat(file).st_size:
        os.ftruncate(file, _end_of_lines(file))


def _end_of_lines(file: int, before: int | None = None) -> int:
    """Where the last line that ends before `before`, or before the file's end, ends; 0: there is none."""
    at = os.fstat(file).st_size if before is None else max(before, 0)
    while at > 0:
        size = min(_CHUNK, at)
        found = os.pread(file, size, at - size).rfind(b"\n")
        if found >= 0:
            return at - size + found + 1
        at -= size
    return 0


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _refusal(path: Path, error: OSError) -> SinkError:
    move = _ADVICE.get(error.errno or 0, "see to that")
    return SinkError(f"{path} cannot be written: {error.strerror or error}; {move}, and it goes on by itself")
