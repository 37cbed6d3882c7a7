"""A channel between the processes of a machine: a folder for every inbox, a file for every message."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from esper.control.channel import KEPT
from esper.control.seal import MAX_BYTES
from esper.errors import ChannelError

_SUFFIX = ".msg"
_PAUSES = (0.002, 0.05)  # seconds between looks into the inbox, the first and the longest


class FolderChannel:
    """One end. Messages appear whole, by renaming, and whoever removes one has received it.

    Args:
        folder: Shared by all ends; those who may write into it can delay messages, and not forge any.
        inbox: Name of the own inbox.
    """

    def __init__(self, folder: str | os.PathLike[str], inbox: str) -> None:
        self._folder, self._own = Path(folder), Path(folder) / inbox

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox; the oldest go where there are too many."""
        inbox = self._folder / to
        # Names sort by the clock of the machine that all ends share, as good as it is: order is a courtesy.
        name = f"{time.time_ns():020d}-{secrets.token_hex(8)}"
        part = inbox / f"{name}.part"
        try:
            inbox.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(message)
            part.rename(inbox / f"{name}{_SUFFIX}")
            for old in _messages(inbox)[:-KEPT]:
                (inbox / old).unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):  # what is half written on a full disk
                part.unlink(missing_ok=True)
            raise ChannelError(f"cannot put a message into {inbox}: {error.strerror or error}") from error

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox."""
        deadline, (pause, longest) = time.monotonic() + timeout, _PAUSES
        while True:
            try:
                for name in _messages(self._own):
                    if (message := _claimed(self._own / name)) is not None:
                        return message
            except OSError as error:
                raise ChannelError(f"cannot look into {self._own}: {error.strerror or error}") from error
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)

    def close(self) -> None:
        """Removes the own inbox, if nothing is left in it."""
        with suppress(OSError):  # there is, or it never was
            self._own.rmdir()


def _messages(inbox: Path) -> list[str]:
    """Names of the messages, the oldest first."""
    try:
        with os.scandir(inbox) as entries:
            return sorted(e.name for e in entries if e.name.endswith(_SUFFIX) and e.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _claimed(file: Path) -> bytes | None:
    """The message, no more of it than tells that it is too large; None: another has received it."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as source:
            message = source.read(MAX_BYTES + 1)
        file.unlink()
    except FileNotFoundError:
        return None
    return message
