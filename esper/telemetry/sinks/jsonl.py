"""Events as lines of a file, written as they happen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from esper.errors import EventError
from esper.telemetry.convert import parse
from esper.telemetry.events import Event
from esper.telemetry.sinks.base import LineSink
from esper.telemetry.sinks.files import Appended

_CHUNK = 1 << 16


class Jsonl(LineSink):
    """One event a line, appended whole: a reader sees complete lines, and at most one that is being written.

    Lines are handed to the operating system as they come, so a process that is killed loses what had not come here yet,
    a tenth of a second. They are forced to the disk when the sink closes, or with `fsync` at every write, which a loss
    of power makes worth its time. A write that fails, as on a full disk, is taken back, so that no line is torn; it is
    tried again, and so is a file that was taken away.

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
        self.path, self._fsync = Path(path), fsync
        self.last = last_event(self.path) if resume else None
        self._file = Appended(self.path, replace=not resume, begin=_cut_torn_line)

    def write_lines(self, run_id: str, lines: Sequence[bytes]) -> None:
        """Appends them, all or none."""
        self._file.append(b"".join(lines), sync=self._fsync)

    def close(self) -> None:
        """Forces what was written to the disk."""
        self._file.close()


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
        end = _end_of_lines(file, os.fstat(file).st_size)
        begin = _end_of_lines(file, end - 1)
        line = os.pread(file, end - begin, begin)
    finally:
        os.close(file)
    try:
        return parse(line) if line else None
    except EventError as error:
        raise EventError(f"{path} is not the history of a run, so it cannot be gone on with: {error}") from None


def _cut_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    if (end := _end_of_lines(file, size)) < size:
        os.ftruncate(file, end)


def _end_of_lines(file: int, before: int) -> int:
    """Where the last line ends whose end is before `before`; 0: there is none."""
    at = max(before, 0)
    while at > 0:
        size = min(_CHUNK, at)
        found = os.pread(file, size, at - size).rfind(b"\n")
        if found >= 0:
            return at - size + found + 1
        at -= size
    return 0
