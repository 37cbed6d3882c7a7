"""From run folders to a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from esper.errors import ArgumentError, WriteError
from esper.report.page import render
from esper.report.read import run


def write(folders: Sequence[str | Path] | str | Path, path: str | Path) -> Path:
    """Writes the report of some runs as one HTML page.

    Args:
        folders: One run folder, or several that are compared.
        path: Of the page; it is replaced whole, so that nobody ever reads half of one.

    Returns:
        Where it was written.

    Raises:
        RunFolderError: A folder is not there, or holds no history.
        ArgumentError: No folder, or more than a page can hold; or `path` is a folder.
        WriteError: It cannot be written there; what was there is as it was.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    target = Path(path)
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder: name the file to write, such as {target / 'report.html'}")
    text = render([run(folder, name) for folder, name in zip(given, names(given), strict=True)])
    try:
        _replace(target, text)
    except OSError as error:
        problem = f"{target}: {error.strerror or error}"
        moves = "make room there, or name a file that can be written (`esper report -o FILE`)"
        raise WriteError(f"the report cannot be written: {problem}; {moves}", [problem]) from error
    return target


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    finally:
        with suppress(OSError):  # what keeps it from being there is said already
            beside.unlink(missing_ok=True)


def names(folders: Sequence[str | Path]) -> list[str]:
    """Names of run folders that tell them apart: as few of the last parts of their paths as do.

    >>> names(["runs/a/seed0", "runs/b/seed0"]), names(["runs/a"])
    (['a/seed0', 'b/seed0'], ['a'])
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    for length in range(1, max((len(found) for found in parts), default=1) + 1):
        told = ["/".join(found[-length:]) for found in parts]
        if len(set(told)) == len(told):
            return told
    return [f"{'/'.join(found[-1:])} ({place})" for place, found in enumerate(parts, start=1)]
