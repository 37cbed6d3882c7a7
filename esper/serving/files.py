"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from esper.errors import ExportError


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts `data` at `path`: what was there stays until all of it is on the disk.

    Raises:
        ExportError: It cannot be written.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}") from error


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
