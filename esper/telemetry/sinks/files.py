"""A file that is appended to: a write is whole or taken back, and the file is found again when it was away."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from esper.errors import TelemetryError

_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on file sizes, or move the file away",
    errno.EACCES: "let this user write there, or choose another folder",
    errno.EPERM: "let this user write there, or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOTDIR: "choose another folder: a part of this path is a file",
    errno.EEXIST: "choose another folder: a part of this path is a file",
    errno.EISDIR: "choose another name: this is a folder",
}


class Appended:
    """A file that one process appends to.

    Args:
        path: The file; folders above it are made.
        replace: Whether to begin a new file; who follows the old one sees that it is another.
        begin: Called with the open file whenever it was opened.
    """

    def __init__(self, path: Path, *, replace: bool = False, begin: Callable[[int], None] = lambda file: None) -> None:
        self._path, self._replace, self._begin = path, replace, begin
        self._file: int | None = None

    def append(self, data: bytes, *, sync: bool = False) -> None:
        """Appends all of the data, or nothing.

        Args:
            data: What to append.
            sync: Whether to force it to the disk.

        Raises:
            TelemetryError: It cannot be written; the message says what to do. It may be tried again.
        """
        try:
            file = self._opened()
            _whole(file, data)
            if sync:
                os.fsync(file)
        except OSError as error:
            self._let_go()
            move = _ADVICE.get(error.errno or 0, "see to that")
            text = f"{self._path} cannot be written: {error.strerror or error}; {move}, and it goes on by itself"
            raise TelemetryError(text) from error

    def close(self) -> None:
        """Forces everything to the disk, and closes the file."""
        if self._file is not None:
            try:
                os.fsync(self._file)
            finally:
                self._let_go()

    def _opened(self) -> int:
        if self._file is not None and not _is_at(self._file, self._path):
            self._let_go()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._replace and self._path.is_file():  # not a device
                self._path.unlink(missing_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._replace = False
            self._begin(self._file)
        return self._file

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _whole(file: int, data: bytes) -> None:
    """Writes all of it, or leaves the file as it was."""
    before = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        with suppress(OSError):  # where nothing can be taken back, a part of a line stays, and goes at the next opening
            os.ftruncate(file, before)
        raise


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
