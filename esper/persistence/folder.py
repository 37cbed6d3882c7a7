"""A folder of parts under a manifest, which is written last: whoever reads sees what was there before, or all of it.

A part is named by its content, so new parts never touch old ones, and what has not changed is not written again. The
manifest holds every part's size and SHA-256, and its own. Nothing of a file is believed before its digest is right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.errors import CorruptFileError, StateError

try:
    import fcntl
except ImportError:  # Windows has other locks, and refuses to remove a file that somebody reads
    fcntl = None

MANIFEST = "manifest.json"
FORMAT = "esper/1"
_LARGEST_MANIFEST = 1 << 20
_LARGEST_JSON = 1 << 26
_BLOCK = 1 << 20
_PART = re.compile(r"[a-z]+-[0-9a-f]{16}\.(safetensors|json)")
_TEMPORARY = ".part-"
_ATTEMPTS = 5
_KEPT_FROM = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # no fault of the file

Write = Callable[[Path], None]
"""Writes a file that is not there yet."""


@dataclass(frozen=True)
class Part:
    """One file of a folder.

    Attributes:
        file: Its name.
        bytes: Its size.
        sha256: Of its content, in hexadecimal digits.
    """

    file: str
    bytes: int
    sha256: str


def write_folder(path: Path, kind: str, parts: Mapping[str, Write]) -> None:
    """Writes parts into a folder, in the place of those that it has, if it has any; atomic.

    Args:
        path: The folder, which is made if it is not there.
        kind: What the parts are together, such as "model".
        parts: By name, what writes the file; the name ends in what kind of file it is, ".safetensors" or ".json".

    Raises:
        StateError: The folder cannot be written, or has a manifest of somebody else's; what it held is as it was.
    """
    try:
        _make(path)
        with _alone(path):
            _check_own(path / MANIFEST)
            _remove(path, lambda name: name.startswith(_TEMPORARY))
            placed = {name: _place(path, name, write) for name, write in parts.items()}
            _commit(path, kind, placed)
            kept = {part.file for part in placed.values()}
            _remove(path, lambda name: _PART.fullmatch(name) is not None and name not in kept)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error}; what it held is as it was") from error


def read_folder(path: Path, kind: str) -> dict[str, memoryview]:
    """The content of every part of a folder, by name, each checked against the manifest; it lies in the page cache.

    Raises:
        StateError: There is no such folder, it holds nothing of esper's, or something of another kind.
        CorruptFileError: A byte is not what was written, a part is missing, or is no plain file.
    """
    for _ in range(_ATTEMPTS):
        manifest = _manifest_bytes(path)
        try:
            parts = _parts(manifest, kind, path)
            return {name: _content(path, part) for name, part in parts.items()}
        except CorruptFileError:
            if _manifest_bytes(path) == manifest:  # else somebody has saved meanwhile
                raise
    raise StateError(f"{path} changes all the time: it was written {_ATTEMPTS} times while it was read")


def write_file(file: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, and stays whatever happens to the machine.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    make_folders(file.parent)
    temporary = _temporary(file.parent)
    try:
        with temporary.open("xb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_folders(path: Path) -> None:
    """Makes a folder, and those that it is in, which are there to stay."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def is_whole(path: Path) -> bool:
    """Whether a folder has a manifest; all that it names was there before it."""
    return (path / MANIFEST).is_file()


def remove_folder(path: Path) -> None:
    """Removes a folder; from the first moment on it is none of esper's."""
    (path / MANIFEST).unlink(missing_ok=True)
    _sync(path)
    shutil.rmtree(path)


# ---- writing ------------------------------------------------------------------------------------------------------


def _make(path: Path) -> None:
    if path.is_dir():
        return
    path.mkdir(parents=True)
    _sync(path.parent)


def _check_own(manifest: Path) -> None:
    """Refuses to write over what other programs call a manifest too; one of ours that is damaged may go."""
    if not manifest.is_file():
        return
    with manifest.open("rb") as opened:
        data = opened.read(_LARGEST_MANIFEST)
    if data.strip() and b'"format": "esper/' not in data:
        raise StateError(f"{manifest} is none of esper's and would be lost: name another folder, or move it away")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process writes into the folder meanwhile; one that is killed leaves no lock behind."""
    if fcntl is None:
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _place(path: Path, name: str, write: Write) -> Part:
    """Writes one part under the name that its content gives it."""
    stem, _, suffix = name.rpartition(".")
    temporary = _temporary(path)
    try:
        write(temporary)
        size, digest = _digest(temporary)
        if suffix == "json" and size > _LARGEST_JSON:
            raise StateError(f"{path}: {name} would be {size} bytes, and at most {_LARGEST_JSON} are read again")
        part = Part(f"{stem}-{digest[:16]}.{suffix}", size, digest)
        assert _PART.fullmatch(part.file), part.file
        os.replace(temporary, path / part.file)
        return part
    finally:
        temporary.unlink(missing_ok=True)


def _commit(path: Path, kind: str, parts: Mapping[str, Part]) -> None:
    temporary = _temporary(path)
    try:
        temporary.write_bytes(_manifest(kind, parts))
        _digest(temporary)
        _sync(path)  # the parts' names last before the manifest's does
        os.replace(temporary, path / MANIFEST)
        _sync(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path / f"{_TEMPORARY}{secrets.token_hex(8)}"


def _digest(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file that is on the disk from now on."""
    with file.open("rb") as opened:
        found = _read_through(opened.fileno())
        os.fsync(opened.fileno())
    return found


def _sync(path: Path) -> None:
    """A folder's names, on the disk."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: Path, unwanted: Callable[[str], bool]) -> None:
    for entry in list(os.scandir(path)):
        if unwanted(entry.name):
            os.unlink(entry.path)


def _manifest(kind: str, parts: Mapping[str, Part]) -> bytes:
    body = {
        "format": FORMAT,
        "kind": kind,
        "parts": {name: [part.file, part.bytes, part.sha256] for name, part in parts.items()},
    }
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1).encode("ascii") + b"\n"


# ---- reading ------------------------------------------------------------------------------------------------------


def _manifest_bytes(path: Path) -> bytes:
    if not path.is_dir():
        raise StateError(f"{path} is no folder; esper.save makes one")
    if not is_whole(path):
        found = ", ".join(sorted(entry.name for entry in os.scandir(path))[:5]) or "nothing"
        raise StateError(f"{path} has no {MANIFEST}, so esper.save did not finish there; it holds {found}")
    with _opened(path / MANIFEST, _LARGEST_MANIFEST) as handle:
        return os.read(handle, _LARGEST_MANIFEST)


def _parts(data: bytes, kind: str, path: Path) -> dict[str, Part]:
    """What a manifest names.

    Raises:
        StateError: It is of another kind, or another version.
        CorruptFileError: It is not what was written.
    """
    try:
        body = json.loads(data)
        digest = body.pop("sha256")
        is_sound = (
            digest == hashlib.sha256(_canonical(body)).hexdigest() and _canonical({**body, "sha256": digest}) == data
        )
        parts = {name: Part(*part) for name, part in body["parts"].items()} if is_sound else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path / MANIFEST} is not what was written: {error}") from None
    if not is_sound:
        raise CorruptFileError(f"{path / MANIFEST} is not what was written: its own SHA-256 does not match")
    if body.get("format") != FORMAT:
        raise StateError(f"{path} is of the format {body.get('format')!r}, and this version of esper reads {FORMAT!r}")
    if body.get("kind") != kind:
        raise StateError(f"{path} holds a {body.get('kind')}, and a {kind} is expected")
    return parts


def _content(path: Path, part: Part) -> memoryview:
    if not (isinstance(part.file, str) and _PART.fullmatch(part.file)):
        raise CorruptFileError(
            f"{path}: its manifest names {part.file!r:.80}, which is no name that esper gives a part"
        )
    if part.file.endswith(".json") and not 0 <= part.bytes <= _LARGEST_JSON:
        raise CorruptFileError(f"{path / part.file} would be {part.bytes} bytes, more than esper reads of JSON")
    with _opened(path / part.file, part.bytes) as handle:
        size, digest = _read_through(handle)
        if (size, digest) != (part.bytes, part.sha256):
            raise CorruptFileError(
                f"{path / part.file} is not what was written: {size} bytes of {part.bytes}, or another SHA-256. It was "
                "changed or damaged; take the folder from where it came from again"
            )
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if size else b"")


@contextmanager
def _opened(file: Path, limit: int) -> Iterator[int]:
    """A plain file of at most so many bytes; no link, device or pipe is opened for one.

    Raises:
        StateError: The system does not let this process read it, which says nothing of what it holds.
        CorruptFileError: There is no such file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(file, flags)
    except OSError as error:
        if error.errno in _KEPT_FROM:
            reason = f"{file} cannot be read: {error.strerror}; let this process read it, and try again"
            raise StateError(reason) from None
        raise CorruptFileError(f"{file} cannot be read: {error}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise CorruptFileError(f"{file} is no plain file")
        if found.st_size > limit:
            raise CorruptFileError(f"{file} has {found.st_size} bytes, and at most {limit} are expected")
        yield handle
    finally:
        os.close(handle)


def _read_through(handle: int) -> tuple[int, str]:
    """Size and SHA-256 of a file, of which no more than a block is held."""
    hasher, size = hashlib.sha256(), 0
    while block := os.read(handle, _BLOCK):
        hasher.update(block)
        size += len(block)
    return size, hasher.hexdigest()
